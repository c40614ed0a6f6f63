"""Delimited text as users have it, streamed: any delimiter, quotes, encodings and line ends.

A row that cannot be read never stops the others: it is left out and named. What stands before the header (blank lines,
"sep=;", comments) is passed over; the delimiter is the one that splits header and rows alike. Rows that end early are
filled up where they reach the columns that a specimen needs, empty cells beyond the header go, and R's row names get a
column of their own.
"""

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.csv as pa_csv

from engine.formats.clean_text import CleanText
from engine.formats.heading import Header, split_cells
from engine.formats.row_order import LeftOut
from engine.store.limits import MAX_LINE_BYTES, MAX_NAMED_ROWS

log = logging.getLogger(__name__)

_BLOCK_SIZE = 1 << 23  # bytes of text parsed at once, some 10^4 rows; a record (with quoted newlines) must fit
_MAX_LINES = 200  # that a record may go over

Picker = Callable[[list[str]], Mapping[str, str]]
"""Gets a header's names, returns the fields to read, {field: column name}. May raise ValueError."""

Rows = tuple[pa.Table, list[tuple[str, str]]]
"""Some rows, and (place, reason) of those that were left out on the way."""


class WholeRecords(io.RawIOBase):
    """Rows of a table as the parser wants them: of the header's width, quotes only where they enclose cells; streamed.

    A line that opens a quote which no later line closes would swallow all that follow: it is left out. So is a row
    that is too wide, or too short for the columns that it needs.

    Args:
        source: clean text, see `CleanText`.
        header: the file's.
        needed: places of columns of which a row has to reach the first group and one of the second.
        leave_out: gets the text of each row that is left out, and the reason.
    """

    def __init__(
        self,
        source: BinaryIO,
        header: Header,
        needed: tuple[Sequence[int], Sequence[int]],
        leave_out: Callable[[str, str], None],
    ) -> None:
        self._source, self._header, self._leave_out = source, header, leave_out
        self._width = len(header.names)
        self._reach = max([*needed[0], min(needed[1], default=0)], default=0) + 1
        self._delimiter = header.delimiter.encode()
        for _ in range(header.num_skipped + 1):
            source.readline()
        self._ready = self._rest = b""
        self._good: list[bytes] = []
        self._before = 0  # good rows of earlier chunks
        self._waiting: list[bytes] = []  # lines whose quote is open
        self._is_too_long = False  # the line whose rest is being passed over

    @property
    def num_good(self) -> int:
        """The rows that were taken so far."""
        return self._before + len(self._good)

    def readable(self) -> bool:
        """Return True: `io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the start of a buffer with whole rows' bytes; return how many, 0 at the end of the source."""
        at_end = False
        while not self._ready and not at_end:
            chunk = self._source.read(1 << 20)
            at_end = not chunk
            self._ready = self._whole(chunk, at_end)
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _lines(self, chunk: bytes, at_end: bool) -> list[bytes]:
        """Return the lines that wait and those that a chunk makes whole; one that gets too long is left out."""
        if self._is_too_long:
            end = chunk.find(b"\n") + 1
            chunk, self._is_too_long = chunk[end:] if end else b"", not end
        data = self._rest + chunk
        cut = len(data) if at_end else data.rfind(b"\n") + 1
        data, self._rest = data[:cut], data[cut:]
        if len(self._rest) > MAX_LINE_BYTES:
            self._leave_out(self._rest[:100].decode(errors="replace"), f"row of more than {MAX_LINE_BYTES:,} bytes")
            self._rest, self._is_too_long = b"", True
        lines, self._waiting = self._waiting + data.split(b"\n"), []
        if lines and not lines[-1]:
            lines.pop()
        return lines

    def _whole(self, chunk: bytes, at_end: bool) -> bytes:
        self._before, self._good = self.num_good, []
        lines, good = self._lines(chunk, at_end), self._good
        place = 0
        while place < len(lines):
            line = lines[place]
            if b'"' not in line:
                if line.count(self._delimiter) == self._width - 1:
                    good.append(line)
                elif line.strip():
                    self._add(good, line.decode(), line.decode().split(self._header.delimiter))
                place += 1
                continue
            text = line.decode()
            cells, is_open = split_cells(text, self._header.delimiter, self._header.quoted)
            if not is_open:
                self._add(good, text, cells)
                place += 1
                continue
            count = self._continued(lines, place, cells)
            held = sum(map(len, lines[place : place + _MAX_LINES]))
            may_end = len(lines) < place + _MAX_LINES and held < MAX_LINE_BYTES and len(cells) <= self._width
            if not count and not at_end and may_end:
                self._waiting = lines[place:]
                break
            if not count:
                self._leave_out(text, "unclosed quote")
            place += 1 + len(self._joined(lines, place, count, good))
        return b"\n".join([*good, b""])

    def _joined(self, lines: list[bytes], first: int, count: int, good: list[bytes]) -> range:
        """Add the record of `count` lines more; return their numbers."""
        if count:
            text = b"\n".join(lines[first : first + count + 1]).decode()
            self._add(good, text, split_cells(text, self._header.delimiter)[0])
        return range(count)

    def _continued(self, lines: list[bytes], first: int, cells: list[str]) -> int:
        """Return how many further lines make the record that begins at `first` whole, 0 = none do."""
        before, parts, is_first = len(cells) - 1, [cells[-1]], True
        held = len(cells[-1])
        if len(lines) > first + 1 and self._is_row(lines[first]) and self._is_row(lines[first + 1]):
            return 0  # two rows of full width, of which the first has a stray quote
        trusts_quotes = lines[first].startswith(b'"')
        for count in range(1, min(_MAX_LINES, len(lines) - first)):
            line = lines[first + count].decode()
            if not trusts_quotes and self._is_row(lines[first + count]):
                return 0  # it is a row of its own
            held += len(line)
            parts.append(line)
            if held > MAX_LINE_BYTES:
                return 0
            if '"' not in line.replace('""', ""):
                continue  # the quote is still open
            tail, is_open = split_cells("\n".join(parts), self._header.delimiter)
            if (is_first and "\n" not in tail[0]) or before + len(tail) > self._width:
                return 0
            if not is_open:
                return count if before + len(tail) == self._width else 0
            before, parts, is_first = before + len(tail) - 1, [tail[-1]], False
        return 0

    def _is_row(self, line: bytes) -> bool:
        return line.count(self._delimiter) == self._width - 1

    def _add(self, good: list[bytes], text: str, cells: list[str]) -> None:
        """Add a row in the header's width, or leave it out."""
        found = len(cells)
        while len(cells) > self._width and not cells[-1].strip():
            cells = cells[:-1]
        if len(cells) < self._width and found >= self._reach:
            cells = cells + [""] * (self._width - found)
        if len(cells) != self._width:
            self._leave_out(text, f"wrong number of columns: {found}, the header has {self._width}")
            return
        good.append(self._header.delimiter.join(map(self._quote, cells)).encode())

    def _quote(self, cell: str) -> str:
        if cell.startswith('"') or self._header.delimiter in cell or "\n" in cell:
            return '"' + cell.replace('"', '""') + '"'
        return cell

    def close(self) -> None:
        """Close the source, too."""
        self._source.close()
        super().close()


def read_delimited(path: Path, pick: Picker, member: str | None = None) -> Iterator[Rows]:
    """Read some columns of a delimited text file, all as text, some 10^4 rows at a time.

    Args:
        path: the file, see `CleanText` for what it may look like.
        pick: says which columns are read; of a name that comes twice the first is taken, and a warning says so.
        member: of a zip.

    Yields:
        A table of large_string columns named by field, and (place, reason) of rows that were left out.

    Raises ValueError when the file is empty or cannot be parsed.
    """
    header = Header(path, member=member)
    chosen = pick(header.names)
    warn_repeated(header.names, chosen.values(), path)
    numbered = [str(position) for position in range(len(header.names))]  # names may repeat or be empty
    places = {field: numbered[header.names.index(name)] for field, name in chosen.items()}
    found = {field: int(place) for field, place in places.items()}
    needed = (
        [found[field] for field in ("key",) if field in found],
        [found[field] for field in ("barcode", "image") if field in found],
    )
    bad_rows: list[LeftOut] = []
    further = num_given = 0

    def leave_out(text: str, reason: str) -> None:
        nonlocal further
        if len(bad_rows) < MAX_NAMED_ROWS:
            bad_rows.append(LeftOut(f"{path.name} row {text[:40].splitlines()[0]!r}", reason, records.num_good))
        else:
            further += 1

    try:
        clean = cast(BinaryIO, io.BufferedReader(CleanText(path, member), buffer_size=1 << 20))
        records = WholeRecords(clean, header, needed, leave_out)
        with io.BufferedReader(records, 1 << 20) as file:
            reader = pa_csv.open_csv(
                file,
                pa_csv.ReadOptions(column_names=numbered, block_size=_BLOCK_SIZE, use_threads=False),
                pa_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True),
                pa_csv.ConvertOptions(
                    include_columns=sorted(set(places.values()), key=int),
                    column_types=dict.fromkeys(numbered, pa.large_string()),
                ),
            )
            for batch in reader:
                num_given += len(batch)  # the reader is ahead: rows left out further on wait for their neighbours
                named = [one for one in bad_rows if one.row < num_given]
                bad_rows[:] = bad_rows[len(named) :]
                yield pa.table({field: batch[place] for field, place in places.items()}), list[tuple[str, str]](named)
    except pa.ArrowInvalid as error:
        if "Empty CSV file" not in str(error):
            raise ValueError(f"table: {path} cannot be parsed ({str(error).splitlines()[0]})") from None
    if further:
        bad_rows.append(LeftOut(path.name, f"further rows that cannot be read: {further:,}", records.num_good))
    if bad_rows:
        empty = pa.table({field: pa.array([], pa.large_string()) for field in places})
        yield empty, list[tuple[str, str]](bad_rows)


def warn_repeated(names: Sequence[str], taken: object, path: Path) -> None:
    """Warn of columns that are read and whose name stands there several times: the first is taken."""
    for name in dict.fromkeys(cast(Iterator[str], taken)):
        if names.count(name) > 1:
            log.warning("%s: %d columns are named %r; the first is taken", path, names.count(name), name)
