"""All drills as one test, for the record: `pytest -m drills`. What they state: tests/drills/drills.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.drills
@pytest.mark.timeout(3000)
def test_every_drill_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.drills", "--out", tmp_path / "drills"]
    done = subprocess.run(command, cwd=ROOT, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    rows = [json.loads(line) for line in (tmp_path / "drills" / "rows.jsonl").read_text().splitlines()]
    assert done.returncode == 0, [row for row in rows if not row["held"]]
