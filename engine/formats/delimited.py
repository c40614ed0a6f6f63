"""Delimited text as users have it, streamed: odd bytes, quotes, newlines, gzip; a bad row never stops the others."""

import codecs
import csv
import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as pa_csv

_BLOCK_SIZE = 1 << 23  # bytes of text parsed at once, some 10^4 rows; a record (with quoted newlines) must fit

_MAX_LINES = 200  # that a record may go over

Picker = Callable[[list[str]], Mapping[str, str]]
"""Gets a header's names, returns the fields to read, {field: column name}. May raise ValueError."""

Rows = tuple[pa.Table, list[tuple[str, str]]]
"""Some rows, and (place, reason) of those that were left out on the way."""


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
        """Always: `io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the start of a buffer with clean bytes; returns how many, 0 at the end of the file."""
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
        """Close the file, too."""
        self._file.close()
        super().close()


class WholeRecords(io.RawIOBase):
    """Delimited text without the lines that open a quote which no later line closes, streamed.

    Such a line would swallow all that follow. A record may go over several lines if together they have the header's
    number of columns.

    Args:
        source: clean text, see `CleanText`; its first line passes as it is.
        delimiter: between values.
        num_columns: of the header.
        leave_out: is told each line that is left out.
    """

    def __init__(self, source: BinaryIO, delimiter: str, num_columns: int, leave_out: Callable[[str], None]) -> None:
        self._source, self._delimiter, self._num_columns, self._leave_out = source, delimiter, num_columns, leave_out
        self._ready = source.readline()
        self._rest = b""  # a line without its end
        self._waiting: list[bytes] = []  # lines whose quote is open

    def readable(self) -> bool:
        """Always: `io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the start of a buffer with whole lines' bytes; returns how many, 0 at the end of the source."""
        at_end = False
        while not self._ready and not at_end:
            chunk = self._source.read(1 << 20)
            at_end = not chunk
            self._ready = self._whole(chunk, at_end)
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _whole(self, chunk: bytes, at_end: bool) -> bytes:
        data = self._rest + chunk
        cut = len(data) if at_end else data.rfind(b"\n") + 1
        data, self._rest = data[:cut], data[cut:]
        if not self._waiting and b'"' not in data:
            return data
        lines, self._waiting = self._waiting + data.splitlines(keepends=True), []
        good: list[bytes] = []
        place = 0
        while place < len(lines):
            if b'"' not in lines[place] or self._record(lines[place : place + 1]):
                good.append(lines[place])
                place += 1
                continue
            last = self._closing_line(lines, place)
            if last is None and not at_end and len(lines) < place + _MAX_LINES:
                self._waiting = lines[place:]
                break
            if last is not None and len(self._record(lines[place : last + 1])) == self._num_columns:
                good += lines[place : last + 1]
                place = last + 1
            else:
                self._leave_out(lines[place].decode(errors="replace").rstrip("\n"))
                place += 1
        return b"".join(good)

    def _closing_line(self, lines: list[bytes], first: int) -> int | None:
        """The first line with which the record that begins at `first` is whole."""
        following = range(first + 1, min(first + _MAX_LINES, len(lines)))
        ends = (place for place in following if b'"' in lines[place] and self._record(lines[first : place + 1]))
        return next(ends, None)

    def _record(self, lines: list[bytes]) -> list[str]:
        """The values of lines that are one record, [] when they are several or a quote is open at their end."""
        text = [line.decode(errors="replace").rstrip("\n") + "\n" for line in lines]
        try:
            records = list(csv.reader(text, delimiter=self._delimiter, strict=len(text) > 1))
        except csv.Error:
            return []
        is_open = bool(records) and bool(records[0]) and records[0][-1].endswith("\n")
        return [] if len(records) != 1 or is_open else records[0]

    def close(self) -> None:
        """Close the source, too."""
        self._source.close()
        super().close()


def read_delimited(path: Path, delimiters: str, quoted: bool, pick: Picker) -> Iterator[Rows]:
    """Read some columns of a delimited text file, all as text, some 10^4 rows at a time.

    Args:
        path: the file, see `CleanText` for what it may look like.
        delimiters: the one that splits the header into most names is taken.
        quoted: whether quotes enclose values; False = quotes are letters.
        pick: says which columns are read.

    Yields:
        A table of large_string columns named by field, and (place, reason) of rows whose number of columns is wrong.

    Raises ValueError when the file is empty or cannot be parsed.
    """
    header, delimiter = read_header(path, delimiters, quoted)
    chosen = pick(header)
    numbered = [str(position) for position in range(len(header))]  # names may repeat or need trimming
    places = {field: numbered[header.index(name)] for field, name in chosen.items()}
    bad_rows: list[tuple[str, str]] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        """Note a row of the wrong width, and go on without it."""
        lines = row.text.count("\n") + 1
        hint = f" ({lines} lines: an unclosed quote?)" if lines > 1 else ""
        reason = f"wrong number of columns: {row.actual_columns}, the header has {row.expected_columns}{hint}"
        bad_rows.append((f"{path.name} row {row.text[:40]!r}", reason))
        return "skip"

    def unclosed(line: str) -> None:
        bad_rows.append((f"{path.name} row {line[:40]!r}", "unclosed quote"))

    try:
        clean = cast(BinaryIO, io.BufferedReader(CleanText(path), buffer_size=1 << 20))
        whole = io.BufferedReader(WholeRecords(clean, delimiter, len(header), unclosed), 1 << 20) if quoted else clean
        with whole as file:
            reader = pa_csv.open_csv(
                file,
                pa_csv.ReadOptions(column_names=numbered, skip_rows=1, block_size=_BLOCK_SIZE, use_threads=False),
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
            for batch in reader:
                found, bad_rows[:] = list(bad_rows), []
                yield pa.table({field: batch[place] for field, place in places.items()}), found
            if bad_rows:
                yield pa.table({field: pa.array([], pa.large_string()) for field in places}), bad_rows
    except pa.ArrowInvalid as error:
        raise ValueError(f"table: {path} cannot be parsed ({str(error).splitlines()[0]})") from None


def read_header(path: Path, delimiters: str, quoted: bool) -> tuple[list[str], str]:
    """Return the trimmed names of a file's first line, and the delimiter that splits it into most names.

    Raises ValueError when the line is empty.
    """
    with io.TextIOWrapper(io.BufferedReader(CleanText(path)), encoding="utf-8", newline="\n") as text:
        first = text.readline().rstrip("\n")
    if not first.strip():
        raise ValueError(f"table: got {path}, which is empty; allowed: a header line and at least one row")
    delimiter = max(delimiters, key=first.count)
    reader = csv.reader([first], delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    return [name.strip() for name in next(reader)], delimiter
