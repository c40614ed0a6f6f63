"""Runs as people run them: signals in every phase, moved and copied folders, a stranger's scripts, beside others."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.faults import Training, until, weights_hash
from train.run import commits

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
LAST = 5 * 7  # epochs of LONG, steps of one
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def whole(simulated_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of a run that nothing stopped; its train worker runs at nice 0, its data tasks below."""
    training = Training(simulated_shards, tmp_path_factory.mktemp("whole"))
    try:
        training.wait_for(2)
        for part, nice in (("train worker", 0), ("data worker", 1)):
            (pid, *_) = until(lambda part=part: training.find(part), part)  # type: ignore[misc]
            assert os.getpriority(os.PRIO_PROCESS, pid) == nice
        assert training.end() == 0, training.log[-4000:]
    finally:
        training.destroy()
    return weights_hash(training.folder)


def resumed(shards: Path, storage: Path, *settings: str) -> str:
    """The weights' hash of a run that goes on to its end."""
    training = Training(shards, storage, *settings, resume=True)
    try:
        assert training.end() == 0, training.log[-4000:]
    finally:
        training.destroy()
    return weights_hash(training.folder)


REST = pytest.mark.drills  # minutes each: the rest of the matrix of signals and receivers is for `pytest -m drills`


@pytest.mark.parametrize(
    ("one", "group"),
    [
        pytest.param(signal.SIGTERM, False, id="TERM-driver"),
        pytest.param(signal.SIGINT, True, id="INT-group"),
        pytest.param(signal.SIGTERM, True, id="TERM-group", marks=REST),
        pytest.param(signal.SIGINT, False, id="INT-driver", marks=REST),
        pytest.param(signal.SIGHUP, False, id="HUP-driver", marks=REST),
        pytest.param(signal.SIGHUP, True, id="HUP-group", marks=REST),
    ],
)
def test_a_signal_while_training_loses_nothing(
    one: signal.Signals, group: bool, whole: str, simulated_shards: Path, tmp_path: Path
) -> None:
    training = Training(simulated_shards, tmp_path)
    try:
        training.wait_for(3)
        (os.killpg if group else os.kill)(training.process.pid, one)
        assert training.end() == CODES[one], training.log[-4000:]
        reached = commits.steps(training.folder)[-1]
        assert reached == training.step() + 1 > 3  # the step at hand
        assert f"stopped at step {reached} of {LAST}; go on with --resume job" in training.log
        assert "Failed to push error" not in training.log and "*** SIG" not in training.log
    finally:
        training.destroy()
    assert resumed(simulated_shards, tmp_path) == whole


@pytest.mark.parametrize(
    "one", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=REST), pytest.param(signal.SIGHUP, marks=REST)]
)
def test_a_signal_before_the_first_step_ends_within_seconds(
    one: signal.Signals, whole: str, simulated_shards: Path, tmp_path: Path
) -> None:
    """In the placement of workers, and (SIGHUP) in the start of Ray."""
    training = Training(simulated_shards, tmp_path)
    try:
        until(lambda: training.find("head" if one == signal.SIGHUP else "controller"), "a process of Ray")
        os.killpg(training.process.pid, one)
        assert training.end() == CODES[one], training.log[-4000:]
    finally:
        training.destroy()
    if (training.folder / "run.json").exists():
        assert resumed(simulated_shards, tmp_path) == whole


def test_moved_copied_and_renamed_runs_go_on_where_they_are_named(
    whole: str, simulated_shards: Path, tmp_path: Path
) -> None:
    training = Training(simulated_shards, tmp_path / "old")
    try:
        training.wait_for(3)
        training.kill("driver", how=signal.SIGTERM)
        assert training.end() == 143
    finally:
        training.destroy()
    shutil.copytree(tmp_path / "old", tmp_path / "copied")
    (tmp_path / "old").rename(tmp_path / "moved")
    (tmp_path / "copied" / "job").rename(tmp_path / "copied" / "other")
    (tmp_path / "copied" / "other").rename(tmp_path / "copied" / "job")
    for place in ("moved", "copied"):
        assert resumed(simulated_shards, tmp_path / place) == whole
    assert not (tmp_path / "old").exists()


def test_a_strangers_scripts_are_not_run_by_workers(simulated_shards: Path, tmp_path: Path) -> None:
    for name in ("engine", "train", "tune", "serve"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was run')")
    from tests.train.small import SETTINGS

    settings = [f"data.shards={simulated_shards}", *SETTINGS, "run.epochs=2", f"run.storage={tmp_path}", "run.name=a"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, ROOT / "train" / "main.py", "--no-evaluation", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a stranger was run" not in done.stderr + done.stdout
