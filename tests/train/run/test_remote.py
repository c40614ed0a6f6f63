"""Shards on S3, trained from by Ray's workers: the same run as from a local copy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.formats.registry import open_dataset
from engine.ingest.job import IngestOptions, ingest

pytestmark = pytest.mark.slow

JOB = Path(__file__).parents[1] / "jobs.py"


def history(shards: str, storage: Path) -> list[dict[str, float]]:
    """Train the small run in a process of its own, which takes the credentials from the environment."""
    command = [sys.executable, str(JOB), shards, str(storage), "run.epochs=1", "run.validate_every=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["history"]


@pytest.mark.timeout(600)
def test_training_from_s3_equals_training_from_a_local_folder(s3: str, simulated_shards: Path, tmp_path: Path) -> None:
    source = open_dataset("simulated", [], seed=0, num_specimens=320, num_species=16)
    ingest(source, s3, IngestOptions(specimens_per_shard=100, parallel=False))
    (remote,), (local,) = history(s3, tmp_path / "s3"), history(str(simulated_shards), tmp_path / "local")
    same = [key for key in local if key.startswith(("loss/", "val/"))]
    assert "loss/total" in same and any(key.endswith("/species/top1") for key in same)
    assert {key: remote[key] for key in same} == {key: local[key] for key in same}
