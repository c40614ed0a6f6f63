"""What formats share: one notion of "missing", the shape of a specimen table, parquet in pieces."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.formats.delimited import Picker, Rows, warn_repeated
from engine.formats.row_order import ROW, located
from engine.formats.understood import NameLog, read_names
from engine.specimens.names import plain
from engine.specimens.schema import SPECIMEN_SCHEMA
from engine.specimens.taxonomy import RANKS
from engine.store.storage import Location

MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "not_classified", "not classified", "no_data", "-")
"""Cells that mean "unknown" in the exports of BOLD, BIOSCAN and of the usual tools; compared trimmed, in lower case."""

_LONGEST = max(map(len, MISSING))
_LIMITS = {"latitude": 90.0, "longitude": 180.0}  # degrees
_ROWS = 1 << 15  # of a parquet file read at once
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_DEGREES = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<degrees>\d+(?:[.,]\d+)?)\s*(?:[°º]|deg|d|\s)?\s*"
    r"(?:(?P<minutes>\d+(?:[.,]\d+)?)\s*['’′m]?\s*)?(?:(?P<seconds>\d+(?:[.,]\d+)?)\s*(?:\"|”|″|''|s(?!\w))?\s*)?"
    r"(?P<side>[NSEWO]?)"
)
_COORD = r"^[\[(]?\s*(?P<latitude>[^,\s]+)\s*,\s*(?P<longitude>[^,\s\])]+)\s*[\])]?$"


@dataclasses.dataclass
class FileSource:
    """What sources of files share; see `engine.formats.registry.SpecimenSource`. Workers get no copy of `skipped`."""

    paths: list[Path]
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list, kw_only=True)
    names: NameLog = dataclasses.field(default_factory=NameLog, kw_only=True)
    rows: np.ndarray | None = dataclasses.field(default=None, kw_only=True)  # of the batch that came last, see ROW

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "skipped": [], "names": NameLog(), "rows": None}

    def start(self) -> None:
        """Forget what an earlier reading left out and named."""
        self.skipped.clear()
        self.names = NameLog()


def tidy(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Trim a text column and null what means "missing"."""
    trimmed = _trim(column)
    start = pc.utf8_lower(pc.utf8_slice_codeunits(trimmed, 0, _LONGEST + 1))  # of a barcode only its first letters
    return pc.if_else(pc.is_in(start, pa.array(MISSING, pa.large_string())), None, trimmed)


def _trim(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_trim_whitespace(pc.cast(column, pa.large_string()))


def _coordinate(column: pa.ChunkedArray, limit: float) -> tuple[pa.ChunkedArray, int]:
    """Return degrees as numbers, unknown where there are none or beyond the limit; and how many cells those are."""
    plain_number = pc.match_substring_regex(column, f"^{_NUMBER}$").fill_null(False)
    degrees = pc.cast(pc.if_else(plain_number, column, None), pa.float64())
    odd = pc.and_(pc.is_valid(column), pc.invert(plain_number))
    if pc.any(odd).as_py():
        read = [
            _degrees(cell) if cell and is_odd else None
            for cell, is_odd in zip(column.to_pylist(), odd.to_pylist(), strict=True)
        ]
        degrees = pc.coalesce(degrees, pa.chunked_array([pa.array(read, pa.float64())]))
    degrees = pc.if_else(pc.less_equal(pc.abs(degrees), limit), degrees, None)
    return degrees, degrees.null_count - column.null_count


def _degrees(cell: str) -> float | None:
    """Return the degrees of "48,1833", "48°11'N", "48 11 30 N" or "48.18 W"; None for other text."""
    found = _DEGREES.fullmatch(plain(cell).strip().upper().replace("DEG", "°"))
    if not found:
        return None
    parts = [float((found[name] or "0").replace(",", ".")) for name in ("degrees", "minutes", "seconds")]
    value = parts[0] + parts[1] / 60 + parts[2] / 3600
    return -value if found["sign"] == "-" or found["side"] in ("S", "W") else value


def _country(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return countries; "NA" is Namibia among codes of two letters."""
    tidied, trimmed = tidy(column), _trim(column)
    is_code = pc.match_substring_regex(tidied, "^[A-Z]{2}$")
    if pc.any(is_code).as_py() and pc.all(is_code).as_py():
        return pc.if_else(pc.equal(trimmed, "NA"), trimmed, tidied)
    return tidied


def _specimen_column(columns: pa.Table, field: pa.Field, log: NameLog | None) -> pa.ChunkedArray:
    if field.name not in columns.column_names:
        return pa.nulls(columns.num_rows, field.type)
    if pa.types.is_floating(field.type):
        degrees, unread = _coordinate(tidy(columns[field.name]), _LIMITS[field.name])
        if unread and log is not None:
            log.notes[f"{field.name} that cannot be read"] += unread
        return degrees
    return pc.cast((_country if field.name == "country" else tidy)(columns[field.name]), field.type)


def to_specimens(
    columns: pa.Table, place: str, rows: np.ndarray | None = None, log: NameLog | None = None
) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Give columns of text the shape of SPECIMEN_SCHEMA, tidied; rows without a key are left out.

    Args:
        columns: some fields of SPECIMEN_SCHEMA and of `engine.formats.understood.CELLS`, any text type; fields it
            lacks are null.
        place: name of the source file, for the report.
        rows: int64 [rows], the number of each row in the file, from 0; default: all rows in order.
        log: counts what was understood of names.

    Returns:
        The table, and (place, reason) of each row left out.
    """
    has_key = (
        pc.is_valid(tidy(columns["key"])) if "key" in columns.column_names else pa.array([False] * columns.num_rows)
    )
    without = np.flatnonzero(~np.asarray(has_key))  # pc.indices_nonzero crashes on a column without chunks
    if len(without):
        columns = columns.filter(has_key)
    if rows is not None:
        without = rows[without]
    names = read_names(columns, log)
    fields = {
        field.name: names[field.name] if field.name in RANKS else _specimen_column(columns, field, log)
        for field in SPECIMEN_SCHEMA
    }
    return pa.table(fields, schema=SPECIMEN_SCHEMA), [(f"{place} row {row + 1}", "no key") for row in without.tolist()]


def specimens_of(pieces: Iterable[Rows], path: Path, source: FileSource) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield (specimens, the columns they come from, row by row) of a file's pieces.

    What is left out and what is named goes to the source's `skipped` and `names`.
    Raises ValueError when the file has no rows at all.
    """
    row, found = 0, False
    for columns, bad_rows in pieces:
        numbers = np.arange(row, row + columns.num_rows)
        specimens, without_key = to_specimens(columns, path.name, numbers, source.names)
        row, found = row + columns.num_rows, found or bool(columns.num_rows or bad_rows)
        if without_key:
            has_key = pc.is_valid(tidy(columns["key"]))
            without_key = located(without_key, columns, np.flatnonzero(~np.asarray(has_key)))
            columns = columns.filter(has_key)
        source.skipped += bad_rows + without_key
        source.rows = columns[ROW].to_numpy() if ROW in columns.column_names else None
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


def read_parquet(path: Path, pick: Picker) -> Iterator[Rows]:
    """Read some columns of a parquet file as text, a table of large_string columns named by field at a time.

    Raises ValueError when the file cannot be read.
    """
    try:
        with Location.parse(path).open_input() as opened, pq.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            chosen = pick(names)
            warn_repeated(names, chosen.values(), path)
            repeats = len(set(names)) < len(names)  # then columns cannot be asked for by name
            wanted = names if repeats else [name for name in names if name in set(chosen.values())]
            for batch in file.iter_batches(_ROWS, columns=None if repeats else wanted, use_threads=False):
                yield pa.table({field: _as_text(batch[wanted.index(name)]) for field, name in chosen.items()}), []
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"table: {path} cannot be read ({str(error).splitlines()[0]})") from None


def with_coordinates(records: pa.Table) -> pa.Table:
    """Take BCDM's "lat,lon" (the field `coord`), in brackets or not, apart."""
    if "coord" not in records.column_names:
        return records
    found = pc.extract_regex(tidy(records["coord"]), _COORD)
    for field in ("latitude", "longitude"):
        if field not in records.column_names:
            records = records.append_column(field, pc.struct_field(found, field))
    return records


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    return pc.cast(column, pa.large_string())
