"""Canadian Invertebrates CSV files as BarcodeBERT reads them; barcodes and names, no photos.

A file's split is what its name says (FILE_SPLITS), unless it has a column "split".
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.bioscan import pick_columns
from engine.formats.columns import FileSource, specimens_of, with_column
from engine.formats.delimited import read_delimited
from engine.formats.split_names import our_splits

FILE_SPLITS = {
    "pre_training": "pretrain",
    "supervised_train": "train",
    "supervised_val": "val",
    "supervised_test": "test",
    "unseen": "test_unseen",
}
ALIASES = {
    "key": ("processid", "sampleid"),
    "barcode": ("nucleotides", "dna_barcode"),
    "bin_uri": ("bin_uri", "dna_bin"),
    "order": ("order_name", "order"),
    "family": ("family_name", "family"),
    "genus": ("genus_name", "genus"),
    "species": ("species_name", "species"),
    "split": ("split",),
}
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def split_of_file(name: str) -> str | None:
    """Return the split that a file's name says, None when it says nothing."""
    return FILE_SPLITS.get(name.lower().removesuffix(".gz").rpartition(".")[0])


@dataclasses.dataclass
class BarcodeBertSource(FileSource):
    """Specimens of one or more files; see `engine.formats.registry.SpecimenSource`."""

    def batches(self) -> Iterator[pa.Table]:
        """Read all files. Raises ValueError when one is empty or lacks a required column."""
        self.start()
        for path in self.paths:
            pieces = read_delimited(path, lambda names, path=path: _pick(names, path))  # type: ignore[misc]
            for specimens, _ in specimens_of(pieces, path, self):
                split = pc.coalesce(our_splits(specimens["split"]), pa.scalar(split_of_file(path.name), pa.string()))
                yield with_column(specimens, "split", split)

    def load_image(self, ref: str) -> bytes:
        """Never called: no record has an image reference."""
        raise ValueError(f"missing image file: these files have no photos ({ref})")


def _pick(names: list[str], path: Path) -> dict[str, str]:
    return pick_columns(names, path, ALIASES, ("key", "barcode"), "barcodebert")


def open_dataset(paths: list[Path]) -> BarcodeBertSource:
    """Open the files, or all CSV and TSV files of folders. Raises ValueError when a folder has none."""
    files: list[Path] = []
    for path in paths:
        inside = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.name.lower().endswith(SUFFIXES))
        if not inside:
            raise ValueError(f"barcodebert: got folder {path} without such files, allowed: {', '.join(SUFFIXES)}")
        files += inside
    return BarcodeBertSource(files)
