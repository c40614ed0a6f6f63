"""What formats of delimited text share: robust reading, one notion of "missing", the shape of a specimen table."""

import codecs
import csv
import gzip
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from engine.schema import SPECIMEN_SCHEMA
from engine.taxonomy import RANKS

MISSING = ("", "NA", "N/A", "NaN", "nan", "None", "none", "null", "NULL", "not_classified", "no_data", "-")
"""Cells that mean "unknown" in the exports of BOLD, BIOSCAN and of the usual tools; compared after trimming."""

_BLOCK_SIZE = 1 << 22  # bytes of text parsed at once; a record (with quoted newlines) must fit


def _byte_as_latin1(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("taxafuse.byte-as-latin1", _byte_as_latin1)


class CleanText(io.RawIOBase):
    """A text file as well-formed UTF-8 bytes with plain newlines, streamed.

    Bytes that are no UTF-8 are taken as Latin-1 one by one (BOLD mixes both inside a file); UTF-16 is recognised by
    its mark; carriage returns go, wherever they stand (BOLD has them in the middle of each line), unless they are all
    the newlines a file has; .gz is unpacked.
    """

    def __init__(self, path: Path) -> None:
        self._file = cast(BinaryIO, gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb"))
        self._pending = self._file.read(1 << 20)
        is_utf16 = self._pending[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if is_utf16 else "utf-8-sig"
        errors = "replace" if is_utf16 else "taxafuse.byte-as-latin1"
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._return = "\n" if b"\r" in self._pending and b"\n" not in self._pending else ""
        self._clean = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        at_end = False
        while not self._clean and not at_end:
            at_end = not self._pending
            text = self._decoder.decode(self._pending, final=at_end)
            self._clean = text.replace("\r", self._return).encode()
            self._pending = self._file.read(1 << 20)
        size = min(len(buffer), len(self._clean))
        buffer[:size] = self._clean[:size]
        self._clean = self._clean[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def read_delimited(
    path: Path, delimiters: str, quoted: bool, pick: Callable[[list[str]], Mapping[str, str]]
) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Read some columns of a delimited text file, all as text.

    Args:
        path: the file, see `CleanText` for what it may look like.
        delimiters: the one that splits the header into most names is taken.
        quoted: whether quotes enclose values; False = quotes are letters.
        pick: gets the header's names, returns the fields to read: {field: column name}. May raise ValueError.

    Returns:
        A table of large_string columns named by field, and (place, reason) of rows whose number of columns is wrong.

    Raises ValueError when the file is empty or cannot be parsed.
    """
    with io.TextIOWrapper(io.BufferedReader(CleanText(path)), encoding="utf-8", newline="\n") as text:
        first = text.readline().rstrip("\n")
    if not first.strip():
        raise ValueError(f"table: got {path}, which is empty; allowed: a header line and at least one row")
    delimiter = max(delimiters, key=first.count)
    reader = csv.reader([first], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    header = next(reader)
    chosen = pick([name.strip() for name in header])
    numbered = [str(position) for position in range(len(header))]  # names may repeat or need trimming
    places = {field: numbered[[name.strip() for name in header].index(name)] for field, name in chosen.items()}
    bad_rows: list[tuple[str, str]] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        lines = row.text.count("\n") + 1
        hint = f" ({lines} lines: an unclosed quote?)" if lines > 1 else ""
        reason = f"wrong number of columns: {row.actual_columns}, the header has {row.expected_columns}{hint}"
        bad_rows.append((f"{path.name} row {row.text[:40]!r}", reason))
        return "skip"

    try:
        with io.BufferedReader(CleanText(path), buffer_size=_BLOCK_SIZE) as file:
            table = pa_csv.read_csv(
                file,
                pa_csv.ReadOptions(column_names=numbered, skip_rows=1, block_size=_BLOCK_SIZE),
                pa_csv.ParseOptions(
                    delimiter=delimiter,
                    quote_char='"' if quoted else False,
                    newlines_in_values=quoted,
                    invalid_row_handler=skip,
                ),
                pa_csv.ConvertOptions(
                    include_columns=sorted(set(places.values()), key=int),
                    column_types=dict.fromkeys(numbered, pa.large_string()),
                ),
            )
    except pa.ArrowInvalid as error:
        raise ValueError(f"table: {path} cannot be parsed ({str(error).splitlines()[0]})") from None
    return pa.table({field: table[place] for field, place in places.items()}), bad_rows


def tidy(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Trim a text column and null what means "missing"."""
    trimmed = pc.utf8_trim_whitespace(pc.cast(column, pa.large_string()))
    return pc.if_else(pc.is_in(trimmed, pa.array(MISSING, pa.large_string())), None, trimmed)


def _specimen_column(columns: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in columns.column_names:
        return pa.nulls(columns.num_rows, field.type)
    column = tidy(columns[field.name])
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
