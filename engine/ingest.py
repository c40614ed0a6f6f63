"""The ingest job: a specimen source in, shards with index, manifest and report out; one Ray task per shard.

The driver reads the table (no image bytes), screens it, fixes the stored order (a seeded permutation, so that any run
of consecutive specimens is a random sample) and leaves it as a file with one record batch per shard; each task reads
its batch only. The bytes written depend on (source, options), never on how many tasks run at once.

A bad row never stops an ingest. A bad image or barcode removes that modality; a specimen left with neither is skipped;
all of it is counted and named in report.json.
"""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from tqdm import tqdm

from engine import barcodes, images
from engine.datasets import SpecimenSource, read_all
from engine.datasets.screening import (
    BARCODE_REMOVED,
    IMAGE_REMOVED,
    SKIPPED,
    Problem,
    assign_splits,
    screen,
)
from engine.schema import INDEX_SCHEMA, SPECIMEN_SCHEMA, Specimen, rng_for
from engine.shards import (
    FORMAT_VERSION,
    INDEX_NAME,
    MANIFEST_NAME,
    REPORT_NAME,
    count_specimens,
    file_sha256,
    shard_name,
)
from engine.splits import SplitOptions
from engine.tars import write_shard
from engine.taxonomy import RANKS

log = logging.getLogger(__name__)

MAX_NAMED = 10_000  # problems of one kind that a report names; the others are only counted
_PLAN_NAME = ".ingest-plan.arrow"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How to write shards. Raises ValueError for values that are not allowed."""

    specimens_per_shard: int = 1000
    seed: int = 0  # of the stored order
    splits: SplitOptions | None = None  # for specimens without a split; None = they are train
    overwrite: bool = False
    parallel: bool = True  # through Ray Data if there is more than one shard; False = in this process
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # description, goes into the manifest

    def __post_init__(self) -> None:
        if self.specimens_per_shard < 1:
            raise ValueError(f"specimens per shard: got {self.specimens_per_shard}, allowed: 1 or more")


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What a task gives back for one shard."""

    number: int
    index: pa.Table
    num_bytes: int
    sha256: str
    problems: list[Problem]
    num_converted: int = 0  # images that became JPEGs


def ingest(source: SpecimenSource, out: Path | str, options: IngestOptions | None = None) -> dict[str, Any]:
    """Write the specimens of a source as shards into the folder `out` (on several nodes: one that all of them see).

    Returns the report (also in report.json). The manifest is written last: a folder without one is unfinished.
    Raises ValueError when `out` is not empty (without options.overwrite) or no specimen is usable.
    """
    options, out = options or IngestOptions(), Path(out)
    _check_folder(out, options.overwrite)
    table = read_all(source)
    num_records = table.num_rows + len(source.skipped)
    problems = [Problem(SKIPPED, key, reason) for key, reason in source.skipped]
    table, screened = screen(table)
    problems += screened
    table, split_note = assign_splits(table, options.splits)
    if not table.num_rows:
        raise _nothing_left(num_records, problems)
    _clear_folder(out)
    plan_path = out / _PLAN_NAME
    try:
        num_shards = _write_plan(table, plan_path, options)
        writer = ShardWriter(out, plan_path, source.load_image)
        del table
        run = _run_parallel if options.parallel and num_shards > 1 else _run_here
        progress = tqdm(run(writer, num_shards), total=num_shards, desc="ingest", unit="shard", disable=None)
        results = sorted(progress, key=lambda result: result.number)
    finally:
        plan_path.unlink(missing_ok=True)
    problems += [problem for result in results for problem in result.problems]
    num_converted = sum(result.num_converted for result in results)
    results = [result for result in results if result.index.num_rows]
    if not results:
        raise _nothing_left(num_records, problems)
    report = {**_report(num_records, problems, split_note), "images_converted": num_converted}
    return _finish(out, options, results, report)


class ShardWriter:
    """Writes the n-th shard of a plan. Made once, called on workers; needs no Ray.

    Args:
        out: folder of the shards.
        plan_path: Arrow file with one record batch (SPECIMEN_SCHEMA) per shard.
        load_image: see `engine.datasets.SpecimenSource`.
    """

    def __init__(self, out: Path, plan_path: Path, load_image: Callable[[str], bytes]) -> None:
        self.out, self.plan_path, self.load_image = out.resolve(), plan_path.resolve(), load_image

    def write(self, number: int) -> ShardResult:
        """Write shard `number`; a shard without any usable specimen leaves no file."""
        with pa.memory_map(str(self.plan_path)) as file:
            rows = pa.ipc.open_file(file).get_batch(number).to_pylist()
        problems: list[Problem] = []
        self.num_converted = 0
        path = self.out / shard_name(number)
        index = write_shard(path, self._specimens(rows, problems)).index
        if not index.num_rows:
            return ShardResult(number, index, 0, "", problems)
        return ShardResult(number, index, path.stat().st_size, file_sha256(path), problems, self.num_converted)

    def _specimens(self, rows: list[dict[str, Any]], problems: list[Problem]) -> Iterator[Specimen]:
        for row in rows:
            image = self._image(row, problems)
            barcode, length = self._barcode(row, problems)
            if image is None and barcode is None:
                problems.append(Problem(SKIPPED, row["key"], "neither image nor barcode is usable"))
                continue
            yield Specimen(
                id=row["key"],
                image=image,
                barcode=barcode,
                barcode_length=length,
                names=tuple(row[rank] for rank in RANKS),
                split=row["split"],
                bin_uri=row["bin_uri"],
                country=row["country"],
                latitude=row["latitude"],
                longitude=row["longitude"],
            )

    def _image(self, row: dict[str, Any], problems: list[Problem]) -> bytes | None:
        if row["image"] is None:
            return None
        try:
            data = self.load_image(row["image"])
        except ValueError as error:
            problems.append(Problem(IMAGE_REMOVED, row["key"], str(error)))
            return None
        try:
            data, converted = images.to_jpeg(data)
        except ValueError as error:
            problems.append(Problem(IMAGE_REMOVED, row["key"], f"no usable image: {error} ({row['image']})"))
            return None
        self.num_converted += converted
        return data

    def _barcode(self, row: dict[str, Any], problems: list[Problem]) -> tuple[str | None, int]:
        """Return the barcode as given, without surrounding whitespace, and the length of the cleaned one."""
        if row["barcode"] is None:
            return None, 0
        try:
            length = len(barcodes.clean(row["barcode"]))
        except ValueError as error:
            problems.append(Problem(BARCODE_REMOVED, row["key"], f"letters that are no nucleotides: {error}"))
            return None, 0
        if not length:
            problems.append(Problem(BARCODE_REMOVED, row["key"], "barcode without a known nucleotide"))
            return None, 0
        return row["barcode"].strip(), length

    def write_batch(self, batch: pa.Table) -> pa.Table:
        """The Ray Data form of `write`: shard numbers in column "id" to one row per shard, its index as Arrow bytes."""
        rows = []
        for number in batch["id"].to_pylist():
            result = self.write(number)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, INDEX_SCHEMA) as stream:
                stream.write_table(result.index)
            problems = json.dumps([dataclasses.astuple(problem) for problem in result.problems])
            changed = {"index": sink.getvalue().to_pybytes(), "problems": problems}
            rows.append({field.name: getattr(result, field.name) for field in dataclasses.fields(result)} | changed)
        return pa.Table.from_pylist(rows)


def _run_here(writer: ShardWriter, num_shards: int) -> Iterable[ShardResult]:
    return map(writer.write, range(num_shards))


def _run_parallel(writer: ShardWriter, num_shards: int) -> Iterator[ShardResult]:
    """One Ray task per shard, results as they come."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    shards = ray.data.range(num_shards, override_num_blocks=num_shards)
    results = shards.map_batches(writer.write_batch, batch_size=1, batch_format="pyarrow")
    results.context.enable_progress_bars = False
    try:
        for row in results.iter_rows():
            with pa.ipc.open_stream(row["index"]) as stream:
                index = stream.read_all()
            problems = [Problem(*parts) for parts in json.loads(row["problems"])]
            yield ShardResult(**{**row, "index": index, "problems": problems})
    except ray.exceptions.RayError as error:  # some are ValueErrors too, but this is no input of the user's
        raise RuntimeError("a shard could not be written") from error


def _write_plan(table: pa.Table, path: Path, options: IngestOptions) -> int:
    """Write the table in stored order, one record batch per shard; return the number of shards."""
    table = table.combine_chunks()
    order = rng_for(options.seed, 0, "", "stored order").permutation(table.num_rows)
    step = options.specimens_per_shard
    starts = range(0, len(order), step)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SPECIMEN_SCHEMA) as file:
        for start in starts:
            shard = table.take(pa.array(order[start : start + step])).combine_chunks()
            file.write_batch(shard.to_batches()[0])
    return len(starts)


def _check_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: got {out}, which is a file; allowed: a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ValueError(f"--out: got {out}, which is not empty; allowed: a new or empty folder, or --overwrite")


def _clear_folder(out: Path) -> None:
    """Make the folder and remove what an earlier ingest wrote there, manifest first; other files stay."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: got {out}, which cannot be made ({error.strerror}); allowed: a new folder") from None
    shards = out.glob("[0-9][0-9][0-9][0-9][0-9][0-9].tar")
    for path in (out / MANIFEST_NAME, out / INDEX_NAME, out / REPORT_NAME, *shards):
        path.unlink(missing_ok=True)


def _nothing_left(num_records: int, problems: list[Problem]) -> ValueError:
    reasons = Counter(problem.reason.partition(": ")[0] for problem in problems)
    told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common()) or "none was read"
    return ValueError(f"specimens: got {num_records} records of which none is usable: {told}; allowed: at least one")


def _report(num_records: int, problems: list[Problem], split_note: dict[str, Any]) -> dict[str, Any]:
    report: dict[str, Any] = {"format_version": FORMAT_VERSION, "records_read": num_records, "splits": split_note}
    for kind in (SKIPPED, IMAGE_REMOVED, BARCODE_REMOVED):
        own = [problem for problem in problems if problem.kind == kind]
        report[kind.replace(" ", "_")] = {
            "count": len(own),
            "by_reason": dict(Counter(problem.reason.partition(": ")[0] for problem in own).most_common()),
            "named": [{"key": problem.key, "reason": problem.reason} for problem in own[:MAX_NAMED]],
            "not_named": max(0, len(own) - MAX_NAMED),
        }
    return report


def _finish(out: Path, options: IngestOptions, results: list[ShardResult], report: dict[str, Any]) -> dict[str, Any]:
    """Write index, report and, last, manifest; return the report."""
    index = pa.concat_tables([result.index for result in results])
    pq.write_table(index, out / INDEX_NAME, row_group_size=1 << 17)
    counts = count_specimens(index)
    report["written"] = counts
    manifest = {
        "format": "taxafuse shards",
        "format_version": FORMAT_VERSION,
        "source": dict(options.source),
        "seed": options.seed,
        "specimens_per_shard": options.specimens_per_shard,
        "counts": counts,
        "index_sha256": file_sha256(out / INDEX_NAME),
        "shards": [
            {
                "file": shard_name(result.number),
                "specimens": result.index.num_rows,
                "bytes": result.num_bytes,
                "sha256": result.sha256,
            }
            for result in results
        ],
    }
    for name, value in ((REPORT_NAME, report), (MANIFEST_NAME, manifest)):
        text = json.dumps(value, indent=1, ensure_ascii=False)
        (out / f".{name}.part").write_text(text, encoding="utf-8")
        (out / f".{name}.part").replace(out / name)
    return report
