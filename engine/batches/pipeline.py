"""The Ray Data graph: planned rows in, prepared batches out, and the CPU and memory it may use.

    numbers of tasks -> Prepare (read, decode, augment, tokenise; one task = some hundred rows) -> batches in order

A train worker runs its own execution over its share of the plan. Order is kept, so the k-th batch is the plan's k-th
step, and every worker knows its number of steps before it starts. One execution spans several epochs, because
starting one costs about a second. Batches are put together in a thread of their own, a few ahead of their consumer;
whoever stops early closes the iterator, which ends that thread and the execution and lets go of its blocks.

Legend: N specimens, B batch of a worker, S image side, L tokens, R ranks.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.batches.prepare import Prepare, Specimens
from engine.batches.sampling import EpochPlan
from engine.batches.stream import Columns, ProblemLog, ahead, rebatched
from engine.config import DataConfig
from engine.errors import UserError
from engine.ray_seams import DATA_TASK, numbered_tasks, started_blocks, unhurried
from engine.specimens.taxonomy import RANKS, Taxonomy
from engine.store.shards import check_files, read_index
from engine.store.storage import Location

if TYPE_CHECKING:
    from engine.batches.collate import Batch

log = logging.getLogger(__name__)

FIRST_TASKS, MAX_TASKS = 64, 1024  # of the first execution, and of a later one: starting costs 1 ms for each task
OVERLAP = 48  # tasks of an execution that are still to come when the next one is started
MIN_TASK_CPU = 0.25  # a data task with less than a quarter of a core would starve the step
STORE_SHARE = 0.5  # of the object store goes to the data executions; the rest is Ray's and the user's
STORE_PER_CPU = 2**28  # bytes of blocks in flight for each CPU of an execution; more would only wait for their turn
BLOCKS_PER_CPU = 4  # that fit into this: one in the making, one done, two on their way


@dataclass(frozen=True)
class CpuBudget:
    """What one worker's data execution may use."""

    execution_cpus: float  # CPUs of the whole execution
    task_cpus: float  # CPUs asked for by one task
    object_store_bytes: float


def cpu_budget(cluster: Mapping[str, float], num_workers: int, worker_cpus: float) -> CpuBudget:
    """Share a cluster between train workers and the data tasks that feed them.

    Args:
        cluster: `ray.cluster_resources()`; CPU and object_store_memory are read.
        num_workers: train workers (0 or 1 = one execution).
        worker_cpus: CPUs that each of them reserves.

    Raises:
        ValueError: when less than one data task's CPU is left for a worker. Ray itself would wait without a message.
    """
    executions = max(1, num_workers)
    share = (cluster.get("CPU", 0.0) - num_workers * worker_cpus) / executions
    if share < MIN_TASK_CPU:
        raise ValueError(
            f"no CPU left for reading data: the cluster has {cluster.get('CPU', 0.0):g} CPUs, {num_workers} train "
            f"workers reserve {worker_cpus:g} each, so {share:.2f} CPU is left for each worker's data tasks; at least "
            f"{MIN_TASK_CPU:g} is needed - lower run.num_workers or add CPU nodes"
        )
    store = min(cluster.get("object_store_memory", 2e9) * STORE_SHARE / executions, max(2, share) * STORE_PER_CPU)
    tasks = max(1, round(share))  # at 1.99 CPUs two tasks of 0.995: of two tasks of one CPU each, one would wait
    return CpuBudget(execution_cpus=share, task_cpus=min(1.0, share / tasks), object_store_bytes=store)


def load_index(shards: Sequence[str | Path]) -> pa.Table:
    """Return the index of one or more shard folders, with the column `folder` added.

    Rows keep their stored order; several folders are merged by relative position, so that every window of a plan is a
    mixture of all of them. (One after another, each epoch would end on the last folder alone and forget the others.)

    Raises ValueError when none is named, and what `engine.store.shards.check_files` and `read_index` raise.
    """
    if not shards:
        raise UserError("data.shards", "nothing", "one or more folders written by `python -m engine.main ingest ...`")
    tables = []
    for folder in shards:
        check_files(folder)
        table = _without_duplicates(read_index(folder), folder)
        tables.append(table.append_column("folder", pa.repeat(str(Location.parse(folder)), len(table))))
    if len(tables) == 1:
        return tables[0]
    position = np.concatenate([(np.arange(len(table)) + 0.5) / max(1, len(table)) for table in tables])
    return pa.concat_tables(tables).take(np.argsort(position, kind="stable"))


def _without_duplicates(index: pa.Table, folder: str | Path) -> pa.Table:
    """Return the rows whose key did not occur before; the others are named and counted."""
    if pc.count_distinct(index["key"]).as_py() == len(index):
        return index
    codes = pc.dictionary_encode(index["key"].combine_chunks()).indices.to_numpy()
    kept = np.zeros(len(index), dtype=bool)
    kept[np.unique(codes, return_index=True)[1]] = True
    again = index["key"].filter(pa.array(~kept))
    some = ", ".join(again.slice(0, 20).to_pylist())
    log.warning("%s: %d rows of the index repeat a key and are left out: %s", folder, len(again), some)
    return index.filter(pa.array(kept))


def select_split(index: pa.Table, split: str) -> pa.Table:
    """Return the rows of one split. Raises ValueError naming the splits that there are."""
    rows = index.filter(pc.equal(index["split"], split))
    if not len(rows):
        there = sorted(s for s in pc.unique(index["split"]).to_pylist() if s)
        raise ValueError(f"no specimen of split {split!r} in these shards; splits there: {', '.join(there) or 'none'}")
    return rows


def label_columns(index: pa.Table) -> dict[str, list[str | None]]:
    """Return the label columns as lists, the form that `Taxonomy.build` and `Taxonomy.encode` take."""
    return {rank: index[rank].to_pylist() for rank in RANKS}


@dataclass(frozen=True)
class _Make:
    """Builds `Prepare` inside a task: small to pickle, unlike what it builds."""

    data: DataConfig
    seed: int
    training: bool

    def __call__(self, specimens: Specimens) -> Prepare:
        return Prepare(specimens, self.data, self.seed, training=self.training)

    def rows_per_task(self, specimens: Specimens, budget: CpuBudget, batch_size: int) -> int:
        """Return the rows as configured, but no more than fit into a task's share of the object store.

        Whole batches, which then need no copy, where one fits.
        """
        row = 2 * 3 * self.data.image_size**2 if bool((specimens.image_size > 0).any()) else 1
        share = budget.object_store_bytes / (BLOCKS_PER_CPU * max(1.0, budget.execution_cpus))
        rows = max(1, min(self.data.rows_per_task, int(share // row)))
        return rows - rows % batch_size if rows > batch_size else rows


@dataclass
class _Span:
    """The tasks of one execution: task i prepares rows[ends[i - 1] : ends[i]] for epochs[i]."""

    rows: list[np.ndarray] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return three flat arrays, which tasks map from the object store without unpickling a list of thousands."""
        return np.concatenate(self.rows), np.cumsum([len(rows) for rows in self.rows]), np.array(self.epochs)


def _spans(epochs: Iterable[tuple[int, np.ndarray]], rows_per_task: int) -> Iterator[_Span]:
    """Cut the rows of each epoch into tasks, and those into executions, as they are asked for."""
    span, most = _Span(), FIRST_TASKS
    for epoch, rows in epochs:
        for first in range(0, len(rows), rows_per_task):
            span.rows.append(rows[first : first + rows_per_task])
            span.epochs.append(epoch)
            if len(span.rows) == most:
                yield span
                span, most = _Span(), min(MAX_TASKS, 4 * most)
    if span.rows:
        yield span


_prepared: tuple[str, Prepare] | None = None  # of this worker process: what the latest run of tasks needs


def _run_task(task: dict[str, np.ndarray], shared: Any, span: Any, make: _Make) -> Columns:
    """Run one task in a Ray worker. `shared`, `span`: object references."""
    import ray

    global _prepared
    if _prepared is None or _prepared[0] != shared.hex():
        _prepared = (shared.hex(), make(ray.get(shared)))
    number = int(task["item"][0])
    rows, ends, epochs = ray.get(span)
    columns = _prepared[1](rows[ends[number - 1] if number else 0 : ends[number]], int(epochs[number]))
    return columns | {"task": np.full(len(columns["key"]), number)}


def _started(make: _Make, shared: Any, span: _Span, budget: CpuBudget) -> Iterator[Columns]:
    """Start one execution; return its blocks in order."""
    import ray
    from ray.data import ExecutionResources

    dataset = numbered_tasks(len(span.rows)).map_batches(
        _run_task,
        batch_size=1,
        fn_kwargs={"shared": shared, "span": ray.put(span.packed()), "make": make},
        num_cpus=budget.task_cpus,
        runtime_env=DATA_TASK,
    )
    options = dataset.context.execution_options
    options.preserve_order = True
    options.resource_limits = ExecutionResources(
        cpu=budget.execution_cpus, object_store_memory=budget.object_store_bytes
    )
    return started_blocks(dataset)


def _stream(
    make: _Make, specimens: Specimens, epochs: Iterable[tuple[int, np.ndarray]], batch_size: int, budget: CpuBudget
) -> Iterator[tuple[int, Columns]]:
    """Run the rows through Ray Data, `MAX_TASKS` tasks an execution, and yield them in order, a block at a time.

    The next execution starts while the last `OVERLAP` tasks of one are still to come: a start leaves cores idle for a
    second or two.
    """
    import ray

    shared = ray.put(specimens)
    spans = _spans(epochs, make.rows_per_task(specimens, budget, batch_size))
    with ThreadPoolExecutor(1) as starter:

        def start() -> tuple[_Span, Iterator[Columns]] | None:
            span = next(spans, None)
            return (span, _started(make, shared, span, budget)) if span else None

        coming: Future | None = starter.submit(start)
        while coming and (execution := coming.result()):
            coming = None
            span, blocks = execution
            latest = 0
            for columns in blocks:
                task = columns.pop("task")
                if not len(task):
                    continue
                assert latest <= task[0] <= task[-1] <= latest + 1, "blocks out of order"
                latest = int(task[-1])
                if coming is None and latest + OVERLAP >= len(span.rows):
                    coming = starter.submit(start)
                with unhurried():
                    yield span.epochs[latest], columns


def _inline(
    make: _Make, specimens: Specimens, epochs: Iterable[tuple[int, np.ndarray]], batch_size: int
) -> Iterator[tuple[int, Columns]]:
    """Prepare the rows in this process."""
    prepare = make(specimens)
    for epoch, rows in epochs:
        for first in range(0, len(rows), batch_size):
            yield epoch, prepare(rows[first : first + batch_size], epoch)


def _batches(
    make: _Make,
    specimens: Specimens,
    epochs: Iterable[tuple[int, np.ndarray]],
    batch_size: int,
    budget: CpuBudget | None,
) -> "Iterator[Batch]":
    from engine.batches.collate import collate  # torch: 4 s of CPU and 600 MB that a data task never uses

    problems = ProblemLog()
    if budget is None:
        blocks = _inline(make, specimens, epochs, batch_size)
    else:
        blocks = _stream(make, specimens, epochs, batch_size, budget)
    parts = rebatched(blocks, batch_size, problems)
    depth = make.data.prefetch_batches
    # Torch stays in the caller's thread: libgomp keeps a team for every thread that ever ran a parallel region, and
    # with more threads than cores its barriers sleep instead of spinning (a training step took 1.4 times as long).
    with contextlib.closing(ahead(parts, depth) if budget is not None and depth else parts) as ready:
        for columns in ready:
            yield collate(columns, pad_to=batch_size)


def training_batches(
    specimens: Specimens,
    plan: EpochPlan,
    data: DataConfig,
    steps: tuple[int, int],
    worker: tuple[int, int],
    budget: CpuBudget | None,
) -> "Iterator[Batch]":
    """Yield the batches of one worker for the global steps `steps[0] <= step < steps[1]`, across epochs.

    An epoch's order is made when its first task is; closing the iterator early leaves no thread, task or block behind.

    Args:
        specimens: the train split, rows as in `plan.labels`.
        plan: the order of every epoch.
        data: how specimens become batches.
        steps: the first, and the one after the last.
        worker: (rank, number of workers).
        budget: None prepares in this process, without Ray.

    Yields:
        One Batch [B] per step. What could not be used is named in its `problems` and logged: each specimen once a run,
        the counts per kind at the end of each epoch.
    """
    rank, world_size = worker

    def epochs() -> Iterator[tuple[int, np.ndarray]]:
        for epoch in range(steps[0] // plan.steps_per_epoch, -(-steps[1] // plan.steps_per_epoch)):
            low = max(0, steps[0] - epoch * plan.steps_per_epoch)
            high = min(plan.steps_per_epoch, steps[1] - epoch * plan.steps_per_epoch)
            yield epoch, plan.worker_order(epoch, rank, world_size)[low:high].reshape(-1)

    make = _Make(data, plan.seed, True)
    yield from _batches(make, specimens, epochs(), plan.global_batch_size // world_size, budget)


def evaluation_batches(
    index: pa.Table, taxonomy: Taxonomy, data: DataConfig, batch_size: int, budget: CpuBudget | None = None
) -> "Iterator[Batch]":
    """Yield every specimen of `index` (rows of `load_index`) exactly once, in stored order, clean and damaged.

    The last batch is padded with invalid rows. The damage is drawn from seed 0 and the specimen's key, whatever the
    run's own seed, so that all models meet the same inputs. `budget` None prepares in this process.
    """
    specimens = Specimens.from_index(index, taxonomy)
    yield from _batches(_Make(data, 0, False), specimens, [(0, np.arange(len(index)))], batch_size, budget)
