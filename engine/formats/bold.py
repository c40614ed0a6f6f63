"""BOLD downloads as users have them: v3/v4 "combined" TSV, v5 (BCDM) data packages, also saved again by R or Excel.

Known of these files: carriage returns inside lines, bytes that are no UTF-8, a single blank, "" or "None" for a missing
value, quotes that enclose nothing, several records per specimen (one per marker, or re-sequenced). Only records of COI
are taken, and of several for one processid the one with most nucleotides; the others are counted and named. To know
which, keys and barcodes are read once before everything is. Photos are links in these files and are not fetched; files
in a folder beside them are joined by processid, sampleid or file name, and each one not used is named.
"""

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.columns import (
    FileSource,
    match_columns,
    read_parquet,
    tidy,
    to_specimens,
    with_coordinates,
)
from engine.formats.delimited import Picker, Rows, read_delimited
from engine.formats.image_folders import photos_below
from engine.formats.lookup import name_hashes
from engine.formats.markers import is_coi
from engine.formats.photo_files import read_image_file
from engine.formats.row_order import ROW, LeftOut, located, with_rows
from engine.formats.unpacked import inner_name

log = logging.getLogger(__name__)

MARKER = "COI-5P"
ALIASES_4: Mapping[str, tuple[str, ...]] = {
    "key": ("processid",),
    "sampleid": ("sampleid",),
    "image_names": ("image_ids", "image_urls"),
    "barcode": ("nucleotides",),
    "marker": ("markercode",),
    "order": ("order_name",),
    "family": ("family_name",),
    "genus": ("genus_name",),
    "species": ("species_name",),
    "bin_uri": ("bin_uri",),
    "country": ("country",),
    "latitude": ("lat",),
    "longitude": ("lon",),
}
ALIASES_5: Mapping[str, tuple[str, ...]] = {
    "key": ("processid",),
    "sampleid": ("sampleid",),
    "barcode": ("nuc",),
    "marker": ("marker_code",),
    "order": ("order",),
    "family": ("family",),
    "genus": ("genus",),
    "species": ("species",),
    "name": ("identification",),
    "name_rank": ("identification_rank",),
    "bin_uri": ("bin_uri",),
    "country": ("country/ocean", "country.ocean", "country"),
    "coord": ("coord",),
}
REQUIRED = ("key", "barcode", "marker", "order", "family", "genus", "species")
TEXT_SUFFIXES = (".tsv", ".txt", ".csv")  # behind them also that of a packing
PARQUET_SUFFIXES = (".parquet", ".pq")
_IS_NUCLEOTIDE = np.isin(np.arange(256), np.frombuffer(b"ACGTacgt", dtype=np.uint8))


@dataclasses.dataclass
class BoldSource(FileSource):
    """Records of one or more files; see `engine.formats.registry.SpecimenSource`. `images`: folder of their photos."""

    images: Path | None = None
    photos: "PhotoNames | None" = dataclasses.field(default=None, init=False)

    def batches(self) -> Iterator[pa.Table]:
        """Read all files. Raises ValueError when one is empty or lacks a required column."""
        self.start()
        longest, start = self._longest(), 0
        self.start()
        self.photos = PhotoNames(self.images) if self.images else None
        for path in self.paths:
            for specimens in self._read(path, _pick):
                keep = pa.array(longest[start : start + specimens.num_rows])
                start += specimens.num_rows
                repeated = specimens["key"].filter(pc.invert(keep)).to_pylist()
                assert self.rows is not None  # `_read` numbers what it yields
                kept, numbers = np.asarray(keep), self.rows
                for key, number in zip(repeated, numbers[~kept].tolist(), strict=True):
                    self.skipped.append(LeftOut(key, f"another {MARKER} record of the same processid", number))
                self.rows = numbers[kept]
                yield specimens.filter(keep)
        if self.photos:
            self.skipped += self.photos.unused()
            for note, count in self.photos.notes().items():
                self.names.notes[note] += count

    def load_image(self, ref: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when it is missing."""
        return read_image_file(ref)

    def _read(self, path: Path, pick: "_Pick") -> Iterator[pa.Table]:
        """Yield the file's records of the marker."""
        row, found = 0, False
        for columns, bad_rows in _pieces(path, lambda names: pick(names, path)):
            columns = with_rows(columns, row)
            marker = tidy(columns["marker"]).fill_null("none given")
            taken = is_coi_column(marker)
            others = columns.append_column("named_marker", marker).filter(pc.invert(taken))
            self.skipped += bad_rows
            left_out = [
                ((key or "").strip(), f"record of another marker: {name}")
                for key, name in zip(others["key"].to_pylist(), others["named_marker"].to_pylist(), strict=True)
            ]
            self.skipped += located(left_out, others, np.arange(len(others)))
            records = with_coordinates(columns.filter(taken))
            if self.photos and pick.is_full:
                records = self.photos.join(records)
            numbers = row + np.flatnonzero(taken)
            specimens, without_key = to_specimens(records, path.name, numbers, self.names if pick.is_full else None)
            has_key = np.asarray(pc.is_valid(tidy(records["key"])))
            self.skipped += located(without_key, records, np.flatnonzero(~has_key))
            self.rows = records[ROW].to_numpy()[has_key]
            row, found = row + columns.num_rows, found or bool(columns.num_rows or bad_rows)
            yield specimens
        if not found:
            raise ValueError(f"bold: got {path}, which has no records; allowed: at least one")

    def _longest(self) -> np.ndarray:
        """Of each processid the record with most nucleotides, the first of equal ones: bool [records of the marker]."""
        identities, lengths = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for path in self.paths:
            for specimens in self._read(path, _pick_keys):
                identities.append(name_hashes(specimens["key"].to_pylist()))
                lengths.append(_num_nucleotides(specimens["barcode"]))
                self.start()
        identity, length = np.concatenate(identities), np.concatenate(lengths)
        order = np.lexsort((np.arange(len(length)), -length, identity))
        keep = np.zeros(len(order), dtype=bool)
        keep[order[np.unique(identity[order], return_index=True)[1]]] = True
        return keep


def _pieces(path: Path, pick: Picker) -> Iterator[Rows]:
    return read_parquet(path, pick) if path.suffix.lower() in PARQUET_SUFFIXES else read_delimited(path, pick)


def is_coi_column(markers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return bool [N]: the marker is COI's barcode region."""
    encoded = markers.combine_chunks().dictionary_encode()
    known = pa.array([is_coi(name or "") for name in encoded.dictionary.to_pylist()], pa.bool_())
    return pa.chunked_array([known.take(encoded.indices)])


class _Pick:
    """Says which columns of a file are read; the version is told by the barcode's column."""

    def __init__(self, fields: tuple[str, ...] | None = None) -> None:
        self.fields = fields
        self.is_full = fields is None

    def __call__(self, names: list[str], path: Path) -> dict[str, str]:
        is_5 = "nuc" in {name.lower() for name in names}
        aliases = ALIASES_5 if is_5 else ALIASES_4
        chosen = match_columns(names, aliases)
        missing = [aliases[field][0] for field in REQUIRED if field not in chosen]
        if missing:
            raise ValueError(
                f"bold: {path} lacks columns {', '.join(missing)}; got {', '.join(names)}; "
                "allowed: BOLD v3/v4 combined TSV files, v5 (BCDM) TSV or parquet files"
            )
        return {field: name for field, name in chosen.items() if self.fields is None or field in self.fields}


_pick = _Pick()
_pick_keys = _Pick(("key", "barcode", "marker"))


def _num_nucleotides(barcodes: pa.ChunkedArray) -> np.ndarray:
    """Count A, C, G and T of each barcode, 0 for null: int64 [N]. A regular expression takes 40 times as long."""
    counts = [np.empty(0, dtype=np.int64)]
    for chunk in barcodes.chunks:
        _, bounds, letters = chunk.buffers()
        ends = np.frombuffer(bounds, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        data = np.frombuffer(letters, dtype=np.uint8)[ends[0] : ends[-1]] if letters else np.empty(0, dtype=np.uint8)
        before = np.zeros(len(data) + 1, dtype=np.int32)
        np.cumsum(_IS_NUCLEOTIDE[data], out=before[1:])
        counts.append(np.diff(before[ends - ends[0]]).astype(np.int64))
    return np.concatenate(counts)


class PhotoNames:
    """Photos below a folder, found by a record's processid, sampleid or the names of its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_stem: dict[str, list[str]] = {}
        for place in photos_below(folder):
            stem = Path(place).name.partition(".")[0].lower()
            self.by_stem.setdefault(stem, []).append(place)
            short = re.split(r"[+_ ]", stem)[0]
            if short != stem:
                self.by_stem.setdefault(short, []).append(place)
        self.used: set[str] = set()
        self.further = 0

    def join(self, records: pa.Table) -> pa.Table:
        """Return the records with the field `image`; a record's further photos are counted."""
        asked = [field for field in ("key", "sampleid", "image_names") if field in records.column_names]
        images = []
        for row in zip(*(records[field].to_pylist() for field in asked), strict=True):
            names = [part for cell in row for part in re.split(r"[|;,]\s*", cell or "")]
            stems = [name.strip().split("/")[-1].partition(".")[0].lower() for name in names]
            found = next((self.by_stem[stem] for stem in stems if stem in self.by_stem), [])
            self.used.update(found)
            self.further += max(0, len(found) - 1)
            images.append(str((self.folder / found[0]).resolve()) if found else None)
        return records.append_column("image", pa.array(images, pa.large_string()))

    def unused(self) -> list[tuple[str, str]]:
        """Return (file, reason) of every photo that no record names."""
        places = dict.fromkeys(place for found in self.by_stem.values() for place in found)
        return [
            (place, "photo that no record names by processid, sampleid or file name")
            for place in places
            if place not in self.used
        ]

    def notes(self) -> dict[str, int]:
        """Return remarks and counts for the report."""
        notes = {f"photos of {self.folder} joined by processid, sampleid or file name": len(self.used) - self.further}
        return notes | ({"further photos of a record, not taken": self.further} if self.further else {})


def open_dataset(paths: list[Path], *, images: Path | None = None) -> BoldSource:
    """Open BOLD files, or all such files of folders.

    Args:
        paths: files or folders.
        images: folder of photos; default: a folder given in `paths` that has some.

    Raises ValueError when a folder has no file, or `images` is no folder.
    """
    suffixes = (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)
    files: list[Path] = []
    for path in paths:
        if path.is_dir() and images is None and next(photos_below(path), None):
            images = path
        inside = [path] if path.is_file() else sorted(f for f in path.iterdir() if inner_name(f).endswith(suffixes))
        if not inside:
            raise ValueError(f"bold: got folder {path} without such files, allowed: {', '.join(suffixes)}")
        files += inside
    if images is not None and not images.is_dir():
        raise ValueError(f"--images: got {images}, which is no folder; allowed: a folder of photos")
    return BoldSource(files, images=images)
