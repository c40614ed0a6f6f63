"""Tables of specimens: delimited text, parquet, Excel or a Darwin Core archive, with id, image, barcode, names, split.

Columns are found by name (ALIASES, case ignored) or named with `columns`; others are ignored. Only the id column and
one of image and barcode are required. Names may stand in a column per rank, as genus and epithet, or in one column of
names of any rank (scientificName). With a column of markers only COI is taken. A specimen's further photos, in rows or
in one cell, are kept as specimens ID#2, ID#3, ...
"""

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.formats import archives
from engine.formats.columns import (
    FileSource,
    match_columns,
    read_parquet,
    specimens_of,
    tidy,
    with_column,
    with_coordinates,
)
from engine.formats.delimited import Rows, read_delimited
from engine.formats.markers import is_coi
from engine.formats.photo_files import read_image_file
from engine.formats.row_order import located, with_rows
from engine.formats.split_names import our_splits
from engine.formats.understood import with_origins
from engine.formats.unpacked import inner_name

log = logging.getLogger(__name__)

ALIASES: Mapping[str, tuple[str, ...]] = {
    "key": (
        *("id", "key", "processid", "sampleid", "specimen_id", "specimenid", "sample_id", "record_id", "recordid"),
        *("gbifid", "occurrenceid", "observation_id", "catalognumber", "catalog_number", "catalogue_number", "uuid"),
        *("coreid", "accession", "accession_number", "materialsampleid"),
    ),
    "image": (
        *(
            "image",
            "image_path",
            "image_file",
            "imagefile",
            "photo",
            "photo_path",
            "photo_file",
            "file_name",
            "filename",
        ),
        *("file", "filepath", "file_path", "image_url", "photo_url", "associatedmedia"),
    ),
    "barcode": (
        *("barcode", "nucleotides", "dna_barcode", "nucraw", "nuc", "sequence", "dna_sequence", "seq", "dna", "coi"),
        *("coi_sequence", "nucleotide_sequence"),
    ),
    "order": ("order", "order_name", "taxon_order_name", "ordo"),
    "family": ("family", "family_name", "taxon_family_name", "familie", "famille", "familia"),
    "genus": ("genus", "genus_name", "taxon_genus_name", "gattung", "genre", "genero"),
    "species": ("species", "species_name", "taxon_species_name", "binomial"),
    "epithet": ("specificepithet", "specific_epithet", "epithet", "species_epithet"),
    "name": (
        *("scientificname", "scientific_name", "acceptedscientificname", "taxon_name", "taxonname", "taxon", "taxa"),
        *("identification", "verbatimscientificname", "latin_name", "determination", "name", "art", "artname"),
        *("espece", "espèce", "especie", "full_name", "fullname"),
    ),
    "name_rank": ("taxonrank", "taxon_rank", "identification_rank", "rank"),
    "marker": ("marker_code", "markercode", "marker", "target_gene", "gene", "locus"),
    "split": ("split",),
    "bin_uri": ("bin_uri", "dna_bin", "uri", "bin"),
    "country": ("country", "country/ocean", "country.ocean", "country_iso", "countrycode", "country_code"),
    "latitude": ("latitude", "lat", "coord-lat", "coord.lat", "decimallatitude", "decimal_latitude", "y_wgs84"),
    "longitude": ("longitude", "lon", "lng", "long", "coord-lon", "coord.lon", "decimallongitude", "decimal_longitude"),
    "coord": ("coord",),
    "group": (),  # of specimens that stay in one split; only as the user names it
}

SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".tab", ".txt", ".xlsx")
_PATHS = re.compile(r"\s*[|;]\s*")


@dataclasses.dataclass
class TableSource(FileSource):
    """Specimens of one or more table files; see `engine.formats.registry.SpecimenSource`."""

    images: Path | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def batches(self) -> Iterator[pa.Table]:
        """Read all files. Raises ValueError when a required column is missing, or a file is empty or none."""
        self.start()
        for path in self.paths:
            for specimens, _ in specimens_of(self._read(path), path, self):
                yield self._resolve(specimens, path)

    def load_image(self, ref: str) -> bytes:
        """Return an image file's bytes. Raises ValueError when it is missing."""
        return read_image_file(ref)

    def _read(self, path: Path) -> Iterator[Rows]:
        origins: dict[str, str] = {}

        def pick(names: list[str]) -> dict[str, str]:
            chosen = self._pick(names, path)
            origins.update({field: f"column {name}" for field, name in chosen.items()})
            return chosen

        first = 0
        for columns, bad_rows in _pieces(path, pick):
            columns, first = with_rows(columns, first), first + columns.num_rows
            columns, others = _of_coi(columns)
            yield with_origins(with_coordinates(self._one_photo_a_row(columns)), origins), bad_rows + others

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
        if boxes := {"x", "y", "w", "h", "bbox", "xmin", "x0"} & {name.lower() for name in names}:
            log.warning("%s: the columns %s are not read: each row has its whole photo", path, ", ".join(sorted(boxes)))
        return chosen

    def _one_photo_a_row(self, columns: pa.Table) -> pa.Table:
        """Give each photo of a specimen, of one cell or of rows with the same id, a row and a key."""
        if "image" not in columns.column_names:
            return columns
        keys, images = columns["key"].to_pylist(), tidy(columns["image"]).to_pylist()
        rows, new_keys, new_images = [], [], []
        seen: dict[str, set[str]] = {}
        for row, (key, cell) in enumerate(zip(keys, images, strict=True)):
            parts = [part for part in _PATHS.split(cell) if part] if cell and _PATHS.search(cell) else [cell]
            if len(parts) > 1 and all("." not in part for part in parts[1:]):
                parts = [cell]  # a file whose name holds such a letter
            for part in parts:
                known = seen.setdefault((key or "").strip(), set())
                number = len(known) + 1 if part and part not in known else 1
                known.add(part or "")
                rows.append(row)
                new_images.append(part)
                new_keys.append(f"{(key or '').strip()}#{number}" if key and number > 1 else key)
        further = sum(a != b for a, b in zip(new_keys, (keys[row] for row in rows), strict=True))
        if not further:
            return columns
        self.names.notes["further photos of an id, kept as ID#2, ID#3, ..."] += further
        columns = columns.take(pa.array(rows))
        if "group" not in columns.column_names:  # photos of one specimen stay in one split
            columns = columns.append_column("group", columns["key"])
        for name, cells in (("key", new_keys), ("image", new_images)):
            columns = columns.set_column(columns.column_names.index(name), name, pa.array(cells, pa.large_string()))
        return columns

    def _resolve(self, specimens: pa.Table, path: Path) -> pa.Table:
        """Make image paths absolute and split names ours."""
        base = str((self.images or path.parent).resolve())
        image = specimens["image"]
        joined = pc.binary_join_element_wise(pa.scalar(base, image.type), image, pa.scalar("/", image.type))
        is_whole = pc.match_substring_regex(image, "^(/|[a-z0-9]+://)")
        image = pc.if_else(is_whole, image, joined)
        return with_column(with_column(specimens, "image", image), "split", our_splits(specimens["split"]))


def _pieces(path: Path, pick: archives.Picker) -> Iterator[Rows]:
    kind = inner_name(path)
    if archives.is_archive(path):
        return archives.read_archive(path, pick)
    if kind.endswith((".parquet", ".pq")):
        return read_parquet(path, pick)
    return archives.read_excel(path, pick) if kind.endswith(".xlsx") else read_delimited(path, pick)


def _of_coi(columns: pa.Table) -> tuple[pa.Table, list[tuple[str, str]]]:
    """Return the rows of COI (or without a marker), and (key, reason) of the others."""
    if "marker" not in columns.column_names:
        return columns, []
    markers = tidy(columns["marker"]).to_pylist()
    taken = np.array([marker is None or is_coi(marker) for marker in markers], dtype=bool)
    keys = columns["key"].to_pylist()
    places = np.flatnonzero(~taken)
    left_out = [(keys[row] or "", f"record of another marker: {markers[row]}") for row in places.tolist()]
    others = located(left_out, columns, places)
    return (columns.filter(pa.array(taken)) if others else columns), others


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
        paths: files (SUFFIXES, also packed), Darwin Core archives, or folders.
        images: folder that relative image paths start from; default: the folder of each table.
        columns: {field: column name} where ALIASES do not help.
    """
    files: list[Path] = []
    for path in paths:
        if archives.is_archive(path):
            files.append(path)
            continue
        inside = (
            sorted(file for file in path.iterdir() if inner_name(file).endswith(SUFFIXES)) if path.is_dir() else [path]
        )
        if not inside or not (inner_name(inside[0]).endswith(SUFFIXES) or inside[0].suffix.lower() == ".zip"):
            raise ValueError(f"table: got {path}, allowed: files of type {', '.join(SUFFIXES)}, or a folder with some")
        files += inside
    if images is not None and not images.is_dir():
        raise ValueError(f"--images: got {images}, which is no folder; allowed: the folder image paths start from")
    return TableSource(files, images, dict(columns or {}))
