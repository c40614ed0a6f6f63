"""Going on from any step, with any number of workers: the same specimens, pixels and tokens as without a stop."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batches.collate import Batch
from engine.batches.pipeline import CpuBudget, Specimens, label_columns, load_index, select_split, training_batches
from engine.batches.sampling import EpochPlan
from engine.config import DataConfig
from engine.specimens.taxonomy import Taxonomy

BUDGET = CpuBudget(execution_cpus=2.0, task_cpus=1.0, object_store_bytes=1e8)
STEPS = 15  # two epochs of 7 steps and the first of a third


@pytest.fixture(scope="module")
def data(simulated_shards: object) -> DataConfig:
    return DataConfig(
        shards=(str(simulated_shards),),
        image_size=32,
        rows_per_task=64,
        kmer_stride=6,
        random_offset=True,
        caption_cut=0.5,
        window=64,
    )


@pytest.fixture(scope="module")
def specimens(data: DataConfig) -> Specimens:
    train = select_split(load_index(data.shards), "train")
    return Specimens.from_index(train, Taxonomy.build(label_columns(train)))


def new_plan(specimens: Specimens, data: DataConfig) -> EpochPlan:
    """A fresh one, as after a restart: nothing of an earlier epoch is remembered."""
    return EpochPlan(labels=specimens.labels, seed=3, global_batch_size=32, window=data.window)


def stream(
    specimens: Specimens, data: DataConfig, steps: tuple[int, int], workers: int, budget: CpuBudget | None = None
) -> list[dict[str, np.ndarray]]:
    """Global batches of some steps: the workers' shares one after another."""
    plan = new_plan(specimens, data)
    shares = [list(training_batches(specimens, plan, data, steps, (rank, workers), budget)) for rank in range(workers)]
    return [joined(list(parts)) for parts in zip(*shares, strict=True)]


def joined(parts: list[Batch]) -> dict[str, np.ndarray]:
    """One global batch from the shares of all workers."""
    whole = {"keys": np.array([key for part in parts for key in part["keys"]])}
    for name, value in parts[0].items():
        if isinstance(value, torch.Tensor):
            whole[name] = np.concatenate([part[name] for part in parts])  # type: ignore[literal-required]
    return whole


def assert_same(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert np.array_equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def uninterrupted(specimens: Specimens, data: DataConfig) -> list[dict[str, np.ndarray]]:
    whole = stream(specimens, data, (0, STEPS), 1)
    assert new_plan(specimens, data).steps_per_epoch == 7
    assert {"keys", "image", "image_view2", "dna_tokens", "labels", "caption"} <= whole[0].keys()
    assert not np.array_equal(whole[0]["image"], whole[0]["image_view2"])
    return whole


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.parametrize("step", [1, 5, 7, 10, 14])
@pytest.mark.middle
def test_any_step_any_number_of_workers(
    specimens: Specimens, data: DataConfig, uninterrupted: list[dict[str, np.ndarray]], step: int, workers: int
) -> None:
    """In the middle of an epoch, at its end, across it; from one worker to several."""
    assert_same(stream(specimens, data, (step, STEPS), workers), uninterrupted[step:])


@pytest.mark.parametrize(("step", "workers"), [(5, 2), (12, 4)])
def test_through_ray_data(
    specimens: Specimens,
    data: DataConfig,
    uninterrupted: list[dict[str, np.ndarray]],
    ray_session: None,
    step: int,
    workers: int,
) -> None:
    last = step + 3
    assert_same(stream(specimens, data, (step, last), workers, BUDGET), uninterrupted[step:last])


def test_several_stops_with_other_workers_each_time(
    specimens: Specimens, data: DataConfig, uninterrupted: list[dict[str, np.ndarray]]
) -> None:
    """1 -> 2 -> 4 -> 1 workers, stopped in the middle of the first, the second and the third epoch."""
    legs = [((0, 4), 1), ((4, 9), 2), ((9, 13), 4), ((13, STEPS), 1)]
    assert_same([batch for steps, workers in legs for batch in stream(specimens, data, steps, workers)], uninterrupted)


def test_the_size_of_tasks_changes_nothing(
    specimens: Specimens, data: DataConfig, uninterrupted: list[dict[str, np.ndarray]]
) -> None:
    other = dataclasses.replace(data, rows_per_task=7)
    assert_same(stream(specimens, other, (6, 9), 2), uninterrupted[6:9])


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(64, 900),
    seed=st.integers(0, 50),
    window=st.integers(1, 400),
    partners=st.booleans(),
    stops=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    workers=st.sampled_from([1, 2, 4, 8]),
)
def test_rows_after_any_stop(
    count: int, seed: int, window: int, partners: bool, stops: list[int], workers: int
) -> None:
    """The plan alone, over any sizes: rows of the steps from a stop on, whoever asks, are those of one pass."""
    labels = np.random.default_rng(seed).integers(-1, 5, (count, 4))

    def rows(step: int, ranks: int) -> np.ndarray:
        plan = EpochPlan(labels=labels, seed=seed, global_batch_size=64, window=window, partners=partners)
        epoch, within = divmod(step, plan.steps_per_epoch)
        return np.concatenate([plan.worker_order(epoch, rank, ranks)[within] for rank in range(ranks)])

    for stop in stops:
        assert np.array_equal(rows(stop, workers), rows(stop, 1))
