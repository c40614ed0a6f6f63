"""Commits: asynchronous, whole or not at all; the last few and the best stay."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from train.models.checkpoint import META, STATE
from train.run import commits
from train.run.commits import Commits


def writer(score: float | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / STATE).write_text("state")
        (folder / META).write_text(json.dumps({} if score is None else {"score": score}))

    return write


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    run = Commits(tmp_path, keep=2)
    for step, score in enumerate([None, 0.5, 0.9, 0.2, None, 0.9, 0.1, None, None], start=1):
        run.submit(step, writer(score))
    run.wait()
    assert commits.steps(tmp_path) == [6, 8, 9]  # of two equal scores, the later
    assert commits.best(tmp_path) == 6 and commits.score_of(tmp_path, 9) is None
    run.submit(10, writer(0.95))
    run.wait()
    assert commits.steps(tmp_path) == [9, 10]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    run, go_on = Commits(tmp_path, keep=2), threading.Event()

    def slow(folder: Path) -> None:
        writer()(folder)
        assert go_on.wait(60)

    run.submit(1, slow)
    assert commits.steps(tmp_path) == []  # written, not committed, and nobody waited
    go_on.set()
    run.wait()
    assert commits.steps(tmp_path) == [1] and run.seconds > 0


def test_what_was_never_finished_is_removed(tmp_path: Path) -> None:
    run = Commits(tmp_path, keep=2)
    run.submit(1, writer())
    run.wait()
    (tmp_path / "checkpoints" / "part-1").mkdir()
    writer()(tmp_path / "checkpoints" / "part-1")
    assert commits.steps(tmp_path) == [1]
    Commits(tmp_path, keep=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001"]


def test_a_failure_is_told_at_the_next_commit(tmp_path: Path) -> None:
    run = Commits(tmp_path, keep=2)

    def full(folder: Path) -> None:
        writer()(folder)
        raise OSError(28, "No space left on device")

    run.submit(1, full)
    with pytest.raises(OSError, match="No space left"):
        run.submit(2, writer())
    assert not list((tmp_path / "checkpoints").iterdir())
    run.submit(3, writer())
    run.wait()
    assert commits.steps(tmp_path) == [3]


def test_a_step_that_was_done_again_is_committed_again(tmp_path: Path) -> None:
    run = Commits(tmp_path, keep=2)
    for score in (0.1, 0.2):
        run.submit(7, writer(score))
    run.wait()
    assert commits.steps(tmp_path) == [7] and commits.score_of(tmp_path, 7) == 0.2


def test_a_process_killed_while_it_removes_one_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the kill drill: a checkpoint without its meta.json that still looked committed."""
    run = Commits(tmp_path, keep=1)
    run.submit(1, writer(0.5))
    run.wait()

    def killed(folder: Path, ignore_errors: bool = False) -> None:
        if folder.exists():
            (folder / META).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(commits.shutil, "rmtree", killed)
    run.submit(2, writer(0.7))
    with pytest.raises(KeyboardInterrupt):
        run.wait()
    monkeypatch.undo()
    assert commits.steps(tmp_path) == [2] and commits.best(tmp_path) == 2
    Commits(tmp_path, keep=1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000002"]
