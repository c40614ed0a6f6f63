"""BOLD downloads as users have them: v3/v4 "combined" TSV, and v5 (BCDM) data packages as TSV or parquet.

Known of these files: carriage returns inside lines, bytes that are no UTF-8, a single blank, "" or "None" for a missing
value, quotes that enclose nothing, several records per specimen (one per marker, or re-sequenced). Only COI-5P records
are taken, and of several for one processid the one with most nucleotides; the others are counted and named. To know
which, keys and barcodes are read once before everything is. Photos are links in these files and are not fetched.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.columns import FileSource, match_columns, read_parquet, tidy, to_specimens
from engine.formats.delimited import Picker, Rows, read_delimited
from engine.formats.lookup import name_hashes

MARKER = "COI-5P"
ALIASES_4: Mapping[str, tuple[str, ...]] = {
    "key": ("processid",),
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
    "barcode": ("nuc",),
    "marker": ("marker_code",),
    "order": ("order",),
    "family": ("family",),
    "genus": ("genus",),
    "species": ("species",),
    "bin_uri": ("bin_uri",),
    "country": ("country/ocean", "country.ocean", "country"),
    "coord": ("coord",),
}
REQUIRED = ("key", "barcode", "marker", "order", "family", "genus", "species")
TEXT_SUFFIXES = (".tsv", ".txt", ".tsv.gz", ".txt.gz")
PARQUET_SUFFIXES = (".parquet", ".pq")
_IS_NUCLEOTIDE = np.isin(np.arange(256), np.frombuffer(b"ACGTacgt", dtype=np.uint8))
_COORD = r"^[\[(]?\s*(?P<latitude>[^,\s]+)\s*,\s*(?P<longitude>[^,\s\])]+)\s*[\])]?$"


@dataclasses.dataclass
class BoldSource(FileSource):
    """Records of one or more files; see `engine.formats.registry.SpecimenSource`."""

    def batches(self) -> Iterator[pa.Table]:
        """Read all files. Raises ValueError when one is empty or lacks a required column."""
        self.skipped.clear()
        longest, start = self._longest(), 0
        self.skipped.clear()
        for path in self.paths:
            for specimens in self._read(path, _pick):
                keep = pa.array(longest[start : start + specimens.num_rows])
                start += specimens.num_rows
                repeated = specimens["key"].filter(pc.invert(keep)).to_pylist()
                self.skipped += [(key, f"another {MARKER} record of the same processid") for key in repeated]
                yield specimens.filter(keep)

    def load_image(self, ref: str) -> bytes:
        """Never called: no record has an image reference."""
        raise ValueError(f"missing image file: BOLD records carry links only ({ref})")

    def _read(self, path: Path, pick: "_Pick") -> Iterator[pa.Table]:
        """Yield the file's records of the marker."""
        row, found = 0, False
        for columns, bad_rows in _pieces(path, lambda names: pick(names, path)):
            marker = tidy(columns["marker"]).fill_null("none given")
            taken = pc.equal(pc.utf8_upper(marker), MARKER)
            others = columns.append_column("named_marker", marker).filter(pc.invert(taken))
            self.skipped += bad_rows
            self.skipped += [
                ((key or "").strip(), f"record of another marker: {name}")
                for key, name in zip(others["key"].to_pylist(), others["named_marker"].to_pylist(), strict=True)
            ]
            records = _with_coordinates(columns.filter(taken))
            specimens, without_key = to_specimens(records, path.name, row + np.flatnonzero(taken))
            self.skipped += without_key
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
                self.skipped.clear()
        identity, length = np.concatenate(identities), np.concatenate(lengths)
        order = np.lexsort((np.arange(len(length)), -length, identity))
        keep = np.zeros(len(order), dtype=bool)
        keep[order[np.unique(identity[order], return_index=True)[1]]] = True
        return keep


def _pieces(path: Path, pick: Picker) -> Iterator[Rows]:
    if path.suffix.lower() in PARQUET_SUFFIXES:
        return read_parquet(path, pick)
    return read_delimited(path, "\t", False, pick)


class _Pick:
    """Says which columns of a file are read; the version is told by the barcode's column."""

    def __init__(self, fields: tuple[str, ...] | None = None) -> None:
        self.fields = fields

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


def _with_coordinates(records: pa.Table) -> pa.Table:
    """Take BCDM's "lat,lon", in brackets or not, apart."""
    if "coord" not in records.column_names:
        return records
    found = pc.extract_regex(tidy(records["coord"]), _COORD)
    for field in ("latitude", "longitude"):
        records = records.append_column(field, pc.struct_field(found, field))
    return records


def open_dataset(paths: list[Path]) -> BoldSource:
    """Open BOLD files, or all such files of folders. Raises ValueError when a folder has none."""
    suffixes = (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)
    files: list[Path] = []
    for path in paths:
        inside = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.name.lower().endswith(suffixes))
        if not inside:
            raise ValueError(f"bold: got folder {path} without such files, allowed: {', '.join(suffixes)}")
        files += inside
    return BoldSource(files)
