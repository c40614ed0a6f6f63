"""BIOSCAN-5M: one CSV of metadata, photos as zips or folders, its own splits.

Record id is processid. Photos lie in `{package}/{split}/[{chunk}/]{processid}.jpg`; the chunk is the first digits of
the processid's md5, two for pretrain, one for train and other_heldout, none elsewhere. It is read as text, and where a
file has lost it (or its leading zeros, in a spreadsheet) it is computed.

Older and derived files are read too: TSV, chunk_number, columns named *_name, nucleotides, uri; "no_data" is missing.
"""

import dataclasses
import hashlib
import re
from pathlib import Path

import pyarrow as pa

from engine.formats.bioscan import MAX_NUCLEOTIDES, BioscanSource, find_metadata, photos_beside, pick_columns, texts
from engine.formats.columns import with_column
from engine.formats.photos import Layout
from engine.formats.split_names import our_splits
from engine.specimens.schema import SPLITS

PACKAGES = ("cropped_256", "original_256", "cropped", "original_full")
FOLDERS = (
    "",
    "bioscan5m",
    "images",
    "bioscan5m/images",
    "metadata/csv",
    "bioscan5m/metadata/csv",
    "BIOSCAN_5M",
    "data/BIOSCAN_5M",
)
LAYOUT = Layout(packages=PACKAGES, folders=FOLDERS, inside=re.compile("|".join(SPLITS)))
METADATA = "*[Mm]etadata*.[ct]sv*"

CHUNK_DIGITS = {"pretrain": 2, "train": 1, "other_heldout": 1}

ALIASES = {
    "key": ("processid",),
    "barcode": ("dna_barcode", "nucleotides", "nucraw"),
    "bin_uri": ("dna_bin", "bin_uri", "uri"),
    "order": ("order", "order_name"),
    "family": ("family", "family_name"),
    "genus": ("genus", "genus_name"),
    "species": ("species", "species_name"),
    "split": ("split",),
    "country": ("country",),
    "latitude": ("coord-lat", "latitude", "lat"),
    "longitude": ("coord-lon", "longitude", "lon"),
    "chunk": ("chunk", "chunk_number"),
}
REQUIRED = ("key", "barcode", "order", "family", "genus", "species", "split")


def chunk_of(processid: str, split: str | None) -> str:
    """Return the folder inside the split's where a specimen's photo lies, "" = none."""
    return hashlib.md5(processid.encode(), usedforsecurity=False).hexdigest()[: CHUNK_DIGITS.get(split or "", 0)]


@dataclasses.dataclass
class Bioscan5mSource(BioscanSource):
    """Specimens of BIOSCAN-5M; see `engine.formats.registry.SpecimenSource`."""

    def pick(self, names: list[str], path: Path) -> dict[str, str]:
        """Columns by their names in the release, or in older ones."""
        return pick_columns(names, path, ALIASES, REQUIRED, "bioscan5m")

    def photo_places(self, columns: pa.Table) -> tuple[list[str | None], list[str]]:
        """Photos are named by processid and lie in {split}/[{chunk}/]."""
        keys, splits, chunks = (texts(columns, field) for field in ("key", "split", "chunk"))
        names = [f"{key}.jpg" if key else None for key in keys]
        folders = []
        for key, split, chunk in zip(keys, splits, chunks, strict=True):
            if len(chunk or "") != CHUNK_DIGITS.get(split or "", 0):
                chunk = chunk_of(key or "", split)
            folders.append("/".join([split or "", *([chunk] if chunk else []), ""]))
        return names, folders

    def finish(self, specimens: pa.Table, columns: pa.Table) -> pa.Table:
        """Return the splits, which are the release's own."""
        return with_column(specimens, "split", our_splits(specimens["split"]))


def open_dataset(
    paths: list[Path],
    *,
    package: str | None = None,
    images: Path | None = None,
    max_nucleotides: int = MAX_NUCLEOTIDES,
) -> Bioscan5mSource:
    """Open BIOSCAN-5M.

    Args:
        paths: the folder of the release, or the metadata CSV and, beside it, zips or an image folder.
        package: of the images, one of PACKAGES; default: the first that is there.
        images: another place to look for photos.
        max_nucleotides: of each barcode that are taken, 0 = all.

    Raises ValueError when something is missing or not allowed.
    """
    metadata = find_metadata(paths, FOLDERS, METADATA, "bioscan5m")
    return Bioscan5mSource(
        metadata, photos=photos_beside(paths, images, package, LAYOUT), max_nucleotides=max_nucleotides
    )
