"""Tables of specimens: CSV, TSV or parquet with columns for id, image path, barcode, ranks and split.

Columns are found by name (ALIASES, case ignored) or named with `columns`; others are ignored. Only the id column and
one of image and barcode are required.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.columns import FileSource, match_columns, read_image_file, read_parquet, specimens_of, with_column
from engine.formats.delimited import Rows, read_delimited
from engine.formats.split_names import our_splits

log = logging.getLogger(__name__)

ALIASES: Mapping[str, tuple[str, ...]] = {
    "key": ("id", "key", "processid", "sampleid", "specimen_id"),
    "image": ("image", "image_path", "image_file"),
    "barcode": ("barcode", "nucleotides", "dna_barcode", "nucraw", "nuc"),
    "order": ("order", "order_name"),
    "family": ("family", "family_name"),
    "genus": ("genus", "genus_name"),
    "species": ("species", "species_name"),
    "split": ("split",),
    "bin_uri": ("bin_uri", "dna_bin", "uri"),
    "country": ("country", "country/ocean", "country.ocean"),
    "latitude": ("latitude", "lat", "coord-lat"),
    "longitude": ("longitude", "lon", "coord-lon"),
}

SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".tab", ".txt")


@dataclasses.dataclass
class TableSource(FileSource):
    """Specimens of one or more table files; see `engine.formats.registry.SpecimenSource`."""

    images: Path | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def batches(self) -> Iterator[pa.Table]:
        """Read all files. Raises ValueError when a required column is missing, or a file is empty or none."""
        self.skipped.clear()
        for path in self.paths:
            for specimens, _ in specimens_of(self._read(path), path, self.skipped):
                yield self._resolve(specimens, path)

    def load_image(self, ref: str) -> bytes:
        """Return an image file's bytes. Raises ValueError when it is missing."""
        return read_image_file(ref)

    def _read(self, path: Path) -> Iterator[Rows]:
        kind = _suffix(path)
        if kind in (".parquet", ".pq"):
            return read_parquet(path, lambda names: self._pick(names, path))
        delimiters = "\t" if kind in (".tsv", ".tab") else ",;\t"
        return read_delimited(path, delimiters, True, lambda names: self._pick(names, path))

    def _pick(self, names: list[str], path: Path) -> dict[str, str]:
        """Return {field: column} for one file."""
        for field, name in self.columns.items():
            if field not in ALIASES:
                raise ValueError(f"field of --columns: got {field!r}, allowed: {', '.join(ALIASES)}")
            if name not in names:
                allowed = f"allowed (columns of {path}): {', '.join(names)}"
                raise ValueError(f"column of field {field}: got {name!r}, {allowed}")
        chosen = {**match_columns(names, ALIASES), **self.columns}
        if "key" not in chosen:
            raise _missing_column("id", ALIASES["key"], names, path)
        if "image" not in chosen and "barcode" not in chosen:
            raise _missing_column("image or barcode", ALIASES["image"] + ALIASES["barcode"], names, path)
        log.info("%s: fields from columns %s", path, chosen)
        return chosen

    def _resolve(self, specimens: pa.Table, path: Path) -> pa.Table:
        """Make image paths absolute and split names ours."""
        base = str((self.images or path.parent).resolve())
        image = specimens["image"]
        joined = pc.binary_join_element_wise(pa.scalar(base, image.type), image, pa.scalar("/", image.type))
        image = pc.if_else(pc.starts_with(image, "/"), image, joined)
        return with_column(with_column(specimens, "image", image), "split", our_splits(specimens["split"]))


def _suffix(path: Path) -> str:
    """The suffix that tells the format, without .gz."""
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def _missing_column(what: str, allowed: tuple[str, ...], names: list[str], path: Path) -> ValueError:
    return ValueError(
        f"column for {what}: none in {path}; got columns {', '.join(names)}; "
        f"allowed names: {', '.join(allowed)} (or name it with --columns FIELD=COLUMN)"
    )


def open_dataset(
    paths: list[Path], *, images: Path | None = None, columns: Mapping[str, str] | None = None
) -> TableSource:
    """Open table files, or all table files of folders.

    Args:
        paths: files (SUFFIXES, text also .gz) or folders.
        images: folder that relative image paths start from; default: the folder of each table.
        columns: {field: column name} where ALIASES do not help.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.iterdir() if _suffix(file) in SUFFIXES) if path.is_dir() else [path]
        if not inside or _suffix(inside[0]) not in SUFFIXES:
            raise ValueError(f"table: got {path}, allowed: files of type {', '.join(SUFFIXES)}, or a folder with some")
        files += inside
    if images is not None and not images.is_dir():
        raise ValueError(f"--images: got {images}, which is no folder; allowed: the folder image paths start from")
    return TableSource(files, images, dict(columns or {}))
