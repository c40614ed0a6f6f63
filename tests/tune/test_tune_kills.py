"""A trial's process and then the driver are killed for real; `--resume` repeats nothing that is done."""

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.train.faults import PATIENCE_S, ROOT, Training, alive, descendants, until
from tests.train.small import SETTINGS
from train.config import Config
from tune.ledger import Ledger
from tune.search import propose
from tune.spaces import find

pytestmark = pytest.mark.slow

TRIALS = 4
LONG = ("run.epochs=16", "run.validate_every=4", "run.tracking=mlflow")


class Sweeping(Training):
    """`python tune/main.py` in a process of its own, on a local Ray of its own."""

    def __init__(self, shards: Path, storage: Path, *options: str) -> None:
        chosen = [f"data.shards={shards}", *SETTINGS, *LONG, f"run.storage={storage}"]
        command = [sys.executable, str(ROOT / "tune" / "main.py"), "--recipe", "quickstart", *options]
        command += [part for setting in chosen for part in ("--set", setting)]
        self._start(command, storage / "s")

    def ended(self) -> list[str]:
        """The names of the trials whose end was told, in order."""
        return re.findall(r"^\[\d+/\d+\] (\S+)", self.log, re.MULTILINE)

    def trials(self) -> list[int]:
        """The processes that train."""
        found = []
        for pid in sorted(descendants(self.process.pid)):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"Trainable" in line or b"ray::Trial" in line:
                found.append(pid)
        return found

    def strike(self) -> None:
        """Kill the driver; its trials end with its Ray. What Ray itself leaves for a while is killed, too."""
        below, trials = descendants(self.process.pid), self.trials()
        assert trials
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE_S)
        until(lambda: not any(alive(pid) for pid in trials), "the trials to end")
        for pid in filter(alive, below):
            os.kill(pid, signal.SIGKILL)


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in folder.glob("*/trial.json")}


def runs(storage: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    return list(client.search_runs([client.get_experiment_by_name("taxafuse-sweeps").experiment_id]))


def test_a_killed_trial_and_a_killed_driver(simulated_shards: Path, tmp_path: Path) -> None:
    asked = ("--name", "s", "--search", "random", "--trials", str(TRIALS), "--seeds", "1", "--no-early-stopping")
    first = Sweeping(simulated_shards, tmp_path, *asked)
    try:
        until(
            lambda: first.process.poll() is not None or any(e["history"] for e in entries(first.folder).values()),
            "a validation",
        )
        os.kill(until(first.trials, "a trial")[0], signal.SIGKILL)
        until(lambda: first.process.poll() is not None or len(first.ended()) >= 2, "two trials that have ended")
        assert first.process.poll() is None, first.log[-2000:]
        first.strike()
    finally:
        first.destroy()
    assert "broke off (its process died); it goes on from its last checkpoint" in first.log
    done = {name: entry for name, entry in entries(first.folder).items() if entry["state"] == "finished"}
    assert len(done) >= 2
    before = len(runs(tmp_path))

    second = Sweeping(simulated_shards, tmp_path, "--resume", "s")
    try:
        assert second.process.wait(PATIENCE_S) == 0, second.log[-3000:]
    finally:
        second.destroy()
    assert not set(done) & set(second.ended()), "a finished trial was repeated"
    after = entries(second.folder)
    assert {name: after[name] for name in done} == done
    search = Ledger(second.folder).search()
    assert [entry.state for entry in search] == ["finished"] * TRIALS
    assert all([epoch for epoch, _ in entry.history] == [4, 8, 12, 16] for entry in search)
    for entry in search[1:]:  # what an uninterrupted sweep of this seed would have tried
        assert entry.values == propose(find("pair", Config()), "random", 0, entry.number, [])
    everything = runs(tmp_path)
    assert len(everything) == 1 + len(after) > before
    assert len({run.data.tags["taxafuse.key"] for run in everything}) == len(everything)
    assert {run.info.status for run in everything} == {"FINISHED"}
    assert "Recommended: `--set loss.hierarchy_weight=" in second.log
