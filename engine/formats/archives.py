"""Excel workbooks and Darwin Core archives (a zip or folder with meta.xml), as rows of text."""

import itertools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa

from engine.formats.delimited import Picker, Rows, read_delimited
from engine.formats.unpacked import members, open_unpacked, packing_of
from engine.store.limits import MAX_META_BYTES, MAX_SHEET_PARTS_BYTES, MAX_SHEET_ROWS
from engine.store.storage import open_regular, read_regular

META = "meta.xml"
_CORE = ("occurrence.txt", "occurrence.tsv", "occurrence.csv", "verbatim.txt")
_MEDIA = ("multimedia.txt", "multimedia.tsv", "media.txt", "media.csv", "images.csv")
_ROWS = 1 << 14


def is_archive(path: Path) -> bool:
    """Return whether a path is a Darwin Core archive."""
    if path.is_dir():
        return (path / META).is_file()
    return path.suffix.lower() == ".zip" and path.is_file() and packing_of(path) == "zip" and META in members(path)


def read_archive(path: Path, pick: Picker) -> Iterator[Rows]:
    """Read an archive's occurrences; the addresses of multimedia.txt are the column "image", several in one cell.

    Raises ValueError where it has no core of occurrences, or no table in it can be read.
    """
    names = sorted(file.name for file in path.iterdir()) if path.is_dir() else members(path)
    core = _file_of(path, names, "core", _CORE)
    if core is None:
        raise ValueError(f"Darwin Core archive: got {path} with {', '.join(names[:8])}; allowed: one with {_CORE[0]}")
    media = _file_of(path, names, "extension", _MEDIA)
    images = _images(path, media) if media else {}
    chosen: dict[str, str] = {}

    def pick_core(columns: list[str]) -> dict[str, str]:
        named = dict(pick([*columns, "image"] if images else columns))
        chosen.update(named)
        return {field: column for field, column in named.items() if column in columns}

    for columns, bad_rows in _read(path, core, pick_core):
        if images and chosen.get("image") == "image" and "image" not in columns.column_names:
            cells = [images.get(key or "") for key in columns["key"].to_pylist()]
            columns = columns.append_column("image", pa.array(cells, pa.large_string()))
        yield columns, bad_rows


def _read(path: Path, name: str, pick: Picker) -> Iterator[Rows]:
    return read_delimited(path / name, pick) if path.is_dir() else read_delimited(path, pick, member=name)


def _file_of(path: Path, names: list[str], kind: str, usual: tuple[str, ...]) -> str | None:
    """Return the file that meta.xml gives for "core" or "extension", else the one that is usually named so."""
    try:
        tree = ElementTree.fromstring(_read_meta(path))
    except (ElementTree.ParseError, OSError, KeyError):
        tree = ElementTree.Element("archive")
    places = [
        (part.text or "")
        for element in tree
        if element.tag.split("}")[-1] == kind
        for part in element.iter()
        if part.tag.split("}")[-1] == "location"
    ]
    wanted = [place for place in places if kind == "core" or Path(place).name.lower() in usual]
    return next((name for name in [*wanted, *usual] if name in names), None)


def _read_meta(path: Path) -> bytes:
    if path.is_dir():
        return read_regular(path / META, MAX_META_BYTES)
    with open_unpacked(path, META) as file:
        text = file.read(MAX_META_BYTES + 1)
    if len(text) > MAX_META_BYTES:
        raise ValueError(f"Darwin Core archive: {META} of {path} has more than {MAX_META_BYTES:,} bytes")
    return text


def _images(path: Path, name: str) -> dict[str, str]:
    """Return {id: addresses of its photos, "|" between them}."""
    found: dict[str, list[str]] = {}

    def pick(names: list[str]) -> dict[str, str]:
        """Choose the core's id and the address of the photo."""
        lower = {name.lower(): name for name in names}
        key = next((lower[name] for name in ("gbifid", "coreid", "id", "occurrenceid") if name in lower), names[0])
        place = next((lower[name] for name in ("identifier", "accessuri", "file") if name in lower), names[-1])
        return {"key": key, "place": place}

    for columns, _ in _read(path, name, pick):
        for key, place in zip(columns["key"].to_pylist(), columns["place"].to_pylist(), strict=True):
            if key and place:
                found.setdefault(key, []).append(place)
    return {key: "|".join(places) for key, places in found.items()}


def read_excel(path: Path, pick: Picker) -> Iterator[Rows]:
    """Read the first sheet of a workbook, all cells as text.

    Raises ValueError where openpyxl is not installed, or the file is no workbook.
    """
    try:
        import openpyxl
    except ImportError:
        raise ValueError(
            f"table: got {path}; Excel files need openpyxl (pip install 'taxafuse[excel]'); allowed: also saved as CSV"
        ) from None
    try:
        _refuse_large_parts(path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"table: {path} cannot be read as an Excel file ({error})") from None
    sheet = book.worksheets[0].iter_rows(values_only=True, max_row=MAX_SHEET_ROWS)
    rows = (row for row in sheet if any(cell is not None for cell in row))
    header = [_text(cell) or "" for cell in next(rows, ())]
    if not header:
        raise ValueError(f"table: got {path}, which is empty; allowed: a header line and at least one row")
    chosen = pick([name.strip() for name in header])
    places = {field: [name.strip() for name in header].index(name) for field, name in chosen.items()}
    while batch := list(itertools.islice(rows, _ROWS)):
        columns = {
            field: pa.array([_text(row[at]) if at < len(row) else None for row in batch], pa.large_string())
            for field, at in places.items()
        }
        yield pa.table(columns), []
    book.close()


def _refuse_large_parts(path: Path) -> None:
    """Raise ValueError for a workbook that is no regular file or unpacks to more than is held: openpyxl holds texts."""
    with open_regular(path) as file, zipfile.ZipFile(file) as book:
        size = sum(part.file_size for part in book.infolist())
    if size > MAX_SHEET_PARTS_BYTES:
        raise ValueError(f"{size:,} bytes unpacked, allowed at most {MAX_SHEET_PARTS_BYTES:,}; save it as CSV")


def _text(cell: object) -> str | None:
    """Return a cell as it is shown: 12 for 12.0."""
    if cell is None:
        return None
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
