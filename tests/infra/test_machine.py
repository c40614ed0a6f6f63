"""The doctor on the machine's own traps: each is named with what to do, and nothing is started."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import machine
from train.run import ray_seams

Patch = pytest.MonkeyPatch
TRAPS: dict[str, tuple[Callable[[Patch, Path], None], str]] = {
    "temporary folder": (lambda patch, _: patch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 85), "has 90 letters"),
    "home": (lambda patch, _: patch.setenv("HOME", "/proc"), "HOME=/proc cannot be written"),
    "CPUs": (lambda patch, _: patch.setattr(ray_seams, "counted_cpus", lambda: 0.0), "less than one"),
    "other Rays": (
        lambda patch, _: patch.setattr(ray_seams, "owner_of_noted_cluster", lambda: os.getuid() + 1),
        "is noted on this machine",
    ),
    "git": (lambda patch, _: patch.setenv("PATH", ""), "without the commit"),
    "names": (lambda patch, folder: patch.chdir(folder), "has train, which `python -m` would run"),
    "environment": (lambda patch, _: patch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///else.db"), "is set and not used"),
}


@pytest.mark.parametrize("name", TRAPS)
def test_each_trap_is_named(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.setattr(machine, "ROOT", tmp_path / "checkout")
    (tmp_path / "checkout" / ".git").mkdir(parents=True)
    for variable in machine.NOT_USED:  # MLflow leaves some of them set in a process that has used it
        monkeypatch.delenv(variable, raising=False)
    lay, text = TRAPS[name]
    lay(monkeypatch, tmp_path)
    started = time.monotonic()
    (one,) = [finding for finding in machine.found() if finding.check == name]
    assert one.status != "ok" and text in one.what and one.fix
    assert time.monotonic() - started < 5


def test_a_plain_machine_has_none_of_them(monkeypatch: Patch, tmp_path: Path) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", *machine.NOT_USED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray_seams, "owner_of_noted_cluster", lambda: None)
    assert {one.status for one in machine.found()} == {"ok"}
