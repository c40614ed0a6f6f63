"""What formats share: one notion of "missing", the shape of a specimen table, parquet in pieces."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.formats.delimited import Picker, Rows
from engine.specimens.schema import SPECIMEN_SCHEMA
from engine.specimens.taxonomy import RANKS

MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "not_classified", "not classified", "no_data", "-")
"""Cells that mean "unknown" in the exports of BOLD, BIOSCAN and of the usual tools; compared trimmed, in lower case."""


@dataclasses.dataclass
class FileSource:
    """What sources of files share; see `engine.formats.registry.SpecimenSource`. Workers get no copy of `skipped`."""

    paths: list[Path]
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list, kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "skipped": []}


_LONGEST = max(map(len, MISSING))
_LIMITS = {"latitude": 90.0, "longitude": 180.0}  # degrees
_ROWS = 1 << 15  # of a parquet file read at once


def tidy(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Trim a text column and null what means "missing"."""
    trimmed = pc.utf8_trim_whitespace(pc.cast(column, pa.large_string()))
    start = pc.utf8_lower(pc.utf8_slice_codeunits(trimmed, 0, _LONGEST + 1))  # of a barcode only its first letters
    return pc.if_else(pc.is_in(start, pa.array(MISSING, pa.large_string())), None, trimmed)


def _coordinate(column: pa.ChunkedArray, limit: float) -> pa.ChunkedArray:
    """Degrees as numbers; what is no number, or beyond the limit, is unknown."""
    is_number = pc.match_substring_regex(column, r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$")
    degrees = pc.cast(pc.if_else(is_number, column, None), pa.float64())
    return pc.if_else(pc.less_equal(pc.abs(degrees), limit), degrees, None)


def _specimen_column(columns: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in columns.column_names:
        return pa.nulls(columns.num_rows, field.type)
    column = tidy(columns[field.name])
    if pa.types.is_floating(field.type):
        return _coordinate(column, _LIMITS[field.name])
    if field.name in RANKS:  # "Olla  v-nigrum" and "Olla v-nigrum" are one name
        column = pc.replace_substring_regex(column, r"\s+", " ")
    return pc.cast(column, field.type)


def to_specimens(
    columns: pa.Table, place: str, rows: np.ndarray | None = None
) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Give columns of text the shape of SPECIMEN_SCHEMA, tidied; rows without a key are left out.

    Args:
        columns: some fields of SPECIMEN_SCHEMA, any text type; fields it lacks are null.
        place: name of the source file, for the report.
        rows: int64 [rows], the number of each row in the file, from 0; default: all rows in order.

    Returns:
        The table, and (place, reason) of each row left out.
    """
    fields = {field.name: _specimen_column(columns, field) for field in SPECIMEN_SCHEMA}
    table = pa.table(fields, schema=SPECIMEN_SCHEMA)
    has_key = pc.is_valid(table["key"])
    without = np.flatnonzero(~has_key.to_numpy())  # pc.indices_nonzero crashes on a column without chunks
    if rows is not None:
        without = rows[without]
    skipped = [(f"{place} row {row + 1}", "no key") for row in without.tolist()]
    return (table.filter(has_key) if skipped else table), skipped


def specimens_of(
    pieces: Iterable[Rows], path: Path, skipped: list[tuple[str, str]]
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield (specimens, the columns they come from, row by row) of a file's pieces; what is left out goes to `skipped`.

    Raises ValueError when the file has no rows at all.
    """
    row, found = 0, False
    for columns, bad_rows in pieces:
        specimens, without_key = to_specimens(columns, path.name, np.arange(row, row + columns.num_rows))
        if without_key:
            columns = columns.filter(pc.is_valid(tidy(columns["key"])))
        skipped += bad_rows + without_key
        row, found = row + columns.num_rows, found or bool(columns.num_rows or bad_rows)
        yield specimens, columns
    if not found:
        raise ValueError(f"table: got {path}, which has no rows; allowed: at least one")


def with_column(specimens: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return the table with one of its columns replaced."""
    return specimens.set_column(SPECIMEN_SCHEMA.get_field_index(name), SPECIMEN_SCHEMA.field(name), column)


def match_columns(names: list[str], aliases: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return {field: column name} for the fields of which an alias is there; case is ignored, the first alias wins."""
    by_lower: dict[str, str] = {}
    for name in names:
        by_lower.setdefault(name.lower(), name)
    found = {}
    for field, candidates in aliases.items():
        match = next((by_lower[candidate] for candidate in candidates if candidate in by_lower), None)
        if match is not None:
            found[field] = match
    return found


def read_image_file(reference: str) -> bytes:
    """Return the bytes of an image file. Raises ValueError when there is none."""
    try:
        return Path(reference).read_bytes()
    except OSError as error:
        reason = "missing image file" if isinstance(error, FileNotFoundError) else "image file cannot be read"
        raise ValueError(f"{reason}: {reference}") from None


def read_parquet(path: Path, pick: Picker) -> Iterator[Rows]:
    """Read some columns of a parquet file as text, a table of large_string columns named by field at a time.

    Raises ValueError when the file cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            chosen = pick(file.schema_arrow.names)
            for batch in file.iter_batches(_ROWS, columns=sorted(set(chosen.values())), use_threads=False):
                yield pa.table({field: _as_text(batch[name]) for field, name in chosen.items()}), []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"table: {path} cannot be read ({str(error).splitlines()[0]})") from None


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return pc.cast(column, pa.large_string())
