"""Write tables of one schema, block after block, as the kinds of files that a result can be."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from engine.errors import UserError

EXCEL_ROWS = 2**20 - 1  # of a sheet, below its header


class Writer(Protocol):
    """Takes the blocks of a table."""

    def write_table(self, table: pa.Table) -> None:
        """Write a block."""


class _Json:
    """An array of objects, one a line."""

    def __init__(self, sink: Any) -> None:
        self.sink, self.before = sink, "[\n"

    def write_table(self, table: pa.Table) -> None:
        """Write a block."""
        for row in table.to_pylist():
            self.sink.write(f"{self.before}{json.dumps(row, ensure_ascii=False)}".encode())
            self.before = ",\n"


class _Excel:
    """One sheet; text stays text, whatever it begins with: a name is no formula."""

    def __init__(self, columns: pa.Schema) -> None:
        import openpyxl
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

        self.book = openpyxl.Workbook(write_only=True)
        self.sheet = self.book.create_sheet("taxafuse")
        self.sheet.freeze_panes = "B2"
        self._cell, self._illegal, self._rows = WriteOnlyCell, ILLEGAL_CHARACTERS_RE, 0
        self.sheet.append(columns.names)

    def write_table(self, table: pa.Table) -> None:
        """Write a block. Raises UserError where a sheet has no room for it."""
        self._rows += len(table)
        if self._rows > EXCEL_ROWS:
            raise UserError("--out", f"more than {EXCEL_ROWS:,} rows for an Excel file", "a name ending in .parquet")
        for row in table.to_pylist():
            self.sheet.append([self._made(value) for value in row.values()])

    def _made(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        cell = self._cell(self.sheet, self._illegal.sub("", value))
        cell.data_type = "s"
        return cell


@contextlib.contextmanager
def _parquet(sink: Any, columns: pa.Schema) -> Iterator[Writer]:
    with pq.ParquetWriter(sink, columns, compression="zstd") as writer:
        yield writer


@contextlib.contextmanager
def _csv(sink: Any, columns: pa.Schema) -> Iterator[Writer]:
    with pa_csv.CSVWriter(sink, columns) as writer:
        yield writer


@contextlib.contextmanager
def _json(sink: Any, columns: pa.Schema) -> Iterator[Writer]:
    writer = _Json(sink)
    yield writer
    sink.write(b"[]\n" if writer.before == "[\n" else b"\n]\n")


@contextlib.contextmanager
def _xlsx(sink: Any, columns: pa.Schema) -> Iterator[Writer]:
    writer = _Excel(columns)
    yield writer
    whole = io.BytesIO()
    writer.book.save(whole)
    sink.write(whole.getbuffer())


WRITERS: dict[str, Callable[[Any, pa.Schema], Any]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".xlsx": _xlsx,
    ".json": _json,
}


def check_kind(name: str, ending: str) -> None:
    """Raise UserError for an ending that no writer has, and where the package of one is missing."""
    if ending not in WRITERS:
        raise UserError("--out", name, f"a file ending in {', '.join(WRITERS)}")
    if ending == ".xlsx":
        try:
            import openpyxl  # noqa: F401
        except ImportError:
            raise UserError(
                "--out", f"{name}, and openpyxl is not installed", "pip install 'taxafuse[excel]', or .csv"
            ) from None
