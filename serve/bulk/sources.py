"""Where specimens to be named, or known ones for a library, come from: every format, and shards.

What a path holds is found out where no format is named: a folder with a manifest is one of shards, a folder of nothing
but photos is `images`, all else is told by `engine.formats.auto`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.formats.auto import detect
from engine.formats.image_folders import photos_below
from engine.formats.registry import FORMATS, open_dataset
from engine.formats.source import SpecimenSource
from engine.specimens.schema import SPECIMEN_SCHEMA, SPLITS, BadSpecimen
from engine.specimens.taxonomy import RANKS
from engine.store.members import COLUMNS, Members
from engine.store.shards import MANIFEST_NAME, ShardReader, read_index
from engine.store.storage import Location

SHARDS, PHOTOS, GUESS = "shards", "images", "auto"
NAMES = (SHARDS, *(name for name, entry in FORMATS.items() if entry.takes_paths))
_ROWS = 1 << 12  # specimens of shards read at a time


@dataclass
class ShardSource:
    """Specimens of one or more folders of shards, in stored order; see `engine.formats.registry.SpecimenSource`."""

    folders: list[Location]
    splits: tuple[str, ...] = ()  # () = all
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def batches(self) -> Iterator[pa.Table]:
        """Read all folders. Raises ValueError for one that holds no shards, and where no split is one of `splits`."""
        self.skipped.clear()
        found = False
        for folder in self.folders:
            index = read_index(folder)
            if self.splits:
                index = index.filter(pc.is_in(index["split"], pa.array(self.splits)))
            members = Members(folder)
            for rows in index.to_batches(max_chunksize=_ROWS):
                found = True
                yield self._specimens(folder, members, rows)
        if not found:
            raise ValueError(f"--split: got {','.join(self.splits) or 'all'}, of which these shards have no specimen")

    def _specimens(self, folder: Location, members: Members, rows: pa.RecordBatch) -> pa.Table:
        places = rows.select(COLUMNS).to_pylist()
        columns: dict[str, Any] = {name: rows[name] for name in ("key", *RANKS, "split", "bin_uri")}
        columns["barcode"] = list(members.barcodes(pa.Table.from_batches([rows])))
        columns["image"] = [
            f"{folder / at['shard']}|{at['image_offset']}|{at['image_size']}" if at["image_size"] else None
            for at in places
        ]
        arrays = [
            pa.array(columns[column.name], column.type)
            if isinstance(columns.get(column.name), list)
            else columns[column.name].cast(column.type)
            if column.name in columns
            else pa.nulls(len(rows), column.type)
            for column in SPECIMEN_SCHEMA
        ]
        return pa.Table.from_arrays(arrays, schema=SPECIMEN_SCHEMA)

    def load_image(self, ref: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when the shard is missing or too short."""
        shard, offset, size = ref.rsplit("|", 2)
        try:
            return ShardReader("/").read(shard, int(offset), int(size))
        except BadSpecimen as error:
            raise ValueError(f"image in {shard}: {error.reason}") from None


def format_of(paths: Sequence[str]) -> str:
    """Return the format of paths that were given without one: shards, images, or auto, which looks closer."""
    places = [Location.parse(path) for path in paths]
    if all((place / MANIFEST_NAME).is_file() and (place / "index.parquet").is_file() for place in places):
        return SHARDS
    if all(place.is_local and place.is_dir() and _holds_photos_only(place.path) for place in places):
        return PHOTOS
    return GUESS


def _holds_photos_only(folder: Path) -> bool:
    """Return whether a folder has photos, and no table, FASTA or archive of specimens."""
    if next(photos_below(folder), None) is None:
        return False
    try:
        return detect([folder])[0] == PHOTOS
    except ValueError:
        return False


def open_source(
    paths: Sequence[str], name: str = "", options: Sequence[str] = (), splits: Sequence[str] = ()
) -> SpecimenSource:
    """Open specimens.

    Args:
        paths: files, folders or URLs.
        name: one of NAMES; "" = found out.
        options: "NAME=VALUE" of the format, as `engine.main ingest FORMAT` has them.
        splits: of shards; () = all.

    Raises:
        ValueError: an unknown format, option or split; a path that does not exist; whatever the format finds wrong.
    """
    for path in paths:
        if not Location.parse(path).exists():
            raise ValueError(f"path: got {path}, which does not exist; allowed: existing files or folders")
    name = name or format_of(paths)
    if name not in NAMES:
        raise ValueError(f"--format: got {name!r}, allowed: {', '.join(NAMES)}")
    if name != SHARDS:
        if splits:
            raise ValueError(f"--split: got {','.join(splits)} for the format {name}, allowed: with shards only")
        return open_dataset(name, [_path(path) for path in paths], **_options(name, options))
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"--split: got {unknown[0]!r}, allowed: {', '.join(SPLITS)}")
    if options:
        raise ValueError(f"--option: got {options[0]!r}, allowed for shards: none")
    return ShardSource([Location.parse(path) for path in paths], tuple(splits))


def _path(text: str) -> Path | Location:
    place = Location.parse(text)
    return place.path if place.is_local else place


def _options(name: str, given: Sequence[str]) -> dict[str, Any]:
    known = {option.name: option for option in FORMATS[name].options}
    chosen: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            shown = ", ".join(f"{option.name}={option.metavar}" for option in known.values()) or "none"
            raise ValueError(f"--option: got {pair!r}, allowed for {name}: {shown}")
        try:
            chosen[key] = known[key].parse(value)
        except ValueError:
            raise ValueError(f"--option {key}: got {value!r}, allowed: {known[key].metavar}") from None
    return chosen
