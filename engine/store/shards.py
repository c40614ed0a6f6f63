"""Shard folders, local or remote: their manifest and index, reading by offset, verifying.

A folder holds NNNNNN.tar (`tars`), index.parquet (`schema.INDEX_SCHEMA`, in stored order), manifest.json,
report.json and report.html. It is named by a path or a URL (`engine.store.storage`).
"""

import hashlib
import io
import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.specimens.schema import DNA_SUFFIX, IMAGE_SUFFIX, INDEX_SCHEMA, META_SUFFIX, SPLITS, BadSpecimen
from engine.specimens.taxonomy import RANKS
from engine.store.storage import Location

FORMAT_VERSION = 1
INDEX_NAME = "index.parquet"
MANIFEST_NAME = "manifest.json"
REPORT_NAME = "report.json"
PAGE_NAME = "report.html"

_MERGE_GAP = 1 << 16  # bytes between two wanted ranges of a remote shard that are read rather than asked for apart
_MAX_RANGE = 1 << 23  # bytes of one request
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
        manifest = json.loads(place.read_bytes())
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"shards: {place.shown} is no manifest ({error!r}); allowed: {wanted}") from None
    missing = {"counts", "index_sha256", "shards"} - manifest.keys()
    if version == FORMAT_VERSION and missing:
        raise ValueError(f"shards: {place.shown} lacks {', '.join(sorted(missing))}; allowed: {wanted}")
    if version != FORMAT_VERSION:
        raise ValueError(f"shards: {place.shown} has format version {version!r}, allowed: {FORMAT_VERSION}")
    return manifest


def read_index(directory: Path | str | Location, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of index.parquet in stored order (shard, offset), or only some of its columns.

    Raises ValueError when the folder holds no shards of this format version.
    """
    read_manifest(directory)
    place = Location.parse(directory) / INDEX_NAME
    try:
        with place.open_input() as file:
            return pq.read_table(file, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"shards: {place.shown} cannot be read ({str(error).splitlines()[0]})") from None


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
        while data := file.read(_MAX_RANGE):
            digest.update(data)
    return digest.hexdigest()


class _Descriptor:
    """An open local file that is closed when the last reader lets go of it."""

    def __init__(self, place: Location) -> None:
        self.number = -1
        self.number = os.open(place.path, os.O_RDONLY)

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
            data: bytes = file.read_at(size, offset)
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
        if merged and start <= merged[-1][1] + _MERGE_GAP and end - merged[-1][0] <= _MAX_RANGE:
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


def verify(directory: Path | str | Location) -> list[str]:
    """Return what is wrong with a shard folder: checksums, files, offsets, counts, keys; [] when nothing is.

    Reads every byte once. Raises ValueError when the folder has no manifest of this format version.
    """
    folder = Location.parse(directory)
    manifest = read_manifest(folder)
    problems = []
    sizes = folder.sizes()
    if INDEX_NAME not in sizes:
        return [f"{INDEX_NAME} is missing"]
    if file_sha256(folder / INDEX_NAME) != manifest["index_sha256"]:
        problems.append(f"{INDEX_NAME}: its sha256 is not the manifest's")
    try:
        index = read_index(folder)
    except ValueError as error:
        return [*problems, str(error)]
    if not index.schema.equals(INDEX_SCHEMA):
        return [*problems, f"{INDEX_NAME}: columns or their types are not those of INDEX_SCHEMA"]
    if count_specimens(index) != manifest["counts"]:
        problems.append(f"{INDEX_NAME}: its counts are not the manifest's")
    if pc.count_distinct(index["key"]).as_py() != index.num_rows:
        problems.append(f"{INDEX_NAME}: some keys occur more than once")
    listed = [entry["file"] for entry in manifest["shards"]]
    found = sorted(name for name in sizes if name.endswith(".tar"))
    problems += [f"{name} is not in the manifest" for name in found if name not in set(listed)]
    problems += [
        f"{name}: in the index, not in the manifest"
        for name in sorted(set(pc.unique(index["shard"]).to_pylist()) - set(listed))
    ]
    bounds = np.searchsorted(np.asarray(index["shard"].to_pylist(), dtype=str), [*listed, "~"])
    for entry, start, end in zip(manifest["shards"], bounds[:-1], bounds[1:], strict=True):
        size = sizes.get(entry["file"])
        problems += _verify_shard(folder / entry["file"], size, entry, index.slice(start, end - start))
    return problems


def _verify_shard(place: Location, size: int | None, entry: dict[str, Any], rows: pa.Table) -> list[str]:
    """Return what is wrong with one shard of `size` bytes (None = missing), given its manifest entry and index rows."""
    if size is None:
        return [f"{place.name} is missing"]
    counted = f"{place.name}: {rows.num_rows} specimens in the index, the manifest says {entry['specimens']}"
    problems = [counted] * (rows.num_rows != entry["specimens"])
    expected, misplaced = _expected_members(place.name, rows)
    problems += misplaced
    try:
        stored, sha256 = _read_through(place)
    except (tarfile.TarError, OSError) as error:
        stored, sha256 = None, ""
        problems.append(f"{place.name}: no readable tar ({error})")
    if size != entry["bytes"]:
        problems.insert(0, f"{place.name}: {size} bytes, the manifest says {entry['bytes']}")
    elif sha256 != entry["sha256"]:
        problems.insert(0, f"{place.name}: its sha256 is not the manifest's")
    return problems if stored is None else problems + _compare_members(place.name, stored, expected, rows.num_rows)


def _expected_members(shard: str, rows: pa.Table) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return where the index says that members lie (name: offset, size), and specimens that do not adjoin."""
    expected, problems, end = {}, [], 0
    for row in rows.to_pylist():
        if row["offset"] != end:
            problems.append(f"{shard}: {row['key']} starts at {row['offset']} in the index, expected {end}")
        end = row["offset"] + row["size"]
        for suffix, column in ((DNA_SUFFIX, "dna"), (IMAGE_SUFFIX, "image")):
            if row[f"{column}_offset"] >= 0:
                expected[f"{row['key']}.{suffix}"] = (row[f"{column}_offset"], row[f"{column}_size"])
    return expected, problems


def _compare_members(
    shard: str, stored: dict[str, tuple[int, int]], expected: dict[str, tuple[int, int]], specimens: int
) -> list[str]:
    """Compare the members that a tar holds with those of the index."""
    problems = []
    if sum(name.endswith(f".{META_SUFFIX}") for name in stored) != specimens:
        problems.append(f"{shard}: not one .{META_SUFFIX} for each specimen of the index")
    payloads = {name: span for name, span in stored.items() if not name.endswith(f".{META_SUFFIX}")}
    differing = sorted(name for name in payloads.keys() | expected if payloads.get(name) != expected.get(name))
    if differing:
        some = ", ".join(differing[:5])
        problems.append(f"{shard}: {len(differing)} members differ from the index in place or size: {some}")
    return problems


class _Hashed(io.RawIOBase):
    """Read a file forward and hash what goes by."""

    def __init__(self, file: pa.NativeFile) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data: bytes = self.file.read(size)
        self.digest.update(data)
        return data


def _read_through(place: Location) -> tuple[dict[str, tuple[int, int]], str]:
    """Return a tar's members (name: payload's offset and size) and the file's sha256, reading it once."""
    with place.open_input() as file:
        stream = _Hashed(file)
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar:
            stored = {member.name: (member.offset_data, member.size) for member in tar}
        while stream.read(_MAX_RANGE):
            pass
    return stored, stream.digest.hexdigest()
