"""Photos inside zip archives, read in place: millions of members, many workers, nothing unpacked to disk.

The driver reads each archive's directory once, into arrays of 40 bytes per member, and hands out references that say
where a member lies; a worker needs one read of its bytes. Python's zipfile would hold about a kilobyte per member in
every worker.
"""

import mmap
import os
import struct
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.formats.lookup import NameIndex
from engine.store.limits import MAX_PHOTO_BYTES
from engine.store.storage import open_number, open_regular

_ENTRY = struct.Struct("<4s6H3I5H2I")  # of the central directory, before name, extra field and comment
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCAL = struct.Struct("<4s5H3I2H")
_MAX_COMMENT = 1 << 16
_NOWHERE = -1
_STORED, _DEFLATED = 0, 8
_FACTS = "HqqIH"  # archive, offset of the local header, compressed bytes, CRC-32, method

Member = tuple[str, int, int, int, int]
"""name, offset of its local header, compressed bytes, CRC-32, method."""


class ZipMembers:
    """Members of some archives by name. Picklable (the directory stays behind), thread-safe.

    Args:
        paths: the archives.
        name_of: gets a member's path in the archive, returns the name to find it by, or None to leave it out.
    """

    def __init__(self, paths: Sequence[Path], name_of: Callable[[str], str | None]) -> None:
        self.paths = [str(path.resolve()) for path in paths]
        self._members = [array(kind) for kind in _FACTS]

        def names() -> Iterator[str]:
            """Names of the wanted members; where they lie is noted on the way."""
            for archive, path in enumerate(paths):
                for member, *facts in directory(path):
                    name = name_of(member)
                    if name is not None:
                        for column, fact in zip(self._members, (archive, *facts), strict=True):
                            column.append(fact)
                        yield name

        self._index = NameIndex(names())
        self.num_members = self._index.size
        self._refuse_overlaps()
        self._open_files()

    def _refuse_overlaps(self) -> None:
        """Take the place from every member that lies inside another: so small archives hold petabytes."""
        archive, offset, packed = (np.array(column, dtype=np.int64) for column in self._members[:3])
        order = np.lexsort((-packed, offset, archive))
        order = order[offset[order] >= 0]
        archive, offset, end = archive[order], offset[order], (offset + _LOCAL.size + packed)[order]
        for number in range(len(self.paths)):
            low, high = np.searchsorted(archive, [number, number + 1])
            reached = np.maximum.accumulate(end[low:high])
            for place in order[low + 1 : high][offset[low + 1 : high] < reached[:-1]].tolist():
                self._members[1][place] = _NOWHERE

    def _open_files(self) -> None:
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.paths = state["paths"]
        self._open_files()

    def __del__(self) -> None:
        for number in getattr(self, "_files", {}).values():
            os.close(number)

    def refs(self, names: Sequence[str]) -> list[str | None]:
        """Return a reference for each name, None = no archive has it. Not after pickling."""
        places = self._index.find(names).tolist()
        return [
            None if place < 0 else ":".join([*(str(column[place]) for column in self._members), name])
            for name, place in zip(names, places, strict=True)
        ]

    def load(self, ref: str) -> bytes:
        """Return a member's bytes. Raises ValueError when the archive is damaged or cannot be read."""
        *numbers, name = ref.split(":", 5)
        archive, offset, size, crc, method = map(int, numbers)
        where = f"{name} in {self.paths[archive]}"
        try:
            if offset < 0:
                raise ValueError(f"image file cannot be read: outside the archive, or inside another member ({where})")
            if size > MAX_PHOTO_BYTES:
                raise ValueError(f"image file cannot be read: {size:,} bytes, at most {MAX_PHOTO_BYTES:,} ({where})")
            file = self._file(archive)
            header = os.pread(file, _LOCAL.size, offset)
            if header[:4] != b"PK\3\4" or len(header) < _LOCAL.size:
                raise ValueError(f"image file cannot be read: no member at its place ({where})")
            *_, name_size, extra_size = _LOCAL.unpack(header)
            data = os.pread(file, size, offset + _LOCAL.size + name_size + extra_size)
        except OSError as error:
            raise ValueError(f"image file cannot be read: {error.strerror} ({where})") from None
        try:
            if method == _DEFLATED:
                data = zlib.decompressobj(-15).decompress(data, MAX_PHOTO_BYTES + 1)
        except zlib.error:
            data = b""
        if method not in (_STORED, _DEFLATED):
            raise ValueError(f"image file cannot be read: packed by method {method}, not stored or deflated ({where})")
        if len(data) > MAX_PHOTO_BYTES:
            raise ValueError(f"image file cannot be read: more than {MAX_PHOTO_BYTES:,} bytes unpacked ({where})")
        if zlib.crc32(data) != crc:
            raise ValueError(f"image file cannot be read: damaged, its checksum differs ({where})")
        return data

    def _file(self, archive: int) -> int:
        if archive not in self._files:
            with self._lock:
                if archive not in self._files:
                    self._files[archive] = open_number(self.paths[archive])
        return self._files[archive]


def directory(path: Path) -> Iterator[Member]:
    """Yield the members of an archive, folders left out; one that would lie outside of it has the offset -1.

    Raises ValueError when it has no readable directory.
    """
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start, size, shift = _find_directory(data)
            place, end = start, start + size
            while place < end:
                entry = _ENTRY.unpack_from(data, place)
                flags, method, crc, packed, full = entry[3], entry[4], entry[7], entry[8], entry[9]
                name_size, extra_size, comment_size, offset = entry[10], entry[11], entry[12], entry[16]
                if entry[0] != b"PK\1\2":
                    raise struct.error("no entry where one should be")
                place += _ENTRY.size
                name = data[place : place + name_size].decode("utf-8" if flags & 0x800 else "cp437", "replace")
                place += name_size
                if 0xFFFFFFFF in (packed, full, offset):
                    packed, offset = _large(data[place : place + extra_size], packed, full, offset)
                place += extra_size + comment_size
                offset += shift
                if not 0 <= offset <= start - _LOCAL.size - packed:
                    offset = packed = _NOWHERE
                if not name.endswith("/"):
                    yield name, offset, packed, crc, method
    except (OSError, ValueError, struct.error, StopIteration) as error:
        raise ValueError(f"zip: got {path}, which cannot be read ({error}); allowed: a complete zip archive") from None


def _find_directory(data: mmap.mmap) -> tuple[int, int, int]:
    """Return (start, bytes) of the directory, and what to add to offsets (something may stand before the archive)."""
    end = data.rfind(b"PK\5\6", max(0, len(data) - _END.size - _MAX_COMMENT))
    if end < 0:
        raise ValueError("no directory at its end: cut short, or no zip")
    _, _, _, _, _, size, start, _ = _END.unpack_from(data, end)
    if end >= _END64_LOCATOR.size and data[end - _END64_LOCATOR.size : end - 16] == b"PK\6\7":
        large = data.rfind(b"PK\6\6", 0, end)
        *_, size, start = _END64.unpack_from(data, large)
        end = large
    if size > end:
        raise ValueError(f"a directory of {size:,} bytes in a file of {len(data):,}")
    return end - size, size, end - size - start


def _large(extra: bytes, packed: int, full: int, offset: int) -> tuple[int, int]:
    """(compressed bytes, offset) of a member whose numbers need 64 bits."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<2H", extra)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{size // 8}Q", extra, 4))
            sizes = [next(values) if value == 0xFFFFFFFF else value for value in (full, packed, offset)]
            return sizes[1], sizes[2]
        extra = extra[4 + size :]
    return packed, offset
