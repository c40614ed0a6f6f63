"""What BIOSCAN-1M and BIOSCAN-5M share: finding the metadata file, reading it, joining photos and cutting barcodes."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.columns import FileSource, match_columns, specimens_of, tidy, with_column
from engine.formats.delimited import read_delimited
from engine.formats.photos import Layout, Photos, find_photos

log = logging.getLogger(__name__)

MAX_NUCLEOTIDES = (
    660  # what follows is no barcode any more, but unsure reads: the bioscan-dataset package cuts here too
)


def find_metadata(paths: list[Path], folders: tuple[str, ...], pattern: str, format_name: str) -> list[Path]:
    """Return the metadata files that the user named, or the one that lies in a folder the user named.

    Raises ValueError when there is none, or several in one folder.
    """
    suffixes = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz")
    given = [path for path in paths if path.is_file() and path.name.lower().endswith(suffixes)]
    for root in (path for path in paths if path.is_dir() and not given):
        places = [root / folder for folder in folders]
        found = {file.resolve(): file for place in places for file in sorted(place.glob(pattern)) if file.is_file()}
        if len(found) > 1:
            names = ", ".join(map(str, found.values()))
            raise ValueError(f"{format_name}: got {root}, which has metadata files {names}; allowed: name one of them")
        given += found.values()
    if not given:
        got = ", ".join(map(str, paths))
        raise ValueError(f"{format_name}: got {got}, without a metadata file; allowed: one that is named {pattern}")
    return given


def photos_beside(paths: list[Path], images: Path | None, package: str | None, layout: Layout) -> Photos | None:
    """Find the photos; say so when there are none. Raises ValueError when `images` is named but has none."""
    if images is not None:
        photos = find_photos([images], layout, package) if images.exists() else None
        if photos is None:
            packages = ", ".join(layout.packages)
            raise ValueError(f"--images: got {images} without photos; allowed: zip, HDF5 or folder of {packages}")
        return photos
    photos = find_photos(paths, layout, package)
    if photos is None:
        log.warning("no photos found beside the metadata: barcodes only (--images names another place)")
    return photos


@dataclasses.dataclass
class BioscanSource(FileSource):
    """Specimens of metadata files, their photos found by name; see `engine.formats.registry.SpecimenSource`.

    Formats say what their columns are and where a specimen's photo lies.
    """

    photos: Photos | None = None
    max_nucleotides: int = MAX_NUCLEOTIDES  # of each barcode that are taken, 0 = all

    def load_image(self, ref: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when it is missing or cannot be read."""
        assert self.photos, "a reference is only given where there are photos"
        return self.photos.load(ref)

    def batches(self) -> Iterator[pa.Table]:
        """Read all files. Raises ValueError when one is empty or lacks a required column."""
        self.start()
        for path in self.paths:
            pieces = read_delimited(path, lambda names, path=path: self.pick(names, path))  # type: ignore[misc]
            for specimens, columns in specimens_of(pieces, path, self):
                yield self.finish(self._with_photos(specimens, columns), columns)

    def pick(self, names: list[str], path: Path) -> dict[str, str]:
        """Return {field: column} for a header; fields beyond a specimen's reach `photo_places` and `finish`."""
        raise NotImplementedError

    def photo_places(self, columns: pa.Table) -> tuple[list[str | None], list[str]]:
        """Return each row's photo: (file name or None, folder it lies in with "/" at the end, or "")."""
        raise NotImplementedError

    def finish(self, specimens: pa.Table, columns: pa.Table) -> pa.Table:
        """Return the specimens with splits of our names, and whatever else a format puts right."""
        raise NotImplementedError

    def _with_photos(self, specimens: pa.Table, columns: pa.Table) -> pa.Table:
        image = pa.nulls(specimens.num_rows, pa.large_string())
        if self.photos and specimens.num_rows:
            image = self.photos.refs(*self.photo_places(columns))
        specimens = with_column(specimens, "image", image)
        if self.max_nucleotides:
            cut = pc.utf8_slice_codeunits(specimens["barcode"], 0, self.max_nucleotides)
            specimens = with_column(specimens, "barcode", cut)
        return specimens


def pick_columns(
    names: list[str], path: Path, aliases: Mapping[str, tuple[str, ...]], required: tuple[str, ...], format_name: str
) -> dict[str, str]:
    """Return {field: column} by aliases. Raises ValueError naming the required fields of which no column is there."""
    chosen = match_columns(names, aliases)
    missing = [" or ".join(aliases[field]) for field in required if field not in chosen]
    if missing:
        raise ValueError(
            f"{format_name}: {path} lacks columns {', '.join(missing)}; got {', '.join(names)}; "
            f"allowed: metadata files of {format_name}"
        )
    return chosen


def texts(columns: pa.Table, field: str) -> list[str | None]:
    """Return a column's trimmed cells, None where missing or where there is no such column."""
    if field not in columns.column_names:
        return [None] * columns.num_rows
    return tidy(columns[field]).to_pylist()
