"""What workers put together, and what the driver makes of their failures; without Ray's processes."""

import json
from pathlib import Path

import pytest

from engine.batches.pipeline import load_index
from tests.train.ranks import run_ranks
from tests.train.small import small_config, small_session
from train import dist
from train.run import trainer, worker

pytestmark = pytest.mark.middle


def test_accuracies_of_shares_are_those_of_the_whole() -> None:
    parts = [
        {"val/dna/clean/species/top1": 2 / 3, "val/dna/clean/species/rows": 3.0},
        {},  # a worker without a specimen
        {
            "val/dna/clean/species/top1": 1.0,
            "val/dna/clean/species/rows": 1.0,
            "val/image/clean/order/top1": 0.5,
            "val/image/clean/order/rows": 2.0,
        },
    ]
    assert worker.pooled(parts) == {
        "val/dna/clean/species/top1": pytest.approx(3 / 4),
        "val/dna/clean/species/rows": 4.0,
        "val/image/clean/order/top1": 0.5,
        "val/image/clean/order/rows": 2.0,
    }
    assert worker.pooled([{}]) == {}


def _validated(shards: Path) -> dict[str, float]:
    session = small_session(small_config(shards))
    index = load_index(session.config.data.shards)
    return worker.validate(session, index) | {"rank": float(dist.rank())}


def test_three_workers_validate_every_specimen_once(simulated_shards: Path, tmp_path: Path) -> None:
    alone = _validated(simulated_shards)
    assert alone["val/dna/clean/species/rows"] > 20
    for rank, found in enumerate(run_ranks(_validated, 3, tmp_path, simulated_shards)):
        assert found == pytest.approx(alone | {"rank": float(rank)})


def test_keys_are_appended(tmp_path: Path) -> None:
    for step in (4, 5, 5):
        worker.record_keys(tmp_path, 1, step, ["a", "", "b"])
    records = [json.loads(line) for line in (tmp_path / "keys-1.jsonl").read_text().splitlines()]
    assert records == [{"step": step, "keys": ["a", "b"]} for step in (4, 5, 5)]


def test_only_what_can_go_better_is_tried_again() -> None:
    import ray.train

    def failed(*failures: Exception) -> ray.train.WorkerGroupError:
        return ray.train.WorkerGroupError("failed", dict(enumerate(failures)))

    bad = FloatingPointError("loss is nan at step 3 (rank 1)")
    beside = FloatingPointError("loss is 2.5 at step 3 (rank 0)")
    assert trainer._not_worth_a_retry(failed(beside, bad)) is bad
    mistake = ValueError("cannot resume")
    assert trainer._not_worth_a_retry(failed(RuntimeError("reset by peer"), mistake)) is mistake
    assert trainer._not_worth_a_retry(failed(RuntimeError("reset by peer"))) is None
    assert trainer._not_worth_a_retry(ray.exceptions.RayActorError()) is None
    assert trainer._cause(failed(RuntimeError("two\nlines"))) == "worker 0: RuntimeError: two lines"
