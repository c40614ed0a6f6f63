"""BIOSCAN-1M: one TSV of metadata, photos as zips, HDF5 or folders; the paper's splits or CLIBD's.

Record id is sampleid, CLIBD's key. Photos lie in `{package}/part{chunk_number}/{image_file}` in zips and folders, and
under image_file in HDF5. As in the bioscan-dataset package, a specimen named to species without a genus gets the
species' first word, and barcodes are cut to 660 nucleotides.

Splits: one of the file's six columns (--split-column), or CLIBD's partition files (--partitions), names as in
`engine.formats.split_names`. CLIBD's all 10 files are needed; a record that none of them lists is left out and named,
as it would else be trained on.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.bioscan import MAX_NUCLEOTIDES, BioscanSource, find_metadata, photos_beside, pick_columns, texts
from engine.formats.columns import with_column
from engine.formats.lookup import NameIndex
from engine.formats.photos import Layout
from engine.formats.split_names import CLIBD_PARTITIONS, SPLIT_ALIASES, our_splits
from engine.store.storage import read_regular

PACKAGES = ("cropped_256", "original_256", "cropped_full", "original_full")
FOLDERS = ("", "bioscan1m", "images", "bioscan1m/images", "bioscan/images", "BIOSCAN_1M", "data/BIOSCAN_1M")
LAYOUT = Layout(packages=PACKAGES, folders=FOLDERS, inside=re.compile(r"part\d+"))
METADATA = "*[Mm]etadata*.tsv*"

SPLIT_COLUMNS = (
    "large_diptera_family",
    "medium_diptera_family",
    "small_diptera_family",
    "large_insect_order",
    "medium_insect_order",
    "small_insect_order",
)
NO_SPLIT = "none"

ALIASES = {
    "key": ("sampleid",),
    "barcode": ("nucraw",),
    "bin_uri": ("uri",),
    "order": ("order",),
    "family": ("family",),
    "genus": ("genus",),
    "species": ("species",),
    "image_file": ("image_file",),
    "chunk": ("chunk_number", "chunk"),
}
REQUIRED = ("key", "barcode", "order", "family", "genus", "species", "image_file")


@dataclasses.dataclass
class Bioscan1mSource(BioscanSource):
    """Specimens of BIOSCAN-1M; see `engine.formats.registry.SpecimenSource`."""

    split_column: str = SPLIT_COLUMNS[0]
    partitions: Path | None = None

    def batches(self) -> Iterator[pa.Table]:
        """Read the metadata. Raises ValueError when it or the partition files are not as they should be."""
        if self.partitions is None:
            yield from super().batches()
            return
        partitions = _Partitions(self.partitions)
        for specimens in super().batches():
            split = partitions.splits(specimens["key"].to_pylist())
            listed = pc.is_valid(split)
            without = specimens["key"].filter(pc.invert(listed)).to_pylist()
            self.skipped += [(key, "in none of the partition files") for key in without]
            yield with_column(specimens, "split", split).filter(listed)
        self.skipped += partitions.unused()

    def pick(self, names: list[str], path: Path) -> dict[str, str]:
        """Columns by their names in the release."""
        chosen = pick_columns(names, path, ALIASES, REQUIRED, "bioscan1m")
        if self.partitions is None and self.split_column != NO_SPLIT:
            chosen |= pick_columns(names, path, {"split": (self.split_column,)}, ("split",), "bioscan1m")
        return chosen

    def photo_places(self, columns: pa.Table) -> tuple[list[str | None], list[str]]:
        """Photos are named by image_file and lie in part{chunk_number}/."""
        chunks = (chunk and chunk.removesuffix(".0") for chunk in texts(columns, "chunk"))
        return texts(columns, "image_file"), [f"part{chunk}/" if chunk else "" for chunk in chunks]

    def finish(self, specimens: pa.Table, columns: pa.Table) -> pa.Table:
        """Fill a missing genus from the species."""
        genus = pc.coalesce(specimens["genus"], pc.replace_substring_regex(specimens["species"], " .*", ""))
        return with_column(with_column(specimens, "genus", genus), "split", our_splits(specimens["split"]))


class _Partitions:
    """CLIBD's partition files: lists of sample ids, one a line."""

    def __init__(self, folder: Path) -> None:
        files = [folder / f"{name}.txt" for name in CLIBD_PARTITIONS]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"--partitions: got {folder} without {', '.join(missing)}; "
                f"allowed: a folder with {', '.join(file.name for file in files)}"
            )
        counts: list[int] = []

        def ids() -> Iterator[str]:
            for file in files:
                lines = [line for line in read_regular(file).decode("utf-8-sig").split("\n") if line.strip()]
                counts.append(len(lines))
                yield from (line.strip() for line in lines)

        self._folder = folder
        self._index = NameIndex(ids())
        self._partition = np.repeat(np.arange(len(files)), counts)
        self._used = np.zeros(len(self._partition), dtype=bool)
        self._splits = pa.array([SPLIT_ALIASES.get(name, name) for name in CLIBD_PARTITIONS])

    def splits(self, keys: list[str]) -> pa.Array:
        """Our split of each sample id, null = in no file."""
        places = self._index.find(keys)
        self._used[places[places >= 0]] = True
        found = pa.array(self._partition[places], mask=places < 0) if len(self._partition) else pa.nulls(len(keys))
        return self._splits.take(found.cast(pa.int64()))

    def unused(self) -> list[tuple[str, str]]:
        """Return what the report says of ids that no record has, or that are listed twice."""
        idle = len(self._used) - int(self._used.sum()) - self._index.num_repeated
        facts = {"ids without a record": idle, "ids listed twice": self._index.num_repeated}
        return [(str(self._folder), f"{fact}: {count}") for fact, count in facts.items() if count]


def open_dataset(
    paths: list[Path],
    *,
    split_column: str | None = None,
    partitions: Path | None = None,
    package: str | None = None,
    images: Path | None = None,
    max_nucleotides: int = MAX_NUCLEOTIDES,
) -> Bioscan1mSource:
    """Open BIOSCAN-1M.

    Args:
        paths: the folder of the release, or the metadata TSV and, beside it, zips, an HDF5 file or an image folder.
        split_column: one of SPLIT_COLUMNS, or "none" for no split.
        partitions: folder of CLIBD's partition files.
        package: of the images, one of PACKAGES; default: the first that is there.
        images: another place to look for photos.
        max_nucleotides: of each barcode that are taken, 0 = all.

    Raises ValueError when something is missing or not allowed.
    """
    if split_column is not None and split_column not in (*SPLIT_COLUMNS, NO_SPLIT):
        raise ValueError(f"--split-column: got {split_column!r}, allowed: {', '.join((*SPLIT_COLUMNS, NO_SPLIT))}")
    if split_column is not None and partitions is not None:
        raise ValueError("--split-column: got it and --partitions, allowed: one of them")
    metadata = find_metadata(paths, FOLDERS, METADATA, "bioscan1m")
    return Bioscan1mSource(
        metadata,
        photos=photos_beside(paths, images, package, LAYOUT),
        max_nucleotides=max_nucleotides,
        split_column=split_column or SPLIT_COLUMNS[0],
        partitions=partitions,
    )
