"""From shards to batches: the same with and without Ray, in any batch, with damaged members named and masked."""

import contextlib
import dataclasses
import gc
import itertools
import logging
import shutil
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from engine.batches import pipeline
from engine.batches.collate import Batch
from engine.batches.pipeline import (
    CpuBudget,
    Prepare,
    Specimens,
    cpu_budget,
    evaluation_batches,
    label_columns,
    load_index,
    select_split,
    training_batches,
)
from engine.batches.sampling import EpochPlan
from engine.batches.stream import ahead
from engine.config import DataConfig
from engine.ray_seams import ExecutorRest, unhurried
from engine.specimens.taxonomy import Taxonomy

BUDGET = CpuBudget(execution_cpus=2.0, task_cpus=1.0, object_store_bytes=1e8)


@pytest.fixture(scope="module")
def data(simulated_shards: Path) -> DataConfig:
    return DataConfig(shards=(str(simulated_shards),), image_size=32, rows_per_task=64)


def opened(data: DataConfig) -> tuple[Specimens, EpochPlan, Taxonomy]:
    train = select_split(load_index(data.shards), "train")
    taxonomy = Taxonomy.build(label_columns(train))
    specimens = Specimens.from_index(train, taxonomy)
    plan = EpochPlan(labels=specimens.labels, seed=3, global_batch_size=32, window=128)
    return specimens, plan, taxonomy


def same(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]  # type: ignore[literal-required]
        for key in a
    ) and set(a) == set(b)


def test_ray_gives_the_planned_batches_in_order(data: DataConfig, ray_session: None) -> None:
    specimens, plan, _ = opened(data)
    steps = (plan.steps_per_epoch - 3, plan.steps_per_epoch + 4)  # across an epoch's end
    here = list(training_batches(specimens, plan, data, steps, (0, 1), None))
    through_ray = list(training_batches(specimens, plan, data, steps, (0, 1), BUDGET))
    assert len(here) == len(through_ray) == 7
    assert all(same(a, b) for a, b in zip(here, through_ray, strict=True))


@pytest.mark.parametrize("workers", [2, 4])
def test_the_global_batch_does_not_depend_on_the_workers(data: DataConfig, workers: int) -> None:
    specimens, plan, _ = opened(data)
    (whole,) = training_batches(specimens, plan, data, (5, 6), (0, 1), None)
    parts = [next(training_batches(specimens, plan, data, (5, 6), (r, workers), None)) for r in range(workers)]
    assert [key for part in parts for key in part["keys"]] == whole["keys"]
    for name in ("image", "image_view2", "dna_tokens", "labels", "caption"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


def test_a_later_start_continues_the_same_stream(data: DataConfig) -> None:
    specimens, plan, _ = opened(data)
    whole = list(training_batches(specimens, plan, data, (0, 6), (0, 1), None))
    rest = list(training_batches(specimens, plan, data, (4, 6), (0, 1), None))
    assert all(same(a, b) for a, b in zip(whole[4:], rest, strict=True))


def test_views_differ_and_change_with_the_epoch(data: DataConfig) -> None:
    specimens, plan, _ = opened(data)
    prepare = Prepare(specimens, data, plan.seed, training=True)
    rows = np.flatnonzero(specimens.image_size > 0)[:4]
    first, again, later = prepare(rows, 0), prepare(rows[::-1].copy(), 0), prepare(rows, 1)
    assert first["image"].dtype == np.uint8
    assert first["image"].shape == (4, 32, 32, 3)
    assert not np.array_equal(first["image"], first["image_view2"])
    assert not np.array_equal(first["image"], later["image"])
    assert np.array_equal(first["image"], again["image"][::-1])


def test_evaluation_visits_everyone_once_and_pads(data: DataConfig) -> None:
    index = select_split(load_index(data.shards), "test")
    _, _, taxonomy = opened(data)
    batches = list(evaluation_batches(index, taxonomy, data, 50))
    assert {len(batch["keys"]) for batch in batches} == {50}
    keys = [key for batch in batches for key, ok in zip(batch["keys"], batch["valid"], strict=True) if ok]
    assert keys == index["key"].to_pylist()
    last = batches[-1]
    assert not last["valid"][len(index) % 50 or 50 :].any()
    assert (last["labels"][~last["valid"]] == -1).all()
    assert (last["dna_mask"] == (last["dna_tokens"] != 0)).all()
    assert not torch.equal(last["image"], last["image_noisy"])
    assert not torch.equal(last["dna_tokens"], last["dna_tokens_noisy"])


def test_damaged_members_are_named_and_masked(
    data: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken photo costs the photo, a broken barcode too costs the row; the batch keeps its shape."""
    shutil.copytree(data.shards[0], tmp_path / "shards")
    data = dataclasses.replace(data, shards=(str(tmp_path / "shards"),))
    index = select_split(load_index(data.shards), "test")
    whole = index.filter(pc.and_(pc.greater(index["image_size"], 0), pc.greater(index["dna_size"], 0)))
    for row, members in ((whole.slice(0, 1), ("image",)), (whole.slice(1, 1), ("image", "dna"))):
        row = row.to_pylist()[0]
        with open(Path(row["folder"]) / row["shard"], "r+b") as file:
            for member in members:
                file.seek(row[f"{member}_offset"])
                file.write(b"!" * row[f"{member}_size"])
    _, _, taxonomy = opened(data)
    with caplog.at_level(logging.WARNING):
        batches = list(evaluation_batches(whole, taxonomy, data, 16))
    assert batches[0]["has_image"][:3].tolist() == [False, False, True]
    assert batches[0]["has_dna"][:3].tolist() == [True, False, True]
    assert batches[0]["valid"][:3].tolist() == [True, False, True]
    for key in whole["key"].to_pylist()[:2]:
        assert key in caplog.text


def test_specimens_without_photos_send_no_pixels(data: DataConfig) -> None:
    index = load_index(data.shards)
    rows = index.filter(pc.equal(index["image_size"], 0))
    _, _, taxonomy = opened(data)
    (batch, *_) = evaluation_batches(rows, taxonomy, data, 4)
    assert batch["image"].numel() == 0
    assert not batch["has_image"].any()


def test_cpu_budget_shares_what_is_left() -> None:
    cluster = {"CPU": 2.0, "object_store_memory": 8e8}
    one, four = cpu_budget(cluster, 1, 0.01), cpu_budget(cluster, 4, 0.01)
    assert one.execution_cpus == pytest.approx(1.99)
    assert int(one.execution_cpus / one.task_cpus + 1e-9) == 2  # both cores work
    assert cpu_budget({"CPU": 3.4}, 0, 0.01).task_cpus == 1.0
    assert four.execution_cpus == four.task_cpus == pytest.approx(0.49)
    assert 4 * four.object_store_bytes == one.object_store_bytes


def test_cpu_budget_refuses_a_silent_deadlock() -> None:
    with pytest.raises(ValueError, match=r"cluster has 2 CPUs, 2 train workers reserve 1 each, so 0.00 CPU"):
        cpu_budget({"CPU": 2.0}, 2, 1.0)


@pytest.mark.parametrize(
    ("shards", "message"), [((), "data.shards: got nothing"), (("/nowhere",), "/nowhere")], ids=["none", "missing"]
)
def test_missing_shards(shards: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_index(shards)


def test_unknown_split_names_those_there(data: DataConfig) -> None:
    with pytest.raises(ValueError, match=r"no specimen of split 'pretrain' .*: test, train, val"):
        select_split(load_index(data.shards), "pretrain")


def test_several_folders_are_mixed_in_every_window(data: DataConfig, tmp_path: Path) -> None:
    """The small folder's specimens stand all along the index, each folder's own order kept."""
    from engine.formats.registry import open_dataset
    from engine.ingest.job import IngestOptions, ingest

    source = open_dataset("simulated", [], seed=1, num_specimens=160, num_species=8)
    ingest(source, tmp_path / "small", IngestOptions(parallel=False))
    both = load_index([*data.shards, tmp_path / "small"])
    small = np.flatnonzero(pc.ends_with(both["folder"], "/small").to_numpy())
    assert len(small) == len(load_index([tmp_path / "small"])) > 100
    assert np.diff(small).max() <= len(both) // len(small) + 1
    for folder in (data.shards[0], tmp_path / "small"):
        alone = load_index([folder])
        assert both.filter(pc.equal(both["folder"], str(folder)))["key"].equals(alone["key"])


def store_bytes() -> int:
    """Bytes in use of this node's object store."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address))
    return int(reply.store_stats.object_store_bytes_used)


def settled(most: int, threads: int) -> tuple[int, int]:
    """Bytes and threads, once they are down to these or after 20 s."""
    for _ in range(100):
        gc.collect()
        if store_bytes() <= most and threading.active_count() <= threads:
            break
        time.sleep(0.2)
    return store_bytes(), threading.active_count()


@pytest.mark.parametrize("how", ["close", "forgotten", "error"])
def test_a_consumer_that_stops_early_leaves_no_thread_and_no_block(
    how: str, data: DataConfig, ray_session: None
) -> None:
    """Blocks are 13 MB each; a leak of one of them, or of a prefetching thread, would show four times over."""
    data = dataclasses.replace(data, image_size=184, rows_per_task=64)
    specimens, plan, _ = opened(data)

    def stream(last: int) -> Iterator[Batch]:
        return training_batches(specimens, plan, data, (0, last), (0, 1), BUDGET)

    assert len(list(stream(2))) == 2  # whatever Ray keeps after a first run that went to its end
    gc.collect()
    time.sleep(1)
    before, threads = store_bytes(), threading.active_count()
    for _ in range(4):
        batches = stream(400)
        first = next(batches)
        assert first["image"].shape == (32, 184, 184, 3) and len(next(batches)["keys"]) == 32
        if how == "close":
            batches.close()  # type: ignore[attr-defined]
        elif how == "error":
            with pytest.raises(ZeroDivisionError):
                for batch in batches:
                    _ = len(batch["keys"]) / 0
            del batch  # its photos are views of a block
        del batches, first
    left, alive = settled(before + 2**20, threads)
    assert left <= before + 2**20
    assert alive < threads + 4  # Ray may start one of its own meanwhile; four leaks would be four


def test_working_ahead_keeps_order_errors_and_the_limit() -> None:
    made: list[int] = []

    def source(last: int) -> Iterator[int]:
        try:
            for i in range(last):
                made.append(i)
                yield i
            raise KeyError("the end")
        finally:
            made.append(-1)

    items = ahead(source(5), 2)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError, match="the end"):
        next(items)
    made.clear()
    items = ahead(source(100), 2)
    assert next(items) == 0
    time.sleep(0.3)
    assert max(made) <= 4  # one taken, two waiting, one in hand
    items.close()
    assert made[-1] == -1
    assert not any(thread.name == "batches ahead" for thread in threading.enumerate())


def test_the_order_of_an_epoch_is_made_when_it_is_reached(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    specimens, plan, _ = opened(data)
    asked: list[int] = []
    original = EpochPlan.worker_order

    def recorded(self: EpochPlan, epoch: int, rank: int, world_size: int) -> np.ndarray:
        asked.append(epoch)
        return original(self, epoch, rank, world_size)

    monkeypatch.setattr(EpochPlan, "worker_order", recorded)
    batches = training_batches(specimens, plan, data, (0, 10**9), (0, 1), None)
    for _ in range(plan.steps_per_epoch):
        next(batches)
    assert asked == [0]
    next(batches)
    assert asked == [0, 1]


@pytest.mark.parametrize("stop", [None, 5, 9])
def test_executions_that_follow_each_other_keep_order(
    stop: int | None, data: DataConfig, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next execution starts while one still runs (`OVERLAP`): nothing is lost, doubled, or left behind."""
    monkeypatch.setattr(pipeline, "FIRST_TASKS", 4)
    monkeypatch.setattr(pipeline, "MAX_TASKS", 4)
    monkeypatch.setattr(pipeline, "OVERLAP", 3)
    data = dataclasses.replace(data, rows_per_task=16)
    specimens, plan, _ = opened(data)
    threads = threading.active_count()
    batches = training_batches(specimens, plan, data, (0, 12), (0, 1), BUDGET)
    keys = [batch["keys"] for batch in itertools.islice(batches, stop)]
    batches.close()  # type: ignore[attr-defined]
    wanted = [batch["keys"] for batch in training_batches(specimens, plan, data, (0, stop or 12), (0, 1), None)]
    assert keys == wanted
    assert settled(2**40, threads)[1] <= threads


@pytest.mark.parametrize(("running", "hurried", "rests"), [(0, False, True), (1, False, False), (0, True, False)])
def test_the_executor_rests_only_while_nobody_waits_and_nothing_runs(
    running: int, hurried: bool, rests: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a rest it turns a thousand times a second, in the interpreter of the training step."""
    waits: list[float] = []
    monkeypatch.setattr(ExecutorRest.wanted, "wait", waits.append)
    operator = types.SimpleNamespace(num_active_tasks=lambda: running)
    with contextlib.nullcontext() if hurried else unhurried():
        ExecutorRest().on_execution_step(types.SimpleNamespace(_topology=[operator]))
    assert bool(waits) == rests and ExecutorRest.wanted.is_set()


@pytest.mark.slow
def test_ray_asks_for_the_rest_while_a_consumer_is_away(
    data: DataConfig, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`engine.ray_seams.ExecutorRest` reads what Ray calls private; under other names it would never rest, or raise."""
    seen: list[float] = []
    monkeypatch.setattr(ExecutorRest.wanted, "wait", seen.append)
    data = dataclasses.replace(data, rows_per_task=16, prefetch_batches=1)
    specimens, plan, _ = opened(data)
    little = dataclasses.replace(BUDGET, object_store_bytes=1.0)
    batches = training_batches(specimens, plan, data, (0, 12), (0, 1), little)
    next(batches)
    for _ in range(600):  # until what there is room for is made
        if seen:
            break
        time.sleep(0.1)
    assert seen
    assert len(list(batches)) == 11
