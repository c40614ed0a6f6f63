"""Writing one shard: a WebDataset tar whose bytes depend on its specimens only, with the rows of its index.

Members are KEY.dna, KEY.jpg, KEY.json, one specimen after another; headers carry no time and no owner. The headers are
made here, not by `tarfile`, which takes longer for one than writing a small photo does; a test compares them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.specimens.schema import DNA_SUFFIX, IMAGE_SUFFIX, INDEX_SCHEMA, META_SUFFIX, Specimen
from engine.specimens.taxonomy import RANKS
from engine.store.storage import Location

MAX_KEY_LENGTH = 90  # a tar header's name field has 100 bytes, suffix included

BLOCK = tarfile.BLOCKSIZE
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclasses.dataclass(frozen=True)
class WrittenShard:
    """A tar that was written: its index rows (INDEX_SCHEMA, in stored order), its size and its sha256."""

    index: pa.Table
    num_bytes: int
    sha256: str


def tar_key(identifier: str) -> str:
    """Return the key of a specimen inside a tar: no dots, slashes, spaces or other characters that webdataset splits.

    Every byte outside A-Z a-z 0-9 _ - becomes %XX, so different identifiers have different keys. One that would get
    longer than 90 characters keeps its first 70 and a hash. The identifier itself stays in the specimen's JSON.
    """
    if len(identifier) <= MAX_KEY_LENGTH and _PLAIN.issuperset(identifier):
        return identifier
    raw = identifier.encode()
    key = "".join(chr(byte) if chr(byte) in _PLAIN else f"%{byte:02X}" for byte in raw)
    if len(key) <= MAX_KEY_LENGTH:
        return key
    return f"{key[:70]}-{hashlib.blake2b(raw, digest_size=8).hexdigest()}"


@functools.cache
def _template() -> tuple[bytes, int, bytes, bytes]:
    """Return the constant parts of a header: (mode and owner, sum of all bytes, time, what follows the checksum).

    Mode 0644; time, uid and gid 0; owner names empty. The checksum counts its own field as blanks.
    """
    info = tarfile.TarInfo("")
    info.mode = 0o644
    block = info.tobuf(tarfile.USTAR_FORMAT)
    checked = block[:124] + block[136:148] + b" " * 8 + block[156:]
    return block[100:124], sum(checked), block[136:148], block[156:]


def tar_header(name: bytes, size: int) -> bytes:
    """Return the 512 bytes before a member's payload. `name` has at most 100 bytes."""
    owner, base, time, rest = _template()
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (base + sum(name) + sum(digits))
    return b"".join((name.ljust(100, b"\0"), owner, digits, time, checksum, rest))


def _members(specimen: Specimen) -> Iterator[tuple[str, bytes]]:
    """Yield (suffix, payload) in the order of suffixes."""
    if specimen.barcode is not None:
        yield DNA_SUFFIX, specimen.barcode.encode()
    if specimen.image is not None:
        yield IMAGE_SUFFIX, specimen.image
    meta: dict[str, Any] = {"id": specimen.id}
    meta.update(zip(RANKS, specimen.names, strict=True))
    meta.update(split=specimen.split, bin_uri=specimen.bin_uri, country=specimen.country)
    if specimen.latitude is not None and specimen.longitude is not None:
        meta.update(latitude=specimen.latitude, longitude=specimen.longitude)
    yield META_SUFFIX, _encode_json(meta).encode()


def write_shard(place: Path | str | Location, specimens: Iterable[Specimen]) -> WrittenShard:
    """Write one tar, atomically: the file appears complete or not at all. Without a specimen there is none.

    Keys must differ; whoever calls sees to it (`engine.ingest` skips duplicates and names them).
    Raises OSError (with the place as its filename) when it cannot be written.
    """
    place = Location.parse(place)
    rows: list[tuple[Any, ...]] = []
    digest = hashlib.sha256()
    end = 0
    with contextlib.suppress(_Empty), place.writing() as file:
        for specimen in specimens:
            key, start = tar_key(specimen.id), end
            pieces = []
            places = {DNA_SUFFIX: (-1, 0), IMAGE_SUFFIX: (-1, 0)}
            for suffix, payload in _members(specimen):
                size = len(payload)
                places[suffix] = (end + BLOCK, size)
                pieces += [tar_header(f"{key}.{suffix}".encode(), size), payload, bytes(-size % BLOCK)]
                end += BLOCK + size + -size % BLOCK
            data = b"".join(pieces)
            digest.update(data)
            file.write(data)
            labels = (*specimen.names, specimen.bin_uri, specimen.split, specimen.barcode_length)
            member_places = (*places[IMAGE_SUFFIX], *places[DNA_SUFFIX])
            rows.append((key, place.name, start, end - start, *member_places, *labels))
        if not rows:
            raise _Empty
        tail = bytes(2 * BLOCK + -(end + 2 * BLOCK) % tarfile.RECORDSIZE)
        digest.update(tail)
        file.write(tail)
    columns = zip(*rows, strict=True) if rows else [()] * len(INDEX_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)]
    index = pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)
    return WrittenShard(index, end + len(tail) if rows else 0, digest.hexdigest() if rows else "")


class _Empty(Exception):
    """Leaves the writing of a shard that has no specimen."""
