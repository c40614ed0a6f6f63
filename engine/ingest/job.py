"""The ingest job: a specimen source in; shards, index, manifest and report out; one Ray task per shard; resumable.

The driver reads the source's rows (no image bytes), screens them and writes a plan (`engine.ingest.plan`); each task
takes its shard's rows from there. The bytes written depend on (source, options), never on how many tasks run at once or
on how often the job was interrupted: a shard is renamed to its name when it is whole, then a small file in `.ingest/`
says what became of it, and a later run with the same rows and options does what is left. The manifest comes last.

A bad row never stops an ingest. A bad image or barcode removes that modality; a specimen left with neither is skipped;
all of it is counted and named in report.json and report.html.
"""

import contextlib
import dataclasses
import json
import logging
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from tqdm import tqdm

from engine.formats.source import SpecimenSource
from engine.ingest.plan import LAYOUTS, STATE_NAME, Layout, Plan, scan, write_plan
from engine.ingest.report import ProblemLog, Tally, build_report, report_page
from engine.ingest.shard import REQUESTS, ShardWriter, read_done
from engine.ray_seams import numbered_tasks, start_ray
from engine.relations.splits import SplitOptions
from engine.specimens.schema import INDEX_SCHEMA
from engine.store.commits import locked
from engine.store.shards import (
    FORMAT_VERSION,
    INDEX_NAME,
    MANIFEST_NAME,
    PAGE_NAME,
    REPORT_NAME,
    file_sha256,
    shard_name,
)
from engine.store.storage import Location

log = logging.getLogger(__name__)

_ROW_GROUP = 1 << 17  # rows of index.parquet
_TAR = re.compile(r"\d{6}\.tar")
_HALF_WRITTEN = re.compile(rf"\.(\d{{6}}\.tar|index\.parquet|(report|manifest)\.\w+)\.\d+\.part|{STATE_NAME}-\w+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """How to write shards. Raises ValueError for values that are not allowed."""

    specimens_per_shard: int = 1000
    seed: int = 0  # of the stored order
    layout: Layout = "random"  # of the stored order, see `engine.ingest.plan.stored_order`
    max_side: int | None = None  # photos with a longer side are shrunk to it; None = JPEGs are copied byte for byte
    splits: SplitOptions | None = None  # for specimens without a split; None = they are train
    overwrite: bool = False  # start anew where there are shards already, finished or not
    parallel: bool = True  # through Ray Data if there is more than one shard; False = in this process
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # description, goes into the manifest

    def __post_init__(self) -> None:
        if self.specimens_per_shard < 1:
            raise ValueError(f"specimens per shard: got {self.specimens_per_shard}, allowed: 1 or more")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout: got {self.layout!r}, allowed: {', '.join(LAYOUTS)}")
        if self.max_side is not None and self.max_side < 1:
            raise ValueError(f"max side: got {self.max_side}, allowed: 1 or more pixels")

    def settings(self) -> dict[str, Any]:
        """Return what decides about the bytes, in JSON's types."""
        names = ("specimens_per_shard", "seed", "layout", "max_side", "splits", "source")
        return json.loads(json.dumps({name: dataclasses.asdict(self)[name] for name in names}))


def ingest(source: SpecimenSource, out: Path | str, options: IngestOptions | None = None) -> dict[str, Any]:
    """Write the specimens of a source as shards into `out`, a folder or a URL (on several nodes: seen by all of them).

    A folder with an interrupted ingest of the same rows and options is continued; the result is the same, byte for
    byte. Returns the report (also in report.json).
    Raises ValueError when `out` holds something else (without options.overwrite), cannot be written, or no specimen is
    usable.
    """
    options, folder = options or IngestOptions(), Location.parse(out)
    with _told_as_mistake(folder), contextlib.ExitStack() as alone:
        if folder.is_file():
            raise ValueError(f"--out: got {folder.shown}, which is a file; allowed: a folder")
        if folder.is_local:
            _make_folder(folder)
            alone.enter_context(locked(folder.path))
        unfinished = _unfinished(folder, options)
        state = folder / STATE_NAME
        plan = _make_plan(source, folder, options, unfinished)
        if unfinished is None or not (folder / MANIFEST_NAME).is_file():
            _write_shards(plan, ShardWriter(state, plan, source.load_image), options.parallel)
            _finish(folder, plan, options)
        _tidy(folder)
        if folder.is_local:  # at one stroke: what is left of it the next start removes
            state.path.rename(folder.path / f"{STATE_NAME}-done")
            state = folder / f"{STATE_NAME}-done"
        state.delete()
        report: dict[str, Any] = json.loads((folder / REPORT_NAME).read_bytes())
        return report


@contextlib.contextmanager
def _told_as_mistake(folder: Location) -> Iterator[None]:
    """Say in one line what cannot be written there (no room, no permission): the user can mend it."""
    try:
        yield
    except OSError as error:
        what = str(error.filename or folder.shown)
        if not what.startswith((folder.base, folder.shown.partition("?")[0])):
            raise
        raise ValueError(
            f"--out: got {what}, which cannot be written or read ({error.strerror or error}); allowed: a place with "
            "room that this user may write; the same command then goes on where this one stopped"
        ) from error


def _unfinished(folder: Location, options: IngestOptions) -> Plan | None:
    """Return the plan of an interrupted ingest with these options, None where there is nothing to go on with.

    Raises ValueError when the folder holds something that must not be written over.
    """
    _tidy(folder)
    if options.overwrite:
        return None
    plan = Plan.load(folder / STATE_NAME)
    if plan is not None:
        differing = [name for name, value in options.settings().items() if plan.settings.get(name) != value]
        if differing:
            raise _other_plan(folder, differing)
        return plan
    if set(folder.list()) - {STATE_NAME}:
        raise ValueError(
            f"--out: got {folder.shown}, which is not empty; allowed: a new or empty folder, or --overwrite"
        )
    return None


def _tidy(folder: Location) -> None:
    """Remove what killed processes left half-written."""
    if folder.is_local:
        for name in folder.list():
            if _HALF_WRITTEN.fullmatch(name):
                (folder / name).delete()


def _other_plan(folder: Location, differing: list[str]) -> ValueError:
    return ValueError(
        f"--out: got {folder.shown}, which holds an unfinished ingest with other {', '.join(differing)}; allowed: the "
        "same source and options as before, or --overwrite to start anew"
    )


def _make_plan(source: SpecimenSource, folder: Location, options: IngestOptions, unfinished: Plan | None) -> Plan:
    """Read the source; return the plan, new or (when rows and options are the same) the unfinished one."""
    state = folder / STATE_NAME
    settings = options.settings()
    _make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder.path if folder.is_local else None, prefix=f"{STATE_NAME}-") as place:
        counted = tqdm(desc="ingest: reading", unit=" specimens", disable=None)
        found = scan(source, Path(place) / "rows.arrow", options.splits, options.layout, counted.update)
        counted.close()
        if unfinished is not None:
            if unfinished.rows_digest != found.rows_digest:
                raise _other_plan(folder, ["specimens"])
            return unfinished
        if not found.num_specimens:
            raise _nothing_left(found.num_records, found.log)
        _clear_folder(folder)
        state.make_folder()
        return write_plan(found, settings, options.splits, state)


def _make_folder(folder: Location) -> None:
    try:
        folder.make_folder()
    except OSError as error:
        got = f"--out: got {folder.shown}, which cannot be made ({error.strerror})"
        raise ValueError(f"{got}; allowed: a new folder") from None


def _clear_folder(folder: Location) -> None:
    """Remove what an earlier ingest wrote, manifest first; other files stay."""
    there = folder.sizes()
    tars = [name for name in there if _TAR.fullmatch(name)]
    for name in (MANIFEST_NAME, INDEX_NAME, REPORT_NAME, PAGE_NAME, *tars):
        if name in there:
            (folder / name).delete()
    (folder / STATE_NAME).delete()


def _nothing_left(num_records: int, problems: ProblemLog) -> ValueError:
    told = problems.reasons()
    return ValueError(f"specimens: got {num_records} records of which none is usable: {told}; allowed: at least one")


def _write_shards(plan: Plan, writer: ShardWriter, parallel: bool) -> None:
    """Write the shards of a plan that are not there yet, with a progress bar."""
    left = writer.unfinished()
    done = plan.num_shards - len(left)
    run = _run_parallel if parallel and len(left) > 1 else _run_here
    for _ in tqdm(run(writer, left), total=plan.num_shards, initial=done, desc="ingest", unit="shard", disable=None):
        pass


def _run_here(writer: ShardWriter, numbers: list[int]) -> Iterator[None]:
    return map(writer.write, numbers)


def _run_parallel(writer: ShardWriter, numbers: list[int]) -> Iterator[None]:
    """One Ray task per shard; yields as they are done. What lies on disk is the result, so no row carries data."""
    start_ray()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    tasks = numbered_tasks(len(numbers), poll_s=0.03)
    results = tasks.map_batches(_Task(writer, numbers), batch_size=1, batch_format="pyarrow")
    failure: OSError | None = None
    try:
        for row in results.iter_rows():
            if row["errno"] and failure is None:
                failure = OSError(row["errno"], row["told"], row["place"])
            if failure is None:
                yield
    except ray.exceptions.RayError as error:  # some are ValueErrors too, but this is no input of the user's
        raise RuntimeError("a shard could not be written") from error
    if failure is not None:
        raise failure


class _Task:
    """The Ray Data form of `ShardWriter.write`: places in a list of shard numbers to one row each.

    What cannot be written comes back as a row, not as an exception: that would keep neither its number nor its place.
    The others then do nothing more, so that the run ends at once and without an abandoned iterator.
    """

    def __init__(self, writer: ShardWriter, numbers: list[int]) -> None:
        self.writer, self.numbers = writer, numbers
        self.stop = writer.state / f"stopped-{secrets.token_hex(4)}"  # of this run only

    def __call__(self, batch: pa.Table) -> pa.Table:
        error = OSError(0, "", "")
        for place in batch["item"].to_pylist():
            try:
                if not self.stop.is_file():
                    self.writer.write(self.numbers[place])
            except OSError as caught:
                error = caught
                with contextlib.suppress(OSError):
                    self.stop.write_atomically(b"")  # takes no room: a name only
        row = {"errno": error.errno or 0, "told": error.strerror or str(error), "place": str(error.filename or "")}
        return pa.Table.from_pylist([row])


def _finish(folder: Location, plan: Plan, options: IngestOptions) -> None:
    """Put index, report and, last, the manifest together from what the tasks left."""
    problems, tally = ProblemLog(), Tally()
    problems.merge(plan.problems)
    shards: list[dict[str, Any]] = []
    totals = {"images_converted": 0, "images_shrunk": 0}
    with (folder / INDEX_NAME).writing() as sink, pq.ParquetWriter(sink, INDEX_SCHEMA) as writer:
        pending: list[pa.Table] = []
        for number, (index, done) in enumerate(_all_done(folder, plan)):
            problems.merge(done["problems"])
            if not index.num_rows:
                continue
            tally.add(index, done)
            for name in totals:
                totals[name] += done[name]
            shards.append({"file": shard_name(number), "specimens": index.num_rows} | done["file"])
            pending.append(index)
            if sum(part.num_rows for part in pending) >= _ROW_GROUP:
                rows = pa.concat_tables(pending)
                writer.write_table(rows.slice(0, _ROW_GROUP), row_group_size=_ROW_GROUP)
                pending = [rows.slice(_ROW_GROUP)]
        if pending:
            writer.write_table(pa.concat_tables(pending), row_group_size=_ROW_GROUP)
        if not shards:
            raise _nothing_left(plan.num_records, problems)
    report = build_report(plan.num_records, plan.splits, problems, tally) | totals | {"names": plan.names}
    manifest = {
        "format": "taxafuse shards",
        "format_version": FORMAT_VERSION,
        "source": dict(options.source),
        "seed": options.seed,
        "specimens_per_shard": options.specimens_per_shard,
        "layout": options.layout,
        "max_side": options.max_side,
        "counts": tally.counts,
        "index_sha256": file_sha256(folder / INDEX_NAME),
        "shards": shards,
    }
    described = " ".join(str(part) for part in (options.source.get("format", ""), *options.source.get("paths", ())))
    page = report_page(report, f"Ingest report: {described.strip() or 'specimens'}")
    (folder / PAGE_NAME).write_atomically(page.encode())
    for name, value in ((REPORT_NAME, report), (MANIFEST_NAME, manifest)):
        (folder / name).write_atomically(json.dumps(value, indent=1, ensure_ascii=False).encode())


def _all_done(folder: Location, plan: Plan) -> Iterator[tuple[pa.Table, dict[str, Any]]]:
    """Return what became of each shard, in order; a few are read ahead, which remote folders need."""
    state = folder / STATE_NAME
    with ThreadPoolExecutor(1 if folder.is_local else REQUESTS) as pool:
        for first in range(0, plan.num_shards, REQUESTS):
            numbers = range(first, min(first + REQUESTS, plan.num_shards))
            yield from pool.map(lambda number: read_done(state, number), numbers)
