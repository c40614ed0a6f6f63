"""What a machine lacks is no end of a run: git, a terminal that shows dashes, room on the disk."""

import errno
import io
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.commandline import guarded
from train.models import checkpoint
from train.run import commits, trainer

pytestmark = pytest.mark.middle  # processes, or seconds


def test_without_git_the_version_is_noted_without_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.code_version.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert checkpoint.code_version() and "(" not in checkpoint.code_version()
    checkpoint.code_version.cache_clear()


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii", write_through=True))

    def command() -> int:
        sys.stdout.write("58.0 \N{EN DASH} 64.4\n")
        return 0

    assert guarded(command) == 0
    assert shown.getvalue() == b"58.0 ? 64.4\n"


def test_a_full_disk_is_named_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers of tensors hide it in texts of their own."""

    def breaks(folder: Path) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 6154176 vs 6154068")

    def works(folder: Path) -> None:
        (folder / commits.STATE).write_bytes(b"0" * 3_000_000)
        (folder / commits.META).write_text("{}")

    writer = commits.Commits(tmp_path, keep=2)
    writer.submit(4, works)
    writer.wait()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    writer.submit(5, breaks)
    with pytest.raises(
        OSError, match="No space left on device: 2 MB free, a checkpoint takes 3 MB; step 4 is whole"
    ) as full:
        writer.wait()
    assert full.value.errno == errno.ENOSPC and full.value.filename == str(tmp_path / commits.FOLDER)
    assert commits.steps(tmp_path) == [4]
    import ray.train

    again = trainer._not_worth_a_retry(ray.train.WorkerGroupError("failed", {0: full.value}))
    assert again is full.value
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    writer.submit(6, breaks)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        writer.wait()
