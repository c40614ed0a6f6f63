"""A run whose parts are killed ends where an uninterrupted one ends: same weights, same specimens, one MLflow run.

tests/benchmarks/kill_runs.py does this many times, at random steps, with 1, 2 and 4 workers.
"""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.train.faults import Training, keys_of_epochs, weights_hash
from train import commits

SETTINGS = ("run.epochs=8", "run.tracking=mlflow", "run.log_every=1")
EPOCH, LAST = 7, 56  # steps of one, and of all


@pytest.fixture
def trainings() -> Iterator[list[Training]]:
    """Those that a test starts: what is left of them is killed."""
    started: list[Training] = []
    yield started
    for training in started:
        training.destroy()


@pytest.fixture(scope="module")
def whole(simulated_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    training = Training(simulated_shards, tmp_path_factory.mktemp("whole"), *SETTINGS)
    assert training.end() == 0, training.log[-4000:]
    return training.folder


def check(folder: Path, whole: Path) -> None:
    assert weights_hash(folder) == weights_hash(whole)
    epochs = keys_of_epochs(folder, EPOCH)
    assert len(epochs) == 8 and epochs == keys_of_epochs(whole, EPOCH)
    assert not list((folder / "checkpoints").glob("part-*"))
    kept = commits.steps(folder)
    assert kept[-2:] == [LAST - EPOCH, LAST] or kept[-2:] == [50, LAST]
    client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("taxafuse").experiment_id])
    steps = {metric.step for metric in client.get_metric_history(run.info.run_id, "loss/total")}
    assert steps >= set(range(1, LAST + 1))


def test_a_worker_that_is_killed_or_asked_to_end(
    simulated_shards: Path, whole: Path, tmp_path: Path, trainings: list[Training]
) -> None:
    """SIGKILL costs the steps after the last commit, SIGTERM none; the run goes on by itself both times."""
    training = Training(simulated_shards, tmp_path, *SETTINGS)
    trainings.append(training)
    training.wait_for(12)
    training.kill("train worker")
    training.wait_for(30)
    training.kill("train worker", how=signal.SIGTERM)
    assert training.end() == 0, training.log[-4000:]
    resumed = [int(step) for step in re.findall(r"resumed at step (\d+) of 56", training.log)]
    (asked,) = re.findall(r"Preempted: a train worker was asked to end \(SIGTERM\) at step (\d+)", training.log)
    assert resumed[0] >= 10 and resumed[1] == int(asked) > 30
    check(training.folder, whole)


def test_a_driver_that_is_killed_or_asked_to_end(
    simulated_shards: Path, whole: Path, tmp_path: Path, trainings: list[Training]
) -> None:
    """The same command with --resume goes on; SIGTERM commits the step at hand before the process ends."""
    for step, how, code in ((12, signal.SIGKILL, -signal.SIGKILL), (30, signal.SIGTERM, 128 + signal.SIGTERM)):
        training = Training(simulated_shards, tmp_path, *SETTINGS, resume=bool(trainings))
        trainings.append(training)
        training.wait_for(step)
        training.kill("driver", how=how)
        assert training.end() == code, training.log[-4000:]
    reached = commits.steps(training.folder)[-1]
    assert f"stopped at step {reached} of 56; go on with --resume job" in training.log
    assert reached == training.step() + 1 > 30
    trainings.append(Training(simulated_shards, tmp_path, *SETTINGS, resume=True))
    assert trainings[-1].end() == 0, trainings[-1].log[-4000:]
    assert f"resumed at step {reached} of 56" in trainings[-1].log
    check(training.folder, whole)
