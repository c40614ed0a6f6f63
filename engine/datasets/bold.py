"""BOLD v3/v4 "combined" downloads: tab-separated records, as users have them.

Known of these files: carriage returns inside lines, bytes that are no UTF-8, a single blank for a missing value, quotes
that enclose nothing, several records per specimen (one per marker, or re-sequenced). Only COI-5P records are taken, and
of several for one processid the one with most nucleotides; the others are counted and named. Photos are links in these
files and are not fetched.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.datasets.columns import tidy, to_specimens
from engine.datasets.delimited import read_delimited

MARKER = "COI-5P"
REQUIRED = {
    "key": "processid",
    "barcode": "nucleotides",
    "marker": "markercode",
    "order": "order_name",
    "family": "family_name",
    "genus": "genus_name",
    "species": "species_name",
}
OPTIONAL = {"bin_uri": "bin_uri", "country": "country", "latitude": "lat", "longitude": "lon"}
SUFFIXES = (".tsv", ".txt", ".tsv.gz", ".txt.gz")


@dataclasses.dataclass
class BoldSource:
    """Records of one or more files; see `engine.datasets.SpecimenSource`."""

    paths: list[Path]
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def batches(self) -> Iterator[pa.Table]:
        """Read all files. Raises ValueError when one is empty or lacks a required column."""
        self.skipped.clear()
        parts = [part for path in self.paths for part in self._read(path)]
        yield self._longest_per_specimen(pa.concat_tables(parts))

    def load_image(self, ref: str) -> bytes:
        """Never called: no record has an image reference."""
        raise ValueError(f"missing image file: BOLD records carry links only ({ref})")

    def _read(self, path: Path) -> Iterator[pa.Table]:
        row, found = 0, False
        for columns, bad_rows in read_delimited(path, "\t", False, lambda names: _pick(names, path)):
            marker = tidy(columns["marker"]).fill_null("none given")
            taken = pc.equal(pc.utf8_upper(marker), MARKER)
            others = columns.append_column("named_marker", marker).filter(pc.invert(taken))
            self.skipped += bad_rows
            self.skipped += [
                (key.strip(), f"record of another marker: {name}")
                for key, name in zip(others["key"].to_pylist(), others["named_marker"].to_pylist(), strict=True)
            ]
            specimens, without_key = to_specimens(columns.filter(taken), path.name, row + np.flatnonzero(taken))
            self.skipped += without_key
            row, found = row + columns.num_rows, found or bool(columns.num_rows or bad_rows)
            yield specimens
        if not found:
            raise ValueError(f"bold: got {path}, which has no records; allowed: at least one")

    def _longest_per_specimen(self, records: pa.Table) -> pa.Table:
        """Keep the record with most nucleotides of each processid, the first of equal ones, in the files' order."""
        identity = pc.dictionary_encode(records["key"]).combine_chunks().indices.to_numpy()
        length = pc.fill_null(pc.count_substring_regex(records["barcode"], "[ACGTacgt]"), 0).to_numpy()
        order = np.lexsort((np.arange(len(length)), -length, identity))
        keep = np.zeros(len(order), dtype=bool)
        keep[order[np.unique(identity[order], return_index=True)[1]]] = True
        repeated = records["key"].filter(pa.array(~keep)).to_pylist()
        self.skipped += [(key, f"another {MARKER} record of the same processid") for key in repeated]
        return records.filter(pa.array(keep))


def _pick(names: list[str], path: Path) -> dict[str, str]:
    by_lower = {name.lower(): name for name in names}
    missing = [name for name in REQUIRED.values() if name not in by_lower]
    if missing:
        raise ValueError(
            f"bold: {path} lacks columns {', '.join(missing)}; got {', '.join(names)}; "
            "allowed: BOLD v3/v4 combined TSV files"
        )
    return {field: by_lower[name] for field, name in {**REQUIRED, **OPTIONAL}.items() if name in by_lower}


def open_dataset(paths: list[Path]) -> BoldSource:
    """Open BOLD files, or all .tsv and .txt files of folders."""
    files: list[Path] = []
    for path in paths:
        inside = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.name.lower().endswith(SUFFIXES))
        if not inside:
            raise ValueError(f"bold: got folder {path} without such files, allowed: {', '.join(SUFFIXES)}")
        files += inside
    return BoldSource(files)
