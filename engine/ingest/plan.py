"""The plan of an ingest: which specimen goes where, fixed before anything is written.

The driver reads the source once, piece by piece, and holds per specimen only a hash of its key, its row number and,
where asked, a number for its taxon; the rows themselves go to files. They are brought into the stored order in two
passes over files (spread over parts of 65,536 rows, then each part sorted in memory), so memory stays flat however many
there are. The plan lies in `.ingest/` of the output folder until the ingest is finished:

    plan.json          fingerprint of rows and options, counts, problems found so far; written last
    rows-NNNNN.arrow   rows of some shards, one record batch (SPECIMEN_SCHEMA) per shard
    NNNNNN.done        what became of a shard, see `engine.ingest`
"""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.source import SpecimenSource, names_of
from engine.ingest.report import ProblemLog
from engine.ingest.screening import SKIPPED, Problem, assign_splits, screen
from engine.relations.splits import SplitOptions
from engine.specimens.schema import SPECIMEN_SCHEMA, rng_for
from engine.specimens.taxonomy import RANKS
from engine.store.storage import Location

STATE_NAME = ".ingest"
PLAN_NAME = "plan.json"
LAYOUTS = ("random", "clustered")
Layout = Literal["random", "clustered"]

_PART_ROWS = 1 << 16  # rows brought into order in memory at once: some 50 MB of barcodes
_RUN = 32  # a taxon's specimens are cut into runs of 32 to 63
_DIGEST = np.dtype("S16")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The head of a plan, as plan.json has it."""

    settings: dict[str, Any]  # the options that decide about bytes
    rows_digest: str  # of all rows of the source and of what was left out
    num_records: int
    num_specimens: int
    num_shards: int
    shards_per_part: int
    splits: dict[str, Any]  # what was done about splits, for the report
    problems: dict[str, Any]  # ProblemLog of the source's rows
    names: dict[str, Any]  # what was understood of names, see `engine.formats.understood.NameLog`

    @property
    def fingerprint(self) -> str:
        """Equal exactly when shards of the one are shards of the other."""
        return hashlib.sha256(json.dumps([self.settings, self.rows_digest], sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, state: Location) -> "Plan | None":
        """Return the plan in a folder; None when there is none, or one of another version of this program."""
        try:
            return cls(**json.loads((state / PLAN_NAME).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def save(self, state: Location) -> None:
        """Write plan.json into the folder `state`, at once or not at all."""
        (state / PLAN_NAME).write_atomically(json.dumps(dataclasses.asdict(self)).encode())


@dataclasses.dataclass
class Scan:
    """A source that was read once: its usable rows in a file, in the source's order."""

    path: Path
    log: ProblemLog
    num_records: int = 0
    num_specimens: int = 0
    splits: dict[str, Any] = dataclasses.field(default_factory=lambda: {"given": 0, "assigned": 0, "how": ""})
    taxa: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))  # [N], lowest known taxon
    rows_digest: str = ""
    names: dict[str, Any] = dataclasses.field(default_factory=dict)


def scan(
    source: SpecimenSource,
    path: Path,
    splits: SplitOptions | None,
    layout: Layout,
    progress: Callable[[int], object] = bool,
) -> Scan:
    """Read a source, leave out what cannot be used, write the rest to `path`; `progress` gets numbers of rows.

    Without a split scheme, specimens without a split are train from here on; with one, they stay without.
    """
    result = Scan(path, ProblemLog())
    keys, digest, taxa = _Keys(), _RowsDigest(), _TaxonNumbers()
    numbers, named = [], Counter[str]()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SPECIMEN_SCHEMA) as file:
        for batch in _read(source):
            result.num_records += batch.num_rows + len(source.skipped)
            _take_skipped(source, result.log)
            progress(batch.num_rows)
            if not batch.num_rows:
                continue
            first = keys.first(batch["key"])
            repeated = batch["key"].filter(pa.array(~first)).to_pylist()
            result.log.extend(Problem(SKIPPED, key, "duplicate key") for key in repeated)
            kept, problems = screen(batch.filter(pa.array(first)))
            result.log.extend(problems)
            digest.update(kept)
            if splits is None:
                kept, note = assign_splits(kept, None)
                for name in ("given", "assigned"):
                    result.splits[name] += note[name]
                if note["assigned"] or not result.splits["how"]:
                    result.splits["how"] = note["how"]
            if layout == "clustered":
                numbers.append(taxa.numbers(kept))
            result.num_specimens += kept.num_rows
            named.update({rank: kept.num_rows - kept[rank].null_count for rank in RANKS})
            file.write_table(kept.cast(SPECIMEN_SCHEMA).combine_chunks())
    result.num_records += len(source.skipped)
    _take_skipped(source, result.log)
    digest.add(json.dumps([result.num_records, result.log.to_json()]).encode())
    result.rows_digest = digest.hexdigest()
    result.names = names_of(source, result.num_specimens, named)
    result.taxa = np.concatenate([result.taxa, *numbers])
    if splits is None and not result.splits["how"]:
        result.splits["how"] = "as in the source"
    return result


def _read(source: SpecimenSource) -> Iterator[pa.Table]:
    try:
        yield from source.batches()
    except OSError as error:
        if error.filename is not None:
            raise
        raise ValueError(f"source: got {error}; allowed: files that can be read") from error


def _take_skipped(source: SpecimenSource, log: ProblemLog) -> None:
    log.extend(Problem(SKIPPED, key, reason) for key, reason in source.skipped)
    source.skipped.clear()


def write_plan(found: Scan, settings: dict[str, Any], splits: SplitOptions | None, state: Location) -> Plan:
    """Bring the rows of a scan into stored order and write the plan; returns it. Needs room for the rows twice."""
    order = stored_order(found.num_specimens, settings["seed"], settings["layout"], found.taxa)
    per_shard = settings["specimens_per_shard"]
    shards_per_part = max(1, _PART_ROWS // per_shard)
    step = shards_per_part * per_shard
    num_parts = -(-len(order) // step)
    codes, note = _drawn_splits(found, splits)
    with tempfile.TemporaryDirectory(dir=found.path.parent) as folder:
        paths = [Path(folder) / f"{part}.arrow" for part in range(num_parts)]
        if num_parts == 1:
            paths = [found.path]
        else:
            _spread(found.path, paths, order, step)
        for part, path in enumerate(paths):
            own = order[part * step : (part + 1) * step]
            rows = _read_rows(path).take(pa.array(np.argsort(np.argsort(own))))
            if codes is not None:
                split = codes.take(pa.array(own)).cast(pa.string())
                rows = rows.set_column(rows.schema.get_field_index("split"), SPECIMEN_SCHEMA.field("split"), split)
            with (state / f"rows-{part:05d}.arrow").writing() as sink, pa.ipc.new_file(sink, SPECIMEN_SCHEMA) as file:
                for start in range(0, rows.num_rows, per_shard):
                    file.write_batch(rows.slice(start, per_shard).combine_chunks().to_batches()[0])
            if num_parts > 1:
                path.unlink()
    plan = Plan(
        settings=settings,
        rows_digest=found.rows_digest,
        num_records=found.num_records,
        num_specimens=found.num_specimens,
        num_shards=-(-len(order) // per_shard),
        shards_per_part=shards_per_part,
        splits=note,
        problems=found.log.to_json(),
        names=found.names,
    )
    plan.save(state)
    return plan


def shard_rows(state: Location, shards_per_part: int, number: int) -> pa.RecordBatch:
    """Return the rows of one shard of a plan, in stored order."""
    part, place = divmod(number, shards_per_part)
    with (state / f"rows-{part:05d}.arrow").open_input() as file:
        return pa.ipc.open_file(file).get_batch(place)


def stored_order(num_specimens: int, seed: int, layout: Layout, taxa: np.ndarray) -> np.ndarray:
    """Return int64 [N]: the row of the source that is stored at each place.

    random: a seeded permutation, so any stretch of specimens is a random sample. clustered: specimens of one lowest
    known taxon, in random order, are cut into runs of 32 to 63 (fewer when it has fewer), which come in random order.

    Args:
        num_specimens: N.
        seed: of the order.
        layout: random or clustered.
        taxa: int [N], the number of each row's lowest known taxon; used by clustered only.
    """
    rng = rng_for(seed, 0, "", "stored order")
    order = rng.permutation(num_specimens)
    if layout == "random" or not num_specimens:
        return order
    order = order[np.argsort(taxa[order], kind="stable")]
    _, start, size = np.unique(taxa[order], return_index=True, return_counts=True)
    num_runs = np.maximum(1, size // _RUN)
    within = np.arange(num_specimens) - np.repeat(start, size)
    run = within * np.repeat(num_runs, size) // np.repeat(size, size)
    run += np.repeat(np.cumsum(num_runs) - num_runs, size)
    place = rng.permutation(int(num_runs.sum()))
    return order[np.argsort(place[run], kind="stable")]


def _drawn_splits(found: Scan, splits: SplitOptions | None) -> tuple[pa.Array | None, dict[str, Any]]:
    """Split names of all rows in the source's order (None = they have theirs) and the note for the report."""
    if splits is None:
        return None, found.splits
    columns = ["key", "image", "barcode", "split", "group", *RANKS]
    table, note = assign_splits(_read_rows(found.path, columns), splits)
    return table["split"].combine_chunks().dictionary_encode(), note


def _read_rows(path: Path, columns: Iterable[str] = tuple(SPECIMEN_SCHEMA.names)) -> pa.Table:
    names = list(columns)
    schema = pa.schema([SPECIMEN_SCHEMA.field(name) for name in names])
    return pa.Table.from_batches((batch.select(names) for batch in _batches(path)), schema).combine_chunks()


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        for number in range(file.num_record_batches):
            yield file.get_batch(number)


def _spread(source: Path, paths: list[Path], order: np.ndarray, step: int) -> None:
    """Write each row into the file of its part of the stored order; within a part they keep the source's order."""
    part_of = np.empty(len(order), dtype=np.int32)
    part_of[order] = np.arange(len(order)) // step
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(pa.OSFile(str(path), "wb")) for path in paths]
        files = [stack.enter_context(pa.ipc.new_file(sink, SPECIMEN_SCHEMA)) for sink in sinks]
        first = 0
        for batch in _batches(source):
            parts = part_of[first : first + batch.num_rows]
            first += batch.num_rows
            by_part = np.argsort(parts, kind="stable")
            sorted_rows = batch.take(pa.array(by_part))
            bounds = np.searchsorted(parts[by_part], np.arange(len(paths) + 1))
            for file, start, end in zip(files, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                if end > start:
                    file.write_batch(sorted_rows.slice(start, end - start))


class _Keys:
    """The keys that were there, as 16-byte hashes in a few sorted arrays: 16 to 32 bytes a key."""

    def __init__(self) -> None:
        self.runs: list[np.ndarray] = []

    def first(self, keys: pa.ChunkedArray) -> np.ndarray:
        """Bool [N]: this key was not there before, in this batch or an earlier one."""
        digests = [hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys.to_pylist()]
        hashes = np.array(digests, dtype=_DIGEST)
        fresh, place = np.unique(hashes, return_index=True)
        known = np.zeros(len(fresh), dtype=bool)
        for run in self.runs:
            found = np.minimum(np.searchsorted(run, fresh), len(run) - 1)
            known |= run[found] == fresh
        mask = np.zeros(len(hashes), dtype=bool)
        mask[place[~known]] = True
        if not known.all():
            self.runs.append(fresh[~known])
        while len(self.runs) > 1 and len(self.runs[-1]) * 2 > len(self.runs[-2]):  # few runs, each merged rarely
            last = self.runs.pop()
            self.runs[-1] = np.sort(np.concatenate([self.runs[-1], last]), kind="stable")
        return mask


class _TaxonNumbers:
    """Numbers for lowest known taxa, in order of appearance."""

    def __init__(self) -> None:
        self.known: dict[str | None, int] = {}

    def numbers(self, table: pa.Table) -> np.ndarray:
        """Return A number for each row's deepest name, int32 [N]; the same name has the same number in every table."""
        names = [pc.binary_join_element_wise(str(place), table[rank], "\0") for place, rank in enumerate(RANKS)]
        encoded = pc.coalesce(*reversed(names), "").combine_chunks().dictionary_encode()
        numbers = [self.known.setdefault(name, len(self.known)) for name in encoded.dictionary.to_pylist()]
        return np.array(numbers, dtype=np.int32)[encoded.indices.to_numpy()]


class _RowsDigest:
    """A hash of rows that does not depend on how they are cut into batches."""

    def __init__(self) -> None:
        self.parts = {name: [hashlib.blake2b() for _ in range(2)] for name in SPECIMEN_SCHEMA.names}
        self.rest = hashlib.blake2b()

    def update(self, table: pa.Table) -> None:
        """Take in the rows of a table: lengths and contents apart, so that no two tables read alike."""
        for batch in table.combine_chunks().to_batches():
            for name, (lengths, letters) in self.parts.items():
                column = batch.column(name)
                if pa.types.is_floating(column.type):
                    lengths.update(column.is_valid().to_numpy(zero_copy_only=False).tobytes())
                    letters.update(column.fill_null(0.0).to_numpy().tobytes())
                    continue
                column = column.cast(pa.large_string())
                lengths.update(pc.binary_length(column).cast(pa.int64()).fill_null(-1).to_numpy().tobytes())
                filled = column.fill_null("")
                offsets = np.frombuffer(filled.buffers()[1], dtype=np.int64)[filled.offset :][: len(filled) + 1]
                data = filled.buffers()[2]
                letters.update(memoryview(data)[offsets[0] : offsets[-1]] if data is not None else b"")

    def add(self, data: bytes) -> None:
        """Take in bytes that are of no table."""
        self.rest.update(data)

    def hexdigest(self) -> str:
        """Return the digest of all that was taken in."""
        parts = [part.digest() for pair in self.parts.values() for part in pair]
        return hashlib.blake2b(b"".join([*parts, self.rest.digest()]), digest_size=16).hexdigest()
