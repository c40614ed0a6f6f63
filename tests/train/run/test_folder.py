"""A run is its folder: found where it lies, made once, written by one process at a time."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from train.config import Config, RunConfig
from train.run import folder

pytestmark = pytest.mark.middle  # processes, or seconds


def test_a_run_is_found_by_name_or_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / folder.RECORD).write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("a", "runs/a", str(tmp_path / "runs" / "a")):
        assert folder.find(name, "runs") == tmp_path / "runs" / "a"
    with pytest.raises(ValueError, match="no run 'b' in runs; runs there: a"):
        folder.find("b", "runs")
    with pytest.raises(ValueError, match="no sweep 'a' in runs; sweeps there: none"):
        folder.find("a", "runs", "sweep.json")


def test_where_results_may_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder.at_home(Config(run=RunConfig(storage="~/runs"))).run.storage == str(tmp_path / "runs")
    with pytest.raises(ValueError, match="without `\\?`"):
        folder.at_home(Config(run=RunConfig(storage="what? runs#1")))
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg.zip"}})
    )
    with pytest.raises(
        ValueError, match=r"Ray's copy .* allowed: an absolute folder, e.g. --set run.storage=\$PWD/runs"
    ):
        folder.at_home(Config())
    assert folder.at_home(Config(run=RunConfig(storage="/runs"))).run.storage == "/runs"


def test_a_second_writer_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    run = tmp_path / "a"
    code = "import sys,time; from pathlib import Path; from train.run.folder import held\n"
    code += f"with held(Path({str(run)!r}), new=True): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        for new, text in ((True, "exists in"), (False, "run 'a' in")):
            message = f"{text} .*being written by process {holder.pid} on "
            with pytest.raises(ValueError, match=message) as refused, folder.held(run, new=new):
                pass
            assert "\n" not in str(refused.value)
        shutil.copytree(run, tmp_path / "copy")  # of a run that goes on
        with folder.held(tmp_path / "copy"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with folder.held(run):  # the owner is dead
        assert json.loads((run / folder.OWNER).read_text())["pid"] == os.getpid()
    assert not run.exists()  # nothing was done in it


def test_an_owner_elsewhere_is_dead_without_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "a"
    with folder.held(run):
        monkeypatch.setattr(folder, "_where", lambda: "another machine")
        assert folder.owner_of(run)
        silent = time.time() - folder.DEAD_S - 1
        os.utime(run / folder.OWNER, (silent, silent))
        assert folder.owner_of(run) is None


def _start(run: Path, new: bool, begin: float, results: Any, release: Any) -> None:
    time.sleep(max(0.0, begin - time.time()))
    try:
        with folder.held(run, new=new):
            results.put(True)
            release.wait(60)
    except ValueError:
        results.put(False)


@pytest.mark.parametrize("new", [True, False], ids=["start", "resume"])
def test_of_two_writers_at_once_there_is_never_more_than_one(new: bool, tmp_path: Path) -> None:
    """20 tries of three processes that begin in the same moment."""
    context = multiprocessing.get_context("fork")
    for number in range(20):
        run = tmp_path / str(number)
        if not new:
            run.mkdir()
            (run / folder.RECORD).write_text("{}")
        results, release = context.Queue(), context.Event()
        arguments = (run, new, time.time() + 0.1, results, release)
        parts = [context.Process(target=_start, args=arguments) for _ in range(3)]
        for part in parts:
            part.start()
        assert sum(results.get(timeout=60) for _ in parts) == 1
        release.set()
        for part in parts:
            part.join()
