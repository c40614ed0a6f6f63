"""Every metric that the dashboard draws is one that a running training and the running service export."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.test_manifests import expressions
from train.run.gauges import GAUGES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def drawn() -> set[str]:
    return {name for text in expressions() for name in re.findall(r"\bray_\w+", text)}


def test_the_dashboard_draws_every_gauge_of_training() -> None:
    assert {f"ray_{name}" for name, _ in GAUGES.values()} <= drawn()


def test_the_dashboard_draws_what_is_exported(simulated_shards: Path, tmp_path: Path) -> None:
    wanted = drawn()
    done = subprocess.run(
        [sys.executable, ROOT / "tests/infra/exporting.py", simulated_shards, tmp_path, json.dumps(sorted(wanted))],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    exported = set(json.loads(done.stdout.splitlines()[-1]))
    assert wanted - exported == set()
