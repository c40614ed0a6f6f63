"""Finds out which format files have, from their headers and how folders are laid out; says so, and opens them.

A table is seen by its columns' names, FASTA by its first letter, HDF5 by its groups, a folder by the tables in it, else
by the photos. Files that fit no format are passed over where others beside them do. Two formats side by side, or none,
are an error that names what was seen. A format's options belong to the format: name it to give them.
"""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.formats import archives, bioscan1m, bioscan5m, fasta, image_folders, table
from engine.formats.barcodebert import split_of_file
from engine.formats.clibd_hdf5 import MOST_GROUPS, groups_with_barcodes
from engine.formats.columns import match_columns
from engine.formats.hdf5 import TOP_GROUP, Hdf5File, has_child, names_in
from engine.formats.heading import read_header
from engine.formats.photos import HDF5_SUFFIXES
from engine.formats.registry import FORMATS
from engine.formats.registry import open_dataset as open_by_name
from engine.formats.source import SpecimenSource
from engine.formats.unpacked import inner_name, members, open_unpacked, packing_of

log = logging.getLogger(__name__)

_OF_FILES = ("bold", "barcodebert", "clibd-hdf5", "fasta", "table")  # the others need the folder, for photos
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")  # behind them also that of a packing
_FOR_TEXT = ("barcodebert", "bioscan1m", "bioscan5m")  # whose readers take text; in parquet they are tables
PARQUET_SUFFIXES = (".parquet", ".pq")
_FOLDERS = tuple(dict.fromkeys((*bioscan1m.FOLDERS, *bioscan5m.FOLDERS)))  # where a release keeps its metadata
_5M_ONLY = {"chunk", "chunk_number", "coord-lat", "index_bioscan_1m_insect", "bioscan1m_index", "inferred_ranks"}


def format_of_header(names: list[str], file_name: str = "") -> str | None:
    """Return the format whose tables have such columns, None when none has."""
    found = {name.strip().lower() for name in names}

    def has(*columns: str) -> bool:
        return found.issuperset(columns)

    rules: list[tuple[str, Callable[[], bool]]] = [
        ("clibd-hir-csv", lambda: has("image_file", "taxonomy", "nucraw")),
        ("bioscan1m", lambda: has("sampleid", "nucraw", "image_file", "uri")),
        ("bold", lambda: has("processid", "nucleotides", "markercode")),
        ("bold", lambda: has("processid", "nuc", "marker_code")),
        ("bioscan5m", lambda: has("processid", "split") and bool(found & _5M_ONLY) and _has_barcode(found)),
        ("barcodebert", lambda: has("processid") and _has_barcode(found) and bool(split_of_file(file_name))),
        ("barcodebert", lambda: has("processid", "nucleotides", "genus_name", "species_name")),
        ("table", lambda: _is_table(sorted(found))),
    ]
    return next((name for name, fits in rules if fits()), None)


def _has_barcode(columns: set[str]) -> bool:
    return bool(columns & {"dna_barcode", "nucleotides", "nucraw"})


def _is_table(names: list[str]) -> bool:
    fields = match_columns(names, table.ALIASES)
    return "key" in fields and ("image" in fields or "barcode" in fields)


def format_of_file(path: Path) -> str | None:
    """Return a file's format, None when it has none of its own (an archive of photos, a picture, notes).

    Raises ValueError when it cannot be read.
    """
    name = inner_name(path)
    if archives.is_archive(path) or name.endswith(".xlsx"):
        return "table"
    if path.suffix.lower() == ".zip" and (packing_of(path) != "zip" or not _is_zip_of_one(path)):
        return None
    if name.endswith(HDF5_SUFFIXES):
        return "clibd-hdf5" if _has_split_groups(path) else None
    if name.endswith(PARQUET_SUFFIXES):
        return _format_of_parquet(path)
    if fasta.is_fasta(path) or (name.endswith(TABLE_SUFFIXES) and _starts_like_fasta(path)):
        return "fasta"
    return _format_of_text(path) if name.endswith(TABLE_SUFFIXES) and not fasta.is_taxonomy(path) else None


def _format_of_parquet(path: Path) -> str | None:
    try:
        found = format_of_header(pq.read_schema(path).names, path.name)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"auto: {path} cannot be read ({str(error).splitlines()[0]})") from None
    return "table" if found in _FOR_TEXT else found


def _format_of_text(path: Path) -> str | None:
    try:
        return format_of_header(read_header(path), path.name)
    except OSError:
        return None
    except ValueError as error:
        if "cut off" in str(error):
            raise
        return None  # empty, or no text


def _is_zip_of_one(path: Path) -> bool:
    inside = members(path)
    return len(inside) == 1 and inside[0].lower().endswith((*TABLE_SUFFIXES, *fasta.SUFFIXES))


def _starts_like_fasta(path: Path) -> bool:
    try:
        with open_unpacked(path) as file:
            return file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b">")
    except OSError:
        return False


def _has_split_groups(path: Path) -> bool:
    with Hdf5File(path).file() as file:
        return not has_child(file, TOP_GROUP) and bool(groups_with_barcodes(file, names_in(file, MOST_GROUPS)))


def detect(paths: list[Path]) -> tuple[str, list[Path]]:
    """Return (format, the files it was seen by) of files and folders together; for photos, the first one.

    Raises ValueError when they are of several formats or of none.
    """
    found: dict[str, list[Path]] = {}
    for path in paths:
        for file in _files(path):
            name = format_of_file(file)
            if name:
                found.setdefault(name, []).append(file)
    if len(found) > 1:
        seen = ", ".join(f"{name} ({files[0]})" for name, files in sorted(found.items()))
        raise ValueError(f"auto: got files of several formats: {seen}; allowed: one format, or name it and its files")
    if found:
        return found.popitem()
    folders = [path for path in paths if path.is_dir()]
    photo = next((folder / place for folder in folders for place in image_folders.photos_below(folder)), None)
    deeper = next((file for folder in folders for file in _tables_below(folder)), None)
    if photo and len(folders) == len(paths) and not deeper:
        return "images", [photo]
    known = ", ".join(sorted(set(FORMATS) - {"auto", "simulated"}))
    hint = f"; {deeper.parent} holds some: name that folder" if deeper else _hint(paths)
    raise ValueError(f"auto: got {_what_was_seen(paths)}; allowed: files of {known}{hint}")


def _tables_below(folder: Path) -> Iterator[Path]:
    """Yield the files anywhere below a folder that have a format: beside them photos alone would lose names."""
    suffixes = (*TABLE_SUFFIXES, *PARQUET_SUFFIXES, *fasta.SUFFIXES, ".xlsx")
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            if inner_name(Path(name)).endswith(suffixes) and format_of_file(Path(place) / name):
                yield Path(place) / name


def _files(path: Path) -> Iterator[Path]:
    """Return A file, or the files of a folder and of where a release keeps its own."""
    if path.is_file() or archives.is_archive(path):
        yield path
        return
    suffixes = (*TABLE_SUFFIXES, *PARQUET_SUFFIXES, *HDF5_SUFFIXES, *fasta.SUFFIXES, ".xlsx", ".zip")
    seen: set[Path] = set()
    for folder in (place for name in _FOLDERS if (place := path / name).is_dir()):
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
        for file in (
            folder / name
            for name in names
            if inner_name(folder / name).endswith(suffixes) or name.lower().endswith(".zip")
        ):
            if file.is_file() and file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _what_was_seen(paths: list[Path]) -> str:
    """Return A line about files that fit no format: a table's columns, or the names in a folder."""
    seen = []
    for path in paths[:5]:
        if path.is_dir():
            names = sorted(os.listdir(path))
            seen.append(f"{path} with {', '.join(names[:10]) or 'nothing'}{', ...' if len(names) > 10 else ''}")
        elif inner_name(path).endswith(TABLE_SUFFIXES) and path.stat().st_size:
            seen.append(f"{path} with columns {', '.join(read_header(path)[:40])}")
        else:
            seen.append(f"{path}, which is {'empty' if not path.stat().st_size else 'of no known kind'}")
    return "; ".join(seen)


def _hint(paths: list[Path]) -> str:
    """Return what the first table lacks to be one of specimens."""
    for path in paths:
        if path.is_file() and inner_name(path).endswith(TABLE_SUFFIXES) and path.stat().st_size:
            fields = match_columns(read_header(path), table.ALIASES)
            lacks = [] if "key" in fields else ["an id"]
            lacks += [] if "image" in fields or "barcode" in fields else ["barcodes or image files"]
            return f" ({path.name} lacks {' and '.join(lacks)}; `ingest table --columns` names them)" if lacks else ""
    return ""


def open_dataset(paths: list[Path]) -> SpecimenSource:
    """Open files of whatever format they have. Raises ValueError when that cannot be seen."""
    name, files = detect(paths)
    others = f" and {len(files) - 1} more" if len(files) > 1 else ""
    log.warning("auto: format %s, by %s%s", name, files[0], others)
    options = {}
    if name == "bold":
        folder = next((path for path in paths if path.is_dir()), None)
        options = {"images": folder} if folder and next(image_folders.photos_below(folder), None) else {}
    if name in _OF_FILES:
        paths = files
    return open_by_name(name, paths, **options)
