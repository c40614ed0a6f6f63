"""The Ray Data graph: planned rows in, prepared batches out, and the CPU and memory it may use.

    range(tasks) -> Prepare (read, decode, augment, tokenise; one task = a few steps of one worker) -> batches in order

A train worker runs its own execution over its share of the plan. Order is kept, so the k-th batch is the plan's k-th
step, and every worker knows its number of steps before it starts. One execution spans several epochs, because
starting one costs about a second; nothing is ever left half-consumed, because an abandoned iterator leaks its
prefetcher and the blocks that it pins.

Legend: N specimens, B batch of a worker, S image side, L tokens, R ranks.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine import barcodes, captions, degrade, images
from engine.collate import Batch, collate
from engine.config import DataConfig
from engine.sampling import Plan
from engine.schema import rng_for
from engine.shards import ShardReader, check_files, read_index
from engine.taxonomy import RANKS, Taxonomy

log = logging.getLogger(__name__)

MAX_TASKS = 2000  # of one execution; beyond that the bookkeeping of finished tasks begins to cost
MIN_TASK_CPU = 0.25  # a data task with less than a quarter of a core would starve the step
STORE_SHARE = 0.5  # of the object store goes to the data executions; the rest is Ray's and the user's


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
    store = cluster.get("object_store_memory", 2e9) * STORE_SHARE / executions
    return CpuBudget(execution_cpus=share, task_cpus=min(1.0, share), object_store_bytes=store)


def load_index(shards: Sequence[str | Path]) -> pa.Table:
    """The index of one or more shard folders, with the column `folder` added.

    Rows keep their stored order; several folders are merged by relative position, so that every window of a plan is a
    mixture of all of them. (One after another, each epoch would end on the last folder alone and forget the others.)

    Raises ValueError when none is named, and what `engine.shards.check_files` and `read_index` raise.
    """
    if not shards:
        raise ValueError("data.shards is empty: name one or more folders written by `python -m engine.main ingest ...`")
    tables = []
    for folder in shards:
        check_files(folder)
        table = read_index(Path(folder))
        tables.append(table.append_column("folder", pa.array([str(Path(folder).resolve())] * len(table))))
    position = np.concatenate([(np.arange(len(table)) + 0.5) / max(1, len(table)) for table in tables])
    return pa.concat_tables(tables).take(np.argsort(position, kind="stable"))


def select_split(index: pa.Table, split: str) -> pa.Table:
    """Rows of one split. Raises ValueError naming the splits that there are."""
    rows = index.filter(pc.equal(index["split"], split))
    if not len(rows):
        there = sorted(s for s in pc.unique(index["split"]).to_pylist() if s)
        raise ValueError(f"no specimen of split {split!r} in these shards; splits there: {', '.join(there) or 'none'}")
    return rows


def label_columns(index: pa.Table) -> dict[str, list[str | None]]:
    """The label columns as lists, the form that `Taxonomy.build` and `Taxonomy.encode` take."""
    return {rank: index[rank].to_pylist() for rank in RANKS}


@dataclass(frozen=True)
class Specimens:
    """What a data task must know of N specimens: plain arrays, shared with every task through the object store."""

    key: np.ndarray  # bytes [N]
    path: tuple[str, ...]  # shard files
    shard: np.ndarray  # int32 [N], into `path`
    image_offset: np.ndarray  # int64 [N]
    image_size: np.ndarray  # int64 [N], 0 = no image
    dna_offset: np.ndarray
    dna_size: np.ndarray
    labels: np.ndarray  # int64 [N, R]
    bin: np.ndarray  # int64 [N], -1 = unknown

    @classmethod
    def from_index(cls, index: pa.Table, taxonomy: Taxonomy) -> "Specimens":
        """Columns of `load_index` -> arrays."""
        path = pc.binary_join_element_wise(index["folder"], index["shard"], "/").combine_chunks()
        encoded = pc.dictionary_encode(path)
        bins = pc.fill_null(pc.dictionary_encode(index["bin_uri"].combine_chunks()).indices, -1)
        number = {name: index[name].to_numpy() for name in ("image_offset", "image_size", "dna_offset", "dna_size")}
        return cls(
            key=np.array([key.encode() for key in index["key"].to_pylist()]),
            path=tuple(encoded.dictionary.to_pylist()),
            shard=encoded.indices.to_numpy(),
            labels=taxonomy.encode(label_columns(index)),
            bin=bins.to_numpy().astype(np.int64),
            **number,
        )


class Prepare:
    """Rows of `Specimens` -> model inputs as numpy columns. Built once per task; needs no Ray.

    Every random choice is drawn from (seed, epoch, specimen key), so the same specimen gets the same augmentation and
    the same damage at any worker count and in any batch. A member that cannot be read is left out and named in the
    column `problem`; a specimen with nothing left is an invalid row, so shapes and steps never change.
    """

    def __init__(self, specimens: Specimens, data: DataConfig, seed: int, *, training: bool) -> None:
        self.specimens, self.data, self.seed, self.training = specimens, data, seed, training
        images.single_thread()  # the tasks of a node share its cores already
        self.tokenizer = barcodes.make_tokenizer(data)
        self.reader = ShardReader("/")
        self.side = data.image_size if bool((specimens.image_size > 0).any()) else 0

    def _read(self, row: int, member: str) -> bytes | None:
        size = int(getattr(self.specimens, f"{member}_size")[row])
        if not size:
            return None
        path = self.specimens.path[self.specimens.shard[row]]
        return self.reader.read(path, int(getattr(self.specimens, f"{member}_offset")[row]), size)

    def _views(self, data: bytes, epoch: int, key: str) -> tuple[np.ndarray, np.ndarray]:
        size, augment = self.data.image_size, self.data.augment
        if not self.training:
            clean = images.evaluation_view(images.decode(data, size), size)
            return clean, degrade.blur(clean, self.data.degrade.blur_kernel)
        image = images.decode(data, images.decode_side(size, augment))
        rng = rng_for(self.seed, epoch, key, "views")
        return images.training_view(image, size, rng, augment), images.training_view(image, size, rng, augment)

    def _barcode(self, raw: bytes, key: str) -> tuple[str, str, int]:
        """The sequence to tokenise, its damaged form (evaluation), and its identity."""
        cleaned = barcodes.clean(raw.decode("ascii", "replace"))
        if not cleaned:
            raise ValueError("no nucleotide but N")
        sequence = barcodes.orient(cleaned)[0] if self.data.orient else cleaned
        identity = _identity(sequence)
        if self.training:
            return sequence, "", identity
        rng = rng_for(self.seed, 0, key, "degrade")
        return sequence, degrade.degrade_barcode(sequence, rng, self.data.degrade.severity), identity

    def _offsets(self, keys: np.ndarray, epoch: int) -> np.ndarray:
        """Where tokenising starts in each barcode: non-overlapping k-mers must learn every reading frame."""
        if not (self.training and self.data.random_offset):
            return np.zeros(len(keys), dtype=np.int64)
        stride = self.data.kmer_stride
        return np.array([rng_for(self.seed, epoch, key, "offset").integers(stride) for key in keys])

    def __call__(self, rows: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """Prepare the specimens `rows` (int64 [n]) of one epoch; columns as in `engine.collate.Batch`."""
        count, side, specimens = len(rows), self.side, self.specimens
        second = "image_view2" if self.training else "image_noisy"
        columns: dict[str, np.ndarray] = {
            "key": specimens.key[rows].astype(str),
            "valid": np.ones(count, dtype=bool),
            "has_image": np.zeros(count, dtype=bool),
            "has_dna": np.zeros(count, dtype=bool),
            "image": np.zeros((count, side, side, 3), dtype=np.uint8),
            second: np.zeros((count, side, side, 3), dtype=np.uint8),
            "labels": specimens.labels[rows],
            "caption": specimens.labels[rows].copy(),
            "bin": specimens.bin[rows],
            "barcode": np.full(count, -1, dtype=np.int64),
        }
        sequences, others, problems = [""] * count, [""] * count, [""] * count
        for i, (row, key) in enumerate(zip(rows, columns["key"], strict=True)):
            try:
                if (photo := self._read(row, "image")) is not None:
                    columns["image"][i], columns[second][i] = self._views(photo, epoch, key)
                    columns["has_image"][i] = True
            except (ValueError, OSError) as error:
                problems[i] = f"image: {error}"
            try:
                if (raw := self._read(row, "dna")) is not None:
                    sequences[i], others[i], columns["barcode"][i] = self._barcode(raw, key)
                    columns["has_dna"][i] = True
            except (ValueError, OSError) as error:
                problems[i] += f"{'; ' if problems[i] else ''}barcode: {error}"
            if self.training and self.data.caption_cut:
                rng = rng_for(self.seed, epoch, key, "caption")
                columns["caption"][i] = captions.cut(columns["caption"][i], rng, self.data.caption_cut)
        columns["dna_tokens"] = self.tokenizer.encode(sequences, self._offsets(columns["key"], epoch))
        if not self.training:
            columns["dna_tokens_noisy"] = self.tokenizer.encode(others)
        columns["valid"] = columns["has_image"] | columns["has_dna"]
        columns["problem"] = np.array(problems)
        return columns


def _identity(sequence: str) -> int:
    """A number in 0..2^63 - 1 that equal sequences share."""
    return int.from_bytes(hashlib.blake2b(sequence.encode(), digest_size=8).digest(), "big") >> 1


def _run_task(task: dict[str, np.ndarray], shared: Any, tasks: Any, make: Callable[..., Prepare]) -> dict[str, Any]:
    import ray

    epoch, rows = ray.get(tasks)[int(task["id"][0])]
    return make(ray.get(shared))(rows, epoch)


def _stream(make: Callable[..., Prepare], specimens: Specimens, tasks: list[tuple[int, np.ndarray]], batch_size: int,
            prefetch: int, budget: CpuBudget) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """Run the tasks through Ray Data, `MAX_TASKS` an execution, and yield their rows in order, `batch_size` at a time.

    Task boundaries must fall on batch boundaries at every MAX_TASKS-th task.
    """
    import ray
    from ray.data import DataContext, ExecutionResources

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    shared = ray.put(specimens)
    for first in range(0, len(tasks), MAX_TASKS):
        span = tasks[first : first + MAX_TASKS]
        dataset = ray.data.range(len(span), override_num_blocks=len(span)).map_batches(
            _run_task,  # type: ignore[arg-type]
            batch_size=1, fn_kwargs={"shared": shared, "tasks": ray.put(span), "make": make},
            num_cpus=budget.task_cpus,
        )  # fmt: skip
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(
            cpu=budget.execution_cpus, object_store_memory=budget.object_store_bytes
        )
        batches: Any = dataset.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=prefetch)
        yield from batches


@dataclass(frozen=True)
class _Make:
    """Builds `Prepare` inside a task: small to pickle, unlike what it builds."""

    data: DataConfig
    seed: int
    training: bool

    def __call__(self, specimens: Specimens) -> Prepare:
        return Prepare(specimens, self.data, self.seed, training=self.training)


def training_batches(specimens: Specimens, plan: Plan, data: DataConfig, steps: tuple[int, int],
                     worker: tuple[int, int], budget: CpuBudget | None) -> Iterator[Batch]:  # fmt: skip
    """The batches of one worker for the global steps `steps[0] <= step < steps[1]`, across epochs.

    Args:
        specimens: the train split, rows as in `plan.labels`.
        worker: (rank, number of workers).
        budget: None prepares in this process, without Ray.

    Yields:
        One Batch [B] per step. What could not be read is logged with its key.
    """
    rank, world_size = worker
    batch_size = plan.global_batch_size // world_size
    tasks: list[tuple[int, np.ndarray]] = []
    steps_per_task = max(1, data.rows_per_task // batch_size)
    for epoch in range(steps[0] // plan.steps_per_epoch, -(-steps[1] // plan.steps_per_epoch)):
        order = plan.worker_order(epoch, rank, world_size)
        low = max(0, steps[0] - epoch * plan.steps_per_epoch)
        high = min(plan.steps_per_epoch, steps[1] - epoch * plan.steps_per_epoch)
        for first in range(low, high, steps_per_task):
            tasks.append((epoch, order[first : min(high, first + steps_per_task)].reshape(-1)))
    make = _Make(data, plan.seed, True)
    yield from _batches(make, specimens, tasks, batch_size, budget)


def evaluation_batches(index: pa.Table, taxonomy: Taxonomy, data: DataConfig, batch_size: int,
                       budget: CpuBudget | None = None) -> Iterator[Batch]:  # fmt: skip
    """Every specimen of `index` (rows of `load_index`) exactly once, in stored order, clean and damaged.

    The last batch is padded with invalid rows. The damage is drawn from seed 0 and the specimen's key, whatever the
    run's own seed, so that all models meet the same inputs. `budget` None prepares in this process.
    """
    specimens = Specimens.from_index(index, taxonomy)
    step = batch_size * max(1, data.rows_per_task // batch_size)
    tasks = [(0, np.arange(first, min(first + step, len(index)))) for first in range(0, len(index), step)]
    yield from _batches(_Make(data, 0, False), specimens, tasks, batch_size, budget)


def _batches(make: _Make, specimens: Specimens, tasks: list[tuple[int, np.ndarray]], batch_size: int,
             budget: CpuBudget | None) -> Iterator[Batch]:  # fmt: skip
    if budget is not None:
        stream = _stream(make, specimens, tasks, batch_size, make.data.prefetch_batches, budget)
    else:
        stream = _inline(make, specimens, tasks, batch_size)
    for columns in stream:
        for key, problem in zip(columns["key"], columns["problem"], strict=True):
            if problem:
                log.warning("specimen %s: %s", key, problem)
        yield collate(columns, pad_to=batch_size)


def _inline(make: _Make, specimens: Specimens, tasks: list[tuple[int, np.ndarray]],
            batch_size: int) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    prepare = make(specimens)
    for epoch, rows in tasks:
        for first in range(0, len(rows), batch_size):
            yield prepare(rows[first : first + batch_size], epoch)
