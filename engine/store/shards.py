"""Shard folders, local or remote: their manifest and index, reading by offset, verifying.

A folder holds NNNNNN.tar (`tars`), index.parquet (`schema.INDEX_SCHEMA`, in stored order), manifest.json,
report.json and report.html. It is named by a path or a URL (`engine.store.storage`).
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.specimens.schema import SPLITS, BadSpecimen
from engine.specimens.taxonomy import RANKS
from engine.store.limits import MAX_JSON_BYTES, MAX_OFFSET, MAX_PHOTO_BYTES
from engine.store.storage import Location, open_number

FORMAT_VERSION = 1
INDEX_NAME = "index.parquet"
MANIFEST_NAME = "manifest.json"
REPORT_NAME = "report.json"
PAGE_NAME = "report.html"

_SHARD_NAME = re.compile(r"[0-9]{6,12}\.tar")
_MERGE_GAP = 1 << 16  # bytes between two wanted ranges of a remote shard that are read rather than asked for apart
MAX_RANGE = 1 << 23  # bytes of one request
_REQUESTS = 8  # at once


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:06d}.tar"


def read_manifest(directory: Path | str | Location) -> dict[str, Any]:
    """Return manifest.json. Raises ValueError when there is none, or one of another format version."""
    folder = Location.parse(directory)
    place = folder / MANIFEST_NAME
    wanted = "a folder written by `python -m engine.main ingest`"
    if not place.is_file():
        problem = "it has no manifest.json, so it is none or its ingest did not finish"
        if not folder.exists():
            problem = "it does not exist"
        raise ValueError(f"shards: got {folder.shown}, but {problem}; allowed: {wanted}")
    try:
        manifest = json.loads(place.read_bytes(MAX_JSON_BYTES))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"shards: {place.shown} is no manifest ({error!r}); allowed: {wanted}") from None
    missing = {"counts", "index_sha256", "shards"} - manifest.keys()
    if version == FORMAT_VERSION and missing:
        raise ValueError(f"shards: {place.shown} lacks {', '.join(sorted(missing))}; allowed: {wanted}")
    if version != FORMAT_VERSION:
        raise ValueError(f"shards: {place.shown} has format version {version!r}, allowed: {FORMAT_VERSION}")
    return manifest


def read_index(directory: Path | str | Location, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of index.parquet in stored order (shard, offset), or only some of its columns.

    Raises ValueError when the folder holds no shards of this format version, and for an index that leads out of them.
    """
    manifest = read_manifest(directory)
    place = Location.parse(directory) / INDEX_NAME
    try:
        with place.open_input() as file:
            index = pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"shards: {place.shown} cannot be read ({str(error).splitlines()[0]})") from None
    _refuse_foreign_places(index, manifest, place)
    return index


def _refuse_foreign_places(index: pa.Table, manifest: dict[str, Any], place: Location) -> None:
    """Raise ValueError unless an index names only shards that the manifest lists, and places that can be."""
    if "shard" not in index.column_names:
        return
    try:
        listed = {entry["file"] for entry in manifest["shards"]}
    except (TypeError, KeyError) as error:
        raise ValueError(f"shards: {place.parent.shown}/{MANIFEST_NAME} lists no shards ({error!r})") from None
    for name in pc.unique(index["shard"]).to_pylist():
        if name not in listed or not _SHARD_NAME.fullmatch(name):
            raise ValueError(f"shards: {place.shown} names the shard {name!r:.200}, allowed: those of {MANIFEST_NAME}")
    for name in set(index.column_names) & {"offset", "size", "image_offset", "image_size", "dna_offset", "dna_size"}:
        low, high = (-1, MAX_OFFSET) if "offset" in name else (0, MAX_PHOTO_BYTES)
        if name == "size":
            high *= 2  # photo, barcode, description
        values = index[name]
        row = pc.index(pc.or_(pc.less(values, low), pc.greater(values, high)), True).as_py()
        if row >= 0:
            raise ValueError(f"shards: {place.shown} has {name} {values[row]} in row {row}, allowed: {low} to {high}")


def check_files(directory: Path | str | Location) -> None:
    """Check the size of every shard, before a run that would otherwise go on without its specimens.

    Raises ValueError when one is missing or not as long as the manifest says.
    """
    folder = Location.parse(directory)
    shards = read_manifest(folder)["shards"]
    sizes = folder.sizes()
    for entry in shards:
        size = sizes.get(entry["file"])
        if size != entry["bytes"]:
            got = "which is missing" if size is None else f"which has {size} bytes"
            place = (folder / entry["file"]).shown
            raise ValueError(f"shards: got {place}, {got}; allowed: {entry['bytes']} bytes, as the manifest says")


def file_sha256(place: Path | str | Location) -> str:
    """Return the sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with Location.parse(place).open_input() as file:
        while data := file.read(MAX_RANGE):
            digest.update(data)
    return digest.hexdigest()


class _Descriptor:
    """An open local file that is closed when the last reader lets go of it."""

    def __init__(self, place: Location) -> None:
        self.number = -1
        self.number = open_number(place.path)

    def size(self) -> int:
        return os.fstat(self.number).st_size

    def read_at(self, size: int, offset: int) -> bytes:
        return os.pread(self.number, size, offset)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class ShardReader:
    """Read bytes of shards by offset. Thread-safe, picklable (open files stay behind), one descriptor per shard.

    At most `max_open` files stay open, the oldest is closed first. Remote shards cost a request a read; `fetch` makes
    few of many.
    """

    def __init__(self, directory: Path | str | Location, max_open: int = 256) -> None:
        self.directory = Location.parse(directory)
        self.max_open = max_open
        self._files: dict[str, Any] = {}  # what read_at(size, offset) reads from
        self._ahead: dict[str, list[tuple[int, bytes]]] = {}

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard from `offset`. Raises BadSpecimen when the shard is missing or too short.

        `shard` is a name in the folder; an absolute path or a URL stands for itself.
        """
        for start, held in self._ahead.get(shard, ()):
            if start <= offset and offset + size <= start + len(held):
                return held[offset - start : offset - start + size]
        file = self._files.get(shard) or self._open(shard)
        try:
            data: bytes = file.read_at(max(0, min(size, file.size() - offset)), offset)  # believe the file's length
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise BadSpecimen("", shard, f"cannot be read: {reason}") from None
        if len(data) != size:
            raise BadSpecimen("", shard, f"file ends early: {size} bytes wanted at {offset}, {len(data)} there")
        return data

    def fetch(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Read (shard, offset, size) ranges that `read` will ask for, near ones together, several requests at a time.

        They replace what was fetched before. Does nothing for local shards, whose reads cost no request; a range that
        cannot be read is left to `read`, which says why.
        """
        wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for shard, offset, size in ranges:
            if not (self.directory / shard).is_local:
                wanted[shard].append((offset, offset + size))
        self._ahead = {}
        if not wanted:
            return
        requests = [(shard, *span) for shard, spans in wanted.items() for span in _merged(spans)]
        with ThreadPoolExecutor(min(_REQUESTS, len(requests))) as pool:
            ahead: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
            for (shard, start, _), data in zip(requests, pool.map(self._try_read, requests), strict=True):
                ahead[shard].append((start, data))
        self._ahead = dict(ahead)

    def _try_read(self, request: tuple[str, int, int]) -> bytes:
        shard, start, end = request
        try:
            return self.read(shard, start, end - start)
        except BadSpecimen:
            return b""

    def _open(self, shard: str) -> Any:
        while len(self._files) >= self.max_open:
            self._files.pop(next(iter(self._files)), None)
        place = self.directory / shard
        try:
            file = _Descriptor(place) if place.is_local else place.open_input()
        except OSError as error:
            raise BadSpecimen("", shard, f"cannot be opened: {error.strerror}") from None
        return self._files.setdefault(shard, file)

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        self._files.clear()
        self._ahead = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_ahead": {}}


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort (start, end) ranges and join those that lie near each other, none longer than a request should be."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1] + _MERGE_GAP and end - merged[-1][0] <= MAX_RANGE:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def count_specimens(index: pa.Table) -> dict[str, Any]:
    """Count for a manifest: specimens in all, per split, with a label per rank, with an image, a barcode, both."""
    splits = pc.value_counts(index["split"]).to_pylist()
    image = pc.greater_equal(index["image_offset"], 0)
    barcode = pc.greater_equal(index["dna_offset"], 0)
    return {
        "specimens": index.num_rows,
        "splits": {entry["values"]: entry["counts"] for entry in sorted(splits, key=_split_order)},
        "labelled": {rank: index.num_rows - index[rank].null_count for rank in RANKS},
        "modalities": {
            "image": pc.sum(image).as_py() or 0,
            "barcode": pc.sum(barcode).as_py() or 0,
            "both": pc.sum(pc.and_(image, barcode)).as_py() or 0,
        },
    }


def _split_order(entry: dict[str, Any]) -> int:
    return SPLITS.index(entry["values"]) if entry["values"] in SPLITS else len(SPLITS)
