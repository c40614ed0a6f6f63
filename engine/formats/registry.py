"""Formats that specimens come in: one module each, its name and its options declared here.

A module has `open_dataset(paths: list[Path], **options) -> SpecimenSource`. It is imported when its format is asked
for, so that a format's own needs are nobody else's. To add a format: write the module, add an entry to FORMATS.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.formats.source import SpecimenSource
from engine.store.storage import Location


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a format: a keyword of its open_dataset and, with dashes, a flag of the command line."""

    name: str
    parse: Callable[[str], Any]
    help: str
    metavar: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFormat:
    """An entry of the registry. `takes_seed`: open_dataset wants the ingest's seed; `takes_paths`: it reads files."""

    module: str
    help: str
    options: tuple[Option, ...] = ()
    takes_seed: bool = False
    takes_paths: bool = True


def _mapping(text: str) -> dict[str, str]:
    """Parse "field=column,field=column". Raises ValueError when a part has no "="."""
    parts = [part.partition("=") for part in text.split(",") if part]
    if not parts or any(not (left and middle and right) for left, middle, right in parts):
        raise ValueError(f"columns: got {text!r}, allowed: field=column,field=column")
    return {left.strip(): right.strip() for left, _, right in parts}


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


def _count(text: str) -> int:
    """Parse a number of 0 or more. Raises ValueError for another text."""
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


_PACKAGE = Option(
    name="package", parse=str, metavar="NAME", help="image package (cropped_256, original_256, ...; default: the first)"
)
_PHOTOS = Option(
    name="images", parse=Path, metavar="PATH", help="zip, HDF5 or folder of photos that lies somewhere else"
)
_MAX_NUCLEOTIDES = Option(
    name="max_nucleotides",
    parse=_count,
    metavar="N",
    help="of each barcode that are taken, 0 = all (default: 660, what follows is no barcode any more)",
)

FORMATS: Mapping[str, DatasetFormat] = {
    "table": DatasetFormat(
        module="engine.formats.table",
        help="CSV, TSV, parquet, Excel or Darwin Core files of id, image path, barcode, names, split",
        options=(
            Option(name="images", parse=Path, metavar="DIR", help="folder that image paths start from (the table's)"),
            Option(
                name="columns",
                parse=_mapping,
                metavar="FIELD=COLUMN,...",
                help="columns of other names, e.g. key=museum_no,barcode=coi (fields: key, image, barcode, order, "
                "family, genus, species, name, split, bin_uri, country, latitude, longitude, ...)",
            ),
        ),
    ),
    "bold": DatasetFormat(
        module="engine.formats.bold",
        help="BOLD downloads: v3/v4 combined TSV, v5 (BCDM) TSV or parquet, files or folders; COI-5P records only",
        options=(
            Option(name="images", parse=Path, metavar="DIR", help="folder of photos named by processid or sampleid"),
        ),
    ),
    "bioscan1m": DatasetFormat(
        module="engine.formats.bioscan1m",
        help="BIOSCAN-1M: its folder, or the metadata TSV and beside it zips, an HDF5 file or an image folder",
        options=(
            Option(
                name="split_column",
                parse=str,
                metavar="COLUMN",
                help="{large,medium,small}_{diptera_family,insect_order}, or none (default: large_diptera_family)",
            ),
            Option(
                name="partitions",
                parse=Path,
                metavar="DIR",
                help="CLIBD's partition files instead of a split column (CLIBD_partitioning/, ten of its .txt files)",
            ),
            _PACKAGE,
            _PHOTOS,
            _MAX_NUCLEOTIDES,
        ),
    ),
    "bioscan5m": DatasetFormat(
        module="engine.formats.bioscan5m",
        help="BIOSCAN-5M: its folder, or the metadata CSV and beside it zips or an image folder",
        options=(_PACKAGE, _PHOTOS, _MAX_NUCLEOTIDES),
    ),
    "clibd-hdf5": DatasetFormat(
        module="engine.formats.clibd_hdf5",
        help="CLIBD's preprocessed HDF5 of BIOSCAN-1M or 5M; groups are splits, photos are read in place",
    ),
    "clibd-hir-csv": DatasetFormat(
        module="engine.formats.clibd_hir_csv",
        help="CSV files of CLIBD-HiR (image_file, taxonomy, nucraw, integer labels) and the HDF5 of photos",
    ),
    "barcodebert": DatasetFormat(
        module="engine.formats.barcodebert",
        help="Canadian Invertebrates CSV files as BarcodeBERT reads them; the file's name gives the split",
    ),
    "fasta": DatasetFormat(
        module="engine.formats.fasta",
        help="FASTA of barcodes, names from headers (BOLD, BOLDistilled, SINTAX, BarcodeBERT) or a taxonomy table",
        options=(
            Option(
                name="taxonomy",
                parse=Path,
                metavar="FILE",
                help="table of names by record id or BIN (default: *_TAXONOMY.tsv beside the FASTA)",
            ),
        ),
    ),
    "images": DatasetFormat(
        module="engine.formats.image_folders",
        help="photos in folders named after taxa: one per taxon (Genus_species), or nested with --ranks",
        options=(
            Option(
                name="ranks",
                parse=_words,
                metavar="RANK,...",
                help="what each level of folders is, from the outermost: order, family, genus, species, split, or - "
                "for neither (default: guessed from the depth)",
            ),
        ),
    ),
    "auto": DatasetFormat(
        module="engine.formats.auto",
        help="finds out which of these formats the files have, and says so",
    ),
    "simulated": DatasetFormat(
        module="engine.simulated.source",
        help="simulated specimens: barcodes evolved down a taxonomy, photos drawn",
        options=(
            Option(name="num_specimens", parse=int, metavar="N", help="specimens to make"),
            Option(name="num_species", parse=int, metavar="N", help="species to make"),
        ),
        takes_seed=True,
        takes_paths=False,
    ),
}


def open_dataset(name: str, paths: Sequence[Path | Location], **options: Any) -> SpecimenSource:
    """Open a dataset by the name of its format; its paths are local, or all of them URLs of one folder.

    Raises ValueError for an unknown format or option, a missing path, and for whatever the format finds wrong.
    """
    if name not in FORMATS:
        raise ValueError(f"format: got {name!r}, allowed: {', '.join(FORMATS)}")
    entry = FORMATS[name]
    allowed = [option.name for option in entry.options] + (["seed"] if entry.takes_seed else [])
    for option in options:
        if option not in allowed:
            raise ValueError(f"option of format {name}: got {option!r}, allowed: {', '.join(allowed) or 'none'}")
    if entry.takes_paths and not paths:
        raise ValueError(f"paths of format {name}: got none, allowed: one or more files or folders")
    if not entry.takes_paths and paths:
        raise ValueError(f"paths of format {name}: got {', '.join(map(str, paths))}, allowed: none")
    for path in paths:
        if not path.exists():
            raise ValueError(
                f"path: got {getattr(path, 'shown', path)}, which does not exist; allowed: existing files or folders"
            )
    module = importlib.import_module(entry.module)
    remote = [path for path in paths if isinstance(path, Location) and not path.is_local]
    if remote and len(remote) < len(paths):
        raise ValueError(f"paths: got {', '.join(map(str, paths))}, allowed: all of them local, or all of them URLs")
    if remote:
        from engine.formats.remote import open_remote

        return open_remote(remote, lambda local: module.open_dataset(local, **options))
    return module.open_dataset([Path(str(path)) for path in paths], **options)
