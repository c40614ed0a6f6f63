"""Shards: WebDataset tars with an index, a manifest and checksums; written atomically, read by offset, verified.

A folder holds NNNNNN.tar (members KEY.dna, KEY.jpg, KEY.json, one specimen after another), index.parquet
(`engine.schema.INDEX_SCHEMA`, in stored order), manifest.json and report.json. The same specimens give the same bytes:
tar headers carry no time, no owner, and members are sorted.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.schema import DNA_SUFFIX, IMAGE_SUFFIX, INDEX_SCHEMA, META_SUFFIX, SPLITS, BadSpecimen, Specimen
from engine.taxonomy import RANKS

FORMAT_VERSION = 1
INDEX_NAME = "index.parquet"
MANIFEST_NAME = "manifest.json"
REPORT_NAME = "report.json"
MAX_KEY_LENGTH = 90  # a tar header's name field has 100 bytes, suffix included

_BLOCK = tarfile.BLOCKSIZE
_END_OF_ARCHIVE = b"\0" * (2 * _BLOCK)
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"{number:06d}.tar"


def tar_key(identifier: str) -> str:
    """Return the key of a specimen inside a tar: no dots, slashes, spaces or other characters that webdataset splits.

    Every byte outside A-Z a-z 0-9 _ - becomes %XX, so different identifiers have different keys. One that would get
    longer than 90 characters keeps its first 70 and a hash. The identifier itself stays in the specimen's JSON.
    """
    raw = identifier.encode()
    key = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in raw)
    if len(key) <= MAX_KEY_LENGTH:
        return key
    return f"{key[:70]}-{hashlib.blake2b(raw, digest_size=8).hexdigest()}"


def _members(specimen: Specimen) -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, payload) in the order of suffixes."""
    if specimen.barcode is not None:
        yield DNA_SUFFIX, specimen.barcode.encode()
    if specimen.image is not None:
        yield IMAGE_SUFFIX, specimen.image
    meta = {
        "id": specimen.id,
        **dict(zip(RANKS, specimen.names, strict=True)),
        "split": specimen.split,
        "bin_uri": specimen.bin_uri,
        "country": specimen.country,
    }
    for name in ("latitude", "longitude"):  # only where known: few sources have them
        if getattr(specimen, name) is not None:
            meta[name] = getattr(specimen, name)
    yield META_SUFFIX, json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode()


def _tar_entry(name: str, payload: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    info.mode = 0o644  # mtime, uid and gid are 0, owner names empty
    return info.tobuf(tarfile.USTAR_FORMAT) + payload + b"\0" * (-len(payload) % _BLOCK)


def write_shard(path: Path | str, specimens: Iterable[Specimen]) -> pa.Table:
    """Write one tar, atomically: the file appears complete or not at all.

    Returns the index rows (INDEX_SCHEMA), one per specimen in the given order. Keys must differ; whoever calls sees
    to it (`engine.ingest` skips duplicates and names them).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    rows: list[dict[str, Any]] = []
    offset = 0
    try:
        with temporary.open("wb") as file:
            for specimen in specimens:
                row = _index_row(specimen, path.name, offset)
                for suffix, payload in _members(specimen):
                    if suffix != META_SUFFIX:
                        column = "image" if suffix == IMAGE_SUFFIX else "dna"
                        row[f"{column}_offset"], row[f"{column}_size"] = offset + _BLOCK, len(payload)
                    offset += file.write(_tar_entry(f"{row['key']}.{suffix}", payload))
                row["size"] = offset - row["offset"]
                rows.append(row)
            file.write(_END_OF_ARCHIVE)
            file.write(b"\0" * (-(offset + len(_END_OF_ARCHIVE)) % tarfile.RECORDSIZE))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def _index_row(specimen: Specimen, shard: str, offset: int) -> dict[str, Any]:
    return {
        "key": tar_key(specimen.id),
        "shard": shard,
        "offset": offset,
        "image_offset": -1,
        "image_size": 0,
        "dna_offset": -1,
        "dna_size": 0,
        **dict(zip(RANKS, specimen.names, strict=True)),
        "bin_uri": specimen.bin_uri,
        "split": specimen.split,
        "barcode_length": specimen.barcode_length,
    }


def read_manifest(directory: Path | str) -> dict[str, Any]:
    """Return manifest.json. Raises ValueError when there is none, or one of another format version."""
    path = Path(directory) / MANIFEST_NAME
    wanted = "a folder written by `python -m engine.main ingest`"
    if not path.is_file():
        problem = "it has no manifest.json, so it is none or its ingest did not finish"
        if not path.parent.exists():
            problem = "it does not exist"
        raise ValueError(f"shards: got {directory}, but {problem}; allowed: {wanted}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"shards: {path} is no manifest ({error!r}); allowed: {wanted}") from None
    missing = {"counts", "index_sha256", "shards"} - manifest.keys()
    if version == FORMAT_VERSION and missing:
        raise ValueError(f"shards: {path} lacks {', '.join(sorted(missing))}; allowed: {wanted}")
    if version != FORMAT_VERSION:
        raise ValueError(f"shards: {path} has format version {version!r}, allowed: {FORMAT_VERSION}")
    return manifest


def read_index(directory: Path | str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of index.parquet in stored order (shard, offset), or only some of its columns.

    Raises ValueError when the folder holds no shards of this format version.
    """
    read_manifest(directory)
    path = Path(directory) / INDEX_NAME
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"shards: {path} cannot be read ({str(error).splitlines()[0]})") from None


def check_files(directory: Path | str) -> None:
    """A look at the size of every shard, before a run that would otherwise go on without its specimens.

    Raises ValueError when one is missing or not as long as the manifest says.
    """
    for entry in read_manifest(directory)["shards"]:
        path = Path(directory) / entry["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            got = "which is missing" if size is None else f"which has {size} bytes"
            raise ValueError(f"shards: got {path}, {got}; allowed: {entry['bytes']} bytes, as the manifest says")


def file_sha256(path: Path | str) -> str:
    """sha256 (hex) of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Descriptor:
    """An open file that is closed when the last reader lets go of it."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class ShardReader:
    """Reads bytes of shards by offset. Thread-safe, picklable (open files stay behind), one descriptor per shard.

    At most `max_open` files stay open, the oldest is closed first.
    """

    def __init__(self, directory: Path | str, max_open: int = 256) -> None:
        self.directory = Path(directory)
        self.max_open = max_open
        self._files: dict[str, _Descriptor] = {}

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a shard from `offset`. Raises BadSpecimen when the shard is missing or too short."""
        file = self._files.get(shard) or self._open(shard)
        data = os.pread(file.number, size, offset)
        if len(data) != size:
            raise BadSpecimen("", shard, f"file ends early: {size} bytes wanted at {offset}, {len(data)} there")
        return data

    def _open(self, shard: str) -> _Descriptor:
        while len(self._files) >= self.max_open:
            self._files.pop(next(iter(self._files)), None)
        try:
            file = _Descriptor(self.directory / shard)
        except OSError as error:
            raise BadSpecimen("", shard, f"cannot be opened: {error.strerror}") from None
        return self._files.setdefault(shard, file)

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        self._files.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def count_specimens(index: pa.Table) -> dict[str, Any]:
    """Counts of a manifest: specimens in all, per split, with a label per rank, with an image, a barcode, both."""
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


def verify(directory: Path | str) -> list[str]:
    """Return what is wrong with a shard folder: checksums, files, offsets, counts, keys; [] when nothing is.

    Reads every byte once. Raises ValueError when the folder has no manifest of this format version.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    problems = []
    if not (directory / INDEX_NAME).is_file():
        return [f"{INDEX_NAME} is missing"]
    if file_sha256(directory / INDEX_NAME) != manifest["index_sha256"]:
        problems.append(f"{INDEX_NAME}: its sha256 is not the manifest's")
    try:
        index = read_index(directory)
    except ValueError as error:
        return [*problems, str(error)]
    if not index.schema.equals(INDEX_SCHEMA):
        return [*problems, f"{INDEX_NAME}: columns or their types are not those of INDEX_SCHEMA"]
    if count_specimens(index) != manifest["counts"]:
        problems.append(f"{INDEX_NAME}: its counts are not the manifest's")
    if pc.count_distinct(index["key"]).as_py() != index.num_rows:
        problems.append(f"{INDEX_NAME}: some keys occur more than once")
    listed = [entry["file"] for entry in manifest["shards"]]
    found = sorted(path.name for path in directory.glob("*.tar"))
    problems += [f"{name} is not in the manifest" for name in found if name not in listed]
    problems += [
        f"{name}: in the index, not in the manifest"
        for name in sorted(set(pc.unique(index["shard"]).to_pylist()) - set(listed))
    ]
    bounds = np.searchsorted(np.asarray(index["shard"].to_pylist(), dtype=str), [*listed, "~"])
    for entry, start, end in zip(manifest["shards"], bounds[:-1], bounds[1:], strict=True):
        problems += _verify_shard(directory / entry["file"], entry, index.slice(start, end - start))
    return problems


def _verify_shard(path: Path, entry: dict[str, Any], rows: pa.Table) -> list[str]:
    if not path.is_file():
        return [f"{path.name} is missing"]
    problems = []
    if path.stat().st_size != entry["bytes"]:
        problems.append(f"{path.name}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
    elif file_sha256(path) != entry["sha256"]:
        problems.append(f"{path.name}: its sha256 is not the manifest's")
    if rows.num_rows != entry["specimens"]:
        problems.append(f"{path.name}: {rows.num_rows} specimens in the index, the manifest says {entry['specimens']}")
    expected = {}
    end = 0
    for row in rows.to_pylist():
        if row["offset"] != end:
            problems.append(f"{path.name}: {row['key']} starts at {row['offset']} in the index, expected {end}")
        end = row["offset"] + row["size"]
        for suffix, column in ((DNA_SUFFIX, "dna"), (IMAGE_SUFFIX, "image")):
            if row[f"{column}_offset"] >= 0:
                expected[f"{row['key']}.{suffix}"] = (row[f"{column}_offset"], row[f"{column}_size"])
    try:
        with tarfile.open(path) as tar:
            stored = {member.name: (member.offset_data, member.size) for member in tar}
    except (tarfile.TarError, OSError) as error:
        return [*problems, f"{path.name}: no readable tar ({error})"]
    if sum(name.endswith(f".{META_SUFFIX}") for name in stored) != rows.num_rows:
        problems.append(f"{path.name}: not one .{META_SUFFIX} for each specimen of the index")
    payloads = {name: place for name, place in stored.items() if not name.endswith(f".{META_SUFFIX}")}
    differing = sorted(name for name in payloads.keys() | expected if payloads.get(name) != expected.get(name))
    if differing:
        some = ", ".join(differing[:5])
        problems.append(f"{path.name}: {len(differing)} members differ from the index in place or size: {some}")
    return problems
