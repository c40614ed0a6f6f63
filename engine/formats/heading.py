"""A table's first lines: what stands before its header, its delimiter, its columns."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

from engine.formats.clean_text import CleanText
from engine.store.limits import MAX_COLUMNS, MAX_LINE_BYTES

DELIMITERS = "\t,;|"
_HEAD = 60  # lines that are looked at before the first is read


def split_cells(line: str, delimiter: str, quoted: bool = True) -> tuple[list[str], bool]:
    """Return a line's cells, and whether a quote is open at its end (the last cell then begins with it).

    A quote counts where it begins a cell and the one that ends it is followed by a delimiter or the end.
    """
    if not quoted or '"' not in line:
        return line.split(delimiter), False
    cells: list[str] = []
    place = 0
    while True:
        end = line.find(delimiter, place)
        if line.startswith('"', place):
            close = place + 1
            while (close := line.find('"', close)) >= 0 and line.startswith('""', close):
                close += 2
            if close < 0:
                return [*cells, line[place:]], True
            after = line.find(delimiter, close)
            if not line[close + 1 : after if after >= 0 else len(line)].strip():
                cells.append(line[place + 1 : close].replace('""', '"'))
                if after < 0:
                    return cells, False
                place = after + len(delimiter)
                continue
        cells.append(line[place : end if end >= 0 else len(line)])
        if end < 0:
            return cells, False
        place = end + len(delimiter)


class Header:
    """A file's first lines: what is passed over, its delimiter and its columns.

    Raises ValueError when there is no header line.
    """

    def __init__(self, path: Path, delimiters: str = DELIMITERS, member: str | None = None) -> None:
        with io.TextIOWrapper(io.BufferedReader(CleanText(path, member)), encoding="utf-8", newline="\n") as text:
            read = (text.readline(MAX_LINE_BYTES) for _ in range(_HEAD))
            lines = [line.rstrip("\n") for line in itertools.takewhile(len, read)]
        if not any(line.strip() for line in lines):
            raise ValueError(f"table: got {path}, which is empty; allowed: a header line and at least one row")
        self.num_skipped = 0  # lines before the header
        named = ""
        while self.num_skipped < len(lines) - 1 and _is_preamble(lines, self.num_skipped, delimiters):
            line = lines[self.num_skipped].strip()
            named = line[4:5] if line.lower().startswith("sep=") else named
            self.num_skipped += 1
        first, *rows = lines[self.num_skipped :]
        if len(first) >= MAX_LINE_BYTES:
            raise ValueError(f"table: got {path} with a header line of {MAX_LINE_BYTES:,} letters or more")
        self.delimiter = named or _delimiter(first, [row for row in rows if row.strip()], delimiters)
        names = [name.strip() for name in split_cells(first, self.delimiter)[0]]
        if names[0].startswith("#"):
            names[0] = names[0].lstrip("# ")
        while len(names) > 1 and not names[-1]:
            names.pop()
        cells = [split_cells(row, self.delimiter) for row in rows if row.strip()]
        whole = [row for row, is_open in cells if not is_open]
        if _has_row_names(whole, rows, len(names)):
            names = ["", *names]
        if len(names) > MAX_COLUMNS:
            raise ValueError(f"table: got {path} with {len(names):,} columns, allowed at most {MAX_COLUMNS:,}")
        self.names = names
        opened = sum(is_open for _, is_open in cells)
        self.quoted = not (opened > 5 and 2 * opened > len(cells))  # else the quotes of this file are letters


def _has_row_names(cells: Sequence[list[str]], lines: Sequence[str], width: int) -> bool:
    """Return whether rows begin with R's row names, whose column has no name: numbers from 1, or all in quotes."""
    if not cells or any(len(row) != width + 1 for row in cells) or not any(row[-1].strip() for row in cells):
        return False
    counted = [row[0] for row in cells] == [str(number + 1) for number in range(len(cells))]
    return counted or all(line.startswith('"') for line in lines if line.strip())


def _is_preamble(lines: Sequence[str], at: int, delimiters: str) -> bool:
    line, following = lines[at].strip(), lines[at + 1]
    if not line or line.lower().startswith("sep="):
        return True
    return line.startswith("#") and not any(line.count(d) and line.count(d) == following.count(d) for d in delimiters)


def _delimiter(first: str, rows: Sequence[str], delimiters: str) -> str:
    """Return the delimiter that splits most rows as the header, into most cells."""

    def score(delimiter: str) -> tuple[float, int]:
        width = len(split_cells(first, delimiter)[0])
        widths = [len(split_cells(row, delimiter)[0]) for row in rows]
        alike = sum(width <= found <= width + 1 for found in widths) / max(len(widths), 1)
        return (alike if width > 1 else -1.0, width)

    best = max(delimiters, key=score)
    return best if score(best)[0] >= 0.5 else max(delimiters, key=first.count)


def read_header(path: Path) -> list[str]:
    """Return the trimmed names of a file's header. Raises ValueError when it is empty."""
    return Header(path).names
