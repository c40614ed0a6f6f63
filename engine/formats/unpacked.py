"""Files unpacked by what they hold, not by how they are named: gzip, bzip2, xz, and a zip of one table."""

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from engine.formats import zips
from engine.store.limits import MAX_RATIO, MAX_TABLE_MEMBERS, MAX_XZ_BYTES, MIB
from engine.store.storage import open_regular

SUFFIXES = (".gz", ".bz2", ".xz", ".zip")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd"}
_OTHERS = {b"7z\xbc\xaf": "7-zip", b"Rar!": "RAR"}
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile, NotImplementedError)


def packing_of(path: Path) -> str | None:
    """Return how a file is packed (gzip, bzip2, xz, zip, zstd, 7-zip, RAR), by its first bytes; None = it is not."""
    with open_regular(path) as file:
        start = file.read(8)
    return next((name for magic, name in (_MAGIC | _OTHERS).items() if start.startswith(magic)), None)


def inner_name(path: Path) -> str:
    """Return a file's name in lower case without the suffix of its packing, of a zip that of the one file in it."""
    name = path.name.lower()
    if name.endswith(".zip") and path.is_file() and packing_of(path) == "zip" and len(inside := members(path)) == 1:
        return inside[0].lower()
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def members(path: Path) -> list[str]:
    """Return the names of the files in a zip, without what systems add. Raises ValueError when it is damaged."""
    names = [name for name, *_ in zips.directory(path)]
    return [name for name in names if not name.startswith("__MACOSX/") and not name.split("/")[-1].startswith(".")]


def open_member(path: Path, member: str) -> BinaryIO:
    """Open one of the few files of a zip. Raises ValueError for an archive of more, KeyError where it is not there."""
    count = sum(1 for _ in zips.directory(path))
    if count > MAX_TABLE_MEMBERS:
        raise ValueError(f"zip: got {path} with {count:,} files, allowed as a table: at most {MAX_TABLE_MEMBERS:,}")
    try:
        return cast(BinaryIO, zipfile.ZipFile(path).open(member))
    except (RuntimeError, ValueError, OverflowError, OSError, *_DAMAGED) as error:
        raise _damaged(path, error) from None


def open_unpacked(path: Path, member: str | None = None) -> BinaryIO:
    """Open a file for reading, unpacked.

    Args:
        path: the file.
        member: of a zip; default: the only one.

    Raises ValueError, also while it is read, for a file that is cut off or damaged, a zip of several files, or another
    packing.
    """
    kind = packing_of(path)
    if kind == "zip":
        names = [member] if member else members(path)
        if len(names) != 1:
            inside = ", ".join(names[:5]) or "nothing"
            raise ValueError(f"zip: got {path} with {inside}; allowed: one table or FASTA file in it, or unpack it")
        try:
            return _checked(open_member(path, names[0]), path)
        except KeyError as error:
            raise _damaged(path, error) from None
    if kind == "gzip":
        return _checked(gzip.GzipFile(fileobj=open_regular(path)), path)
    if kind == "bzip2":
        return _checked(bz2.BZ2File(open_regular(path)), path)
    if kind == "xz":
        return _checked(_Xz(open_regular(path)), path)
    if kind is not None:
        raise ValueError(f"file: got {path}, which is compressed as {kind}; allowed: gzip, bzip2, xz or zip; unpack it")
    return open_regular(path)


def _damaged(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"file: got {path}, which is cut off or damaged ({error or 'its end is missing'}); get it again")


def _checked(file: object, path: Path) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Checked(cast(BinaryIO, file), path), 1 << 20))


class _Xz:
    """An xz file that is read forward and asks for no more than MAX_XZ_BYTES of memory, whatever its header says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unpack = self._new()
        self._rest = b""

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=MAX_XZ_BYTES)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end. Raises LZMAError, and EOFError for a file that is cut off."""
        while True:
            if self._unpack.eof:  # another stream may follow, or padding
                self._rest = (self._unpack.unused_data or self._file.read(MIB)).lstrip(b"\0")
                if not self._rest:
                    return b""
                self._unpack = self._new()
            elif self._unpack.needs_input and not self._rest:
                self._rest = self._file.read(MIB)
                if not self._rest:
                    raise EOFError("its end is missing")
            given, self._rest = self._rest, b""
            if data := self._unpack.decompress(given, size):
                return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Checked(io.RawIOBase):
    """A packed file whose damage is a ValueError that names it, as is more in it than a text can hold."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._left = MIB + MAX_RATIO * os.path.getsize(path)

    def readable(self) -> bool:
        """Return True: `io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the start of a buffer; return how many bytes, 0 at the end."""
        try:
            data = self._file.read(len(buffer))
        except (*_DAMAGED, OSError) as error:
            raise _damaged(self._path, error) from None
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"file: got {self._path}, which unpacks to more than {MAX_RATIO:,} times its size")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file, too."""
        self._file.close()
        super().close()
