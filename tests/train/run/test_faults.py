"""A run whose parts are killed ends where an uninterrupted one ends: same weights, same specimens, one MLflow run.

tests/benchmarks/kill_runs.py does this many times, at random steps, with 1, 2 and 4 workers.
"""

import re
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.train.faults import Training, keys_of_epochs, weights_hash
from train.run import commits

pytestmark = pytest.mark.slow

EPOCHS, EPOCH = 12, 7  # and steps of one, of which 40 can be done in a second: the run must not end unasked
LAST = EPOCHS * EPOCH
SETTINGS = (f"run.epochs={EPOCHS}", "run.tracking=mlflow", "run.log_every=1")


def test_a_worker_is_killed_and_the_driver_asked_to_end(simulated_shards: Path, tmp_path: Path) -> None:
    """SIGKILL to a worker costs the steps after the last commit: the run goes on by itself. SIGTERM to the driver costs
    none: the same command with --resume goes on."""
    training = whole = Training(simulated_shards, tmp_path / "whole", *SETTINGS)
    try:
        assert whole.end() == 0, whole.log[-4000:]
        training = Training(simulated_shards, tmp_path / "killed", *SETTINGS)
        training.wait_for(11)
        training.kill("train worker")
        training.wait_for(18)
        training.kill("driver", how=signal.SIGTERM)
        assert training.end() == 128 + signal.SIGTERM, training.log[-4000:]
        restarts = [int(step) for step in re.findall(rf"resumed at step (\d+) of {LAST}", training.log)]
        assert len(restarts) == 1 and restarts[0] >= 10
        reached = commits.steps(training.folder)[-1]
        assert f"stopped at step {reached} of {LAST}; go on with --resume job" in training.log
        assert reached == training.step() + 1 > 18
        training = Training(simulated_shards, tmp_path / "killed", *SETTINGS, resume=True)
        assert training.end() == 0, training.log[-4000:]
    finally:
        for started in (whole, training):
            started.destroy()
    check(training.folder, whole.folder)


def check(folder: Path, whole: Path) -> None:
    assert weights_hash(folder) == weights_hash(whole)
    epochs = keys_of_epochs(folder, EPOCH)
    assert len(epochs) == EPOCHS and epochs == keys_of_epochs(whole, EPOCH)
    assert not list((folder / "checkpoints").glob("part-*"))
    client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("taxafuse").experiment_id])
    steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "loss/total")}
    assert steps >= set(range(1, LAST + 1))
