"""Compare a shard folder with its manifest and its index, byte by byte."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.specimens.schema import DNA_SUFFIX, IMAGE_SUFFIX, INDEX_SCHEMA, META_SUFFIX
from engine.store.shards import INDEX_NAME, MAX_RANGE, count_specimens, file_sha256, read_index, read_manifest
from engine.store.storage import Location


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
        while stream.read(MAX_RANGE):
            pass
    return stored, stream.digest.hexdigest()
