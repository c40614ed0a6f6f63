"""What a bulk identification has to do, on disk: every record once in order, every different question once.

rows.arrow       a record batch of some thousand records: key, problem (of what the source left out), question
questions.arrow  record batch i = the questions of task i: image (reference for the source), barcode
plan.json        what decides about the answers, counts, and a digest of all records

Equal questions are one: the same barcode (case and white space aside) without a photo, or the same photo with the same
barcode. Memory: 16 bytes a record while the plan is made. Where there are photos a task has few questions, since a
worker holds their bytes together.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from engine.formats.source import SpecimenSource
from engine.specimens.schema import SPECIMEN_SCHEMA
from engine.store.storage import Location

QUESTIONS_PER_TASK = 1000
PHOTOS_PER_TASK = 32  # 5 MB each as cameras write them: 160 MB, and tasks for all workers
PLAN, ROWS, QUESTIONS = "plan.json", "rows.arrow", "questions.arrow"
_RAW = "raw.arrow"
_RAW_SCHEMA = pa.schema(
    [("key", pa.string()), ("image", pa.large_string()), ("barcode", pa.large_string()), ("problem", pa.string())]
)
_ROW_SCHEMA = pa.schema([("key", pa.string()), ("problem", pa.string()), ("question", pa.int64())])
_QUESTION_SCHEMA = pa.schema([("image", pa.large_string()), ("barcode", pa.large_string())])
_ROWS = 1 << 14  # records held at a time
_NONE = b"\0" * 16  # digest of a record that asks nothing
_SPACES = dict.fromkeys(map(ord, " \t\r\n"))  # those that a barcode may have (`engine.signals.barcodes.clean`)


@dataclass(frozen=True)
class Plan:
    """A plan in its folder; cheap to copy and to pickle."""

    folder: Path
    settings: Mapping[str, Any]  # JSON values that decide about the answers
    records: int
    questions: int
    digest: str  # of all records, in order
    per_task: int  # questions

    @property
    def tasks(self) -> int:
        """Return how many tasks answer the questions."""
        return -(-self.questions // self.per_task)

    def part(self, task: int) -> Path:
        """Return the file of a task's answers, once it is done."""
        return self.folder / f"part-{task:06d}.parquet"

    def unfinished(self) -> list[int]:
        """Return the tasks that are not done."""
        return [task for task in range(self.tasks) if not self.part(task).is_file()]

    def ask(self, task: int) -> pa.RecordBatch:
        """Return the questions of a task."""
        with pa.OSFile(str(self.folder / QUESTIONS)) as file:
            return pa.ipc.open_file(file).get_batch(task)

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Yield all records in order, some thousand at a time."""
        with pa.OSFile(str(self.folder / ROWS)) as file, pa.ipc.open_stream(file) as reader:
            yield from reader


def load_plan(folder: Path) -> Plan | None:
    """Return the plan in a folder; None where none was finished."""
    try:
        value = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Plan(folder, **value) if "per_task" in value else None  # one of an earlier version is made anew


def write_plan(source: SpecimenSource, folder: Path, settings: Mapping[str, Any]) -> Plan:
    """Read a source once and write its plan; `plan.json` comes last. Memory stays flat but for 16 bytes a record.

    Raises ValueError as the source does, and when it has no record at all.
    """
    digests, digest, has_photos = _write_raw(source, folder / _RAW)
    if not digests:
        raise ValueError("input: got no record, allowed: at least one")
    question, first = _number(np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2))
    value: dict[str, Any] = {"records": len(question), "questions": int(first.sum()), "digest": digest}
    plan = Plan(folder, settings, **value, per_task=PHOTOS_PER_TASK if has_photos else QUESTIONS_PER_TASK)
    _split(plan, question, first)
    (folder / _RAW).unlink()
    value |= {"settings": settings, "per_task": plan.per_task}
    Location.parse(folder / PLAN).write_atomically(json.dumps(value, indent=1).encode())
    return plan


def _write_raw(source: SpecimenSource, path: Path) -> tuple[bytearray, str, bool]:
    """Write all records in the order of the input, with those that the source left out.

    Where a source does not say where these stood, they follow the batch in which it met them.
    Returns 16 bytes for each record's question, one digest of everything, and whether there is a photo.
    """
    digests, whole, has_photos = bytearray(), hashlib.blake2b(digest_size=16), False
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, _RAW_SCHEMA) as writer:
        for batch, rows, left_out in _batches(source):
            keys, images, barcodes = (batch[name].to_pylist() for name in ("key", "image", "barcode"))
            has_photos = has_photos or any(images)
            asked = [_question(image, barcode) for image, barcode in zip(images, barcodes, strict=True)]
            problems = [None if one != _NONE else "neither photo nor barcode" for one in asked]
            records = list(zip(keys, images, barcodes, problems, asked, strict=True))
            records += [(key, None, None, reason, _NONE) for key, reason in left_out]
            order = _places(len(batch), rows, left_out)
            for record in (ordered := [records[place] for place in order]):
                digests += record[-1]
                whole.update(repr(record[:-1]).encode("utf-8", "surrogatepass"))
            columns = [[record[place] for record in ordered] for place in range(len(_RAW_SCHEMA))]
            writer.write(pa.record_batch(columns, schema=_RAW_SCHEMA))
    return digests, whole.hexdigest(), has_photos


def _places(count: int, rows: np.ndarray | None, left_out: Sequence[tuple[str, str]]) -> list[int]:
    """Return the order of a batch's records and, numbered behind them, of those left out."""
    own = np.full(count, -np.inf) if rows is None else rows
    others = [getattr(one, "row", np.inf) for one in left_out]
    return np.argsort(np.concatenate([own, others]), kind="stable").tolist()


def _batches(source: SpecimenSource) -> Iterator[tuple[pa.Table, np.ndarray | None, list[tuple[str, str]]]]:
    """Yield the batches of the source in pieces, with their rows in the file, and what it left out among them."""
    seen, waiting = 0, list[tuple[str, str]]()
    for batch in source.batches():
        numbers = getattr(getattr(source, "inner", source), "rows", None)
        waiting, seen = source.skipped[seen:], len(source.skipped)
        for first in range(0, max(1, len(batch)), _ROWS):
            rows = None if numbers is None else numbers[first : first + _ROWS]
            last = np.inf if rows is None or first + _ROWS >= len(batch) else rows[-1]
            yield batch.slice(first, _ROWS), rows, [one for one in waiting if getattr(one, "row", -1) <= last]
            waiting = [one for one in waiting if getattr(one, "row", -1) > last]
    yield SPECIMEN_SCHEMA.empty_table(), None, source.skipped[seen:]


def _question(image: str | None, barcode: str | None) -> bytes:
    sequence = (barcode or "").translate(_SPACES)
    sequence = sequence.upper() if sequence.isascii() else sequence  # odd letters are errors, each its own record's
    if not image and not sequence:
        return _NONE
    return hashlib.blake2b(f"{image or ''}\0{sequence}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _number(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assign numbers to the different questions in the order of their first record.

    Args:
        digests: uint64 [N, 2], zeros = asks nothing.

    Returns:
        question int64 [N], -1 = none; first bool [N], the record is the first with its question.
    """
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: of equals the first record comes first
    ordered = digests[order]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    leader = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    first = np.zeros(len(digests), dtype=bool)
    asks = digests.any(axis=1)
    first[order[new]] = True
    first &= asks
    number = np.cumsum(first) - 1
    question = np.empty(len(digests), dtype=np.int64)
    question[order] = number[leader]
    question[~asks] = -1
    return question, first


def _split(plan: Plan, question: np.ndarray, first: np.ndarray) -> None:
    """Write rows and questions from the raw records, reading them once more."""
    folder, step = plan.folder, plan.per_task
    with (
        pa.OSFile(str(folder / _RAW)) as raw,
        pa.ipc.open_stream(raw) as batches,
        pa.OSFile(str(folder / ROWS), "wb") as row_file,
        pa.ipc.new_stream(row_file, _ROW_SCHEMA) as rows,
        pa.OSFile(str(folder / QUESTIONS), "wb") as question_file,
        pa.ipc.new_file(question_file, _QUESTION_SCHEMA) as questions,
    ):
        begin, waiting = 0, _QUESTION_SCHEMA.empty_table()
        for batch in batches:
            span = slice(begin, begin + len(batch))
            begin += len(batch)
            if not len(batch):
                continue
            rows.write(pa.record_batch([batch["key"], batch["problem"], pa.array(question[span])], schema=_ROW_SCHEMA))
            asked = pa.Table.from_batches([batch.select(["image", "barcode"])]).filter(pa.array(first[span]))
            waiting = pa.concat_tables([waiting, asked])
            while len(waiting) >= step:
                _write_one(questions, waiting.slice(0, step))
                waiting = waiting.slice(step)
        if len(waiting):
            _write_one(questions, waiting)


def _write_one(writer: Any, table: pa.Table) -> None:
    """Write a table as exactly one record batch."""
    writer.write_batch(table.combine_chunks().to_batches()[0])
