"""Where Tune, Train and Data waited for ever, and where a cluster shrinks: real runs, each on a Ray of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 400  # a machine may be busy with other things; what is looked for never ends at all


def job(name: str, shards: Path, storage: Path) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tune" / "jobs.py"), name, str(shards), str(storage)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_distributed_trials_on_two_cpus_without_a_dashboard(simulated_shards: Path, tmp_path: Path) -> None:
    """Two workers and their data tasks on two CPUs (coordinators of a CPU each, or one trial too many, would wait for
    ever); a trial stopped by ASHA with the dashboard off (a placement group that stays would block the next)."""
    found, _ = job("distributed", simulated_shards, tmp_path)
    assert found["slots"] == "1 distributed trial at a time"
    assert found["states"] == ["finished", "stopped"]
    assert found["epochs"] == [[2, 4, 6], [2]]
    assert found["groups"] == []
    assert 0 < found["test"] <= 1 and found["model"]


def test_a_cluster_that_shrinks(simulated_shards: Path, tmp_path: Path) -> None:
    found, log = job("shrink", simulated_shards, tmp_path)
    assert found["slots"] == "2 single-process trials at a time"
    assert found["nodes"] == 1
    assert found["states"] == ["finished"] * 2
    assert found["epochs"] == [[10, 20, 30, 40, 50, 60]] * 2
    assert "broke off (its process died); it goes on from its last checkpoint" in log
