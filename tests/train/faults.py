"""A training run as a process of its own, parts of which are killed from outside: what fault tests and drills share."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.train.small import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
PARTS = {  # what stands in the command line of its processes
    "train worker": (b"RayTrainWorker",),
    "data worker": (b"_run_task",),
    "controller": (b"TrainController",),
    "head": (b"gcs_server", b"raylet/raylet"),
}
PATIENCE_S = 300  # a machine may be busy with other things
LEFTOVERS_S = 120  # Ray's agents look for a head that died for 60 s (gcs_rpc_server_reconnect_timeout_s), then end
# Data tasks of 8 rows run during most of the training, so that one can be found and killed.
LONG = ("run.epochs=5", "run.checkpoint_steps=10", "run.record_keys=true", "data.rows_per_task=8", "model.dropout=0.1")


def descendants(pid: int) -> set[int]:
    """All processes below `pid`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found, added = {pid}, True
    while added:
        new = {child for child, parent in parents.items() if parent in found} - found
        found, added = found | new, bool(new)
    return found - {pid}


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
    """The first true value of `condition`, asked a hundred times a second."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.01)
    return value


class Training:
    """`python train/main.py` in a process of its own, on a local Ray of its own; `resume` gives the same command
    with --resume."""

    def __init__(self, shards: Path, storage: Path, *settings: str, resume: bool = False) -> None:
        chosen = [f"data.shards={shards}", *SETTINGS, *LONG, f"run.storage={storage}", "run.name=job", *settings]
        command = [sys.executable, str(ROOT / "train" / "main.py"), "--recipe", "quickstart", "--no-evaluation"]
        command += [part for setting in chosen for part in ("--set", setting)]
        self._start([*command, *(["--resume", "job"] if resume else [])], storage / "job")

    def _start(self, command: list[str], folder: Path) -> None:
        """`folder`: of the run; its log lies beside it."""
        self.folder, storage = folder, folder.parent
        storage.mkdir(parents=True, exist_ok=True)
        self._log = (storage / "log.txt").open("ab")
        self._first = self._log.tell()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"},  # not a cluster that runs here already
        )

    @property
    def log(self) -> str:
        """What this process has said."""
        return (self.folder.parent / "log.txt").read_bytes()[self._first :].decode(errors="replace")

    def step(self) -> int:
        """The number of the step that rank 0 did last; -1 before the first."""
        return last_step(self.folder)

    def wait_for(self, step: int) -> int:
        """Until rank 0 has done a step after this one; returns its number. Fails when the run ends before."""

        def reached() -> bool:
            assert self.process.poll() is None, f"the run ended before step {step}: {self.log[-2000:]}"
            return self.step() >= step

        until(reached, f"step {step}")
        return self.step()

    def find(self, part: str) -> list[int]:
        """Processes of a part of the run, "train worker" ... "driver"."""
        if part == "driver":
            return [self.process.pid]
        found = []
        for pid in sorted(descendants(self.process.pid)):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if any(word in line for word in PARTS[part]):
                found.append(pid)
        return found

    def kill(self, part: str, which: int = 0, how: int = signal.SIGKILL) -> None:
        """Kill one process of a part (all of the head's), as soon as there is one."""
        found = until(lambda: self.find(part), f"a {part}")
        for pid in found if part == "head" else [found[which % len(found)]]:
            os.kill(pid, how)

    def end(self) -> int:
        """Wait for the end, and for everything that the run started; returns the exit code."""
        below = descendants(self.process.pid)
        code = self.process.wait(PATIENCE_S)
        until(lambda: not any(alive(pid) for pid in below), "Ray's processes to end", LEFTOVERS_S)
        self._log.close()
        return code

    def destroy(self) -> None:
        """Kill the process and all below it, where it has not ended."""
        if self.process.poll() is not None:
            return
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(60)


def _records(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text().split("\n")[:-1] if file.exists() else []  # what follows the last line end is on its way
    return [json.loads(line) for line in lines]


def last_step(folder: Path) -> int:
    """The number of the step that rank 0 recorded last; -1 before the first."""
    records = _records(folder / "keys-0.jsonl")
    return int(records[-1]["step"]) if records else -1


def keys_of_steps(folder: Path) -> dict[int, Counter[str]]:
    """Step -> the specimens that its update was made from. Of a step that was done again, only its last time counts:
    everything after the commit that a restart goes back to is undone."""
    steps: dict[int, Counter[str]] = {}
    for file in sorted(folder.glob("keys-*.jsonl")):
        latest = {record["step"]: record["keys"] for record in _records(file)}
        for step, keys in latest.items():
            steps.setdefault(step, Counter()).update(keys)
    return steps


def keys_of_epochs(folder: Path, steps_per_epoch: int) -> dict[int, Counter[str]]:
    """Epoch -> how often it used each specimen, over the committed history."""
    epochs: dict[int, Counter[str]] = {}
    for step, keys in keys_of_steps(folder).items():
        epochs.setdefault(step // steps_per_epoch, Counter()).update(keys)
    return epochs


def weights_hash(folder: Path) -> str:
    """Of the exported weights, names and bytes."""
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()[:16]
