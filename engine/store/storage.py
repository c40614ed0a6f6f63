"""Where bytes lie: a local path or a URL (s3://..., whatever pyarrow.fs or fsspec know), behind one small class.

A URL may carry options after a "?" (`s3://bucket/prefix?endpoint_override=127.0.0.1:9000&scheme=http`); credentials
come from where the file system looks for them itself (for S3 the usual AWS environment variables).
"""

import contextlib
import dataclasses
import errno
import functools
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.fs as pa_fs

from engine.store.limits import MAX_PHOTO_BYTES

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters or more: C:// is no scheme
_CHUNK = 1 << 23  # bytes of an upload held at once


@dataclasses.dataclass(frozen=True)
class Location:
    """A file or a folder, local or remote; a value, cheap to copy and to pickle (it holds no connection).

    Failures are OSErrors that carry the location as their `filename`; what is not there is a FileNotFoundError.
    """

    base: str  # an absolute path, or scheme://.../path without a slash at its end
    query: str = ""  # "?..." of a URL

    @classmethod
    def parse(cls, place: "str | Path | Location") -> "Location":
        """Take a path (relative ones start from the working directory) or a URL. Raises ValueError for an empty one."""
        if isinstance(place, Location):
            return place
        text = str(place)
        if not text:
            raise ValueError("path: got an empty one, allowed: a local path or a URL like s3://bucket/folder")
        if not _URL.match(text):
            return cls(os.path.abspath(os.path.expanduser(text)))
        if text.startswith("file://"):
            return cls(os.path.abspath(text.removeprefix("file://").removeprefix("localhost")))
        base, mark, query = text.partition("?")
        return cls(base.rstrip("/"), mark + query)

    def __str__(self) -> str:
        return self.base + self.query

    def __truediv__(self, name: str) -> "Location":
        """Return a place inside this folder; an absolute path or a URL stands for itself."""
        if _URL.match(name) or name.startswith("/"):
            return Location.parse(name)
        return Location(f"{self.base.rstrip('/')}/{name}", self.query)

    @property
    def is_local(self) -> bool:
        """Return whether this is a path and no URL."""
        return not _URL.match(self.base)

    @property
    def path(self) -> Path:
        """The local path. Raises ValueError for a URL."""
        if not self.is_local:
            raise ValueError(f"path: got {self.shown}, allowed here: a local path")
        return Path(self.base)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.base.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        """The folder that it lies in; / is its own."""
        return Location(self.base.rsplit("/", 1)[0] or "/", self.query)

    @property
    def shown(self) -> str:
        """As text for people and manifests: without a password."""
        return re.sub(r"://[^/@]*@", "://", str(self))

    def size(self) -> int | None:
        """Return the size of the file in bytes; None when there is no such file."""
        if self.is_local:
            try:
                return os.path.getsize(self.base) if os.path.isfile(self.base) else None
            except OSError:
                return None
        with self._remote() as (system, path):
            info = system.get_file_info(path)
            return int(info.size) if info.type == pa_fs.FileType.File else None

    def is_file(self) -> bool:
        """Return whether there is such a file."""
        return self.size() is not None

    def is_dir(self) -> bool:
        """Return whether this is a folder; on object stores: whether anything lies under it."""
        if self.is_local:
            return os.path.isdir(self.base)
        with self._remote() as (system, path):
            return bool(system.get_file_info(path).type == pa_fs.FileType.Directory)

    def exists(self) -> bool:
        """Return whether there is such a file or folder."""
        return self.is_dir() or self.is_file()

    def list(self) -> list[str]:
        """Return the sorted names of the files and folders directly inside; [] when there is no such folder."""
        if self.is_local:
            return sorted(os.listdir(self.base)) if os.path.isdir(self.base) else []
        with self._remote() as (system, path):
            inside = system.get_file_info(pa_fs.FileSelector(path, allow_not_found=True))
            return sorted({info.path.rstrip("/").rsplit("/", 1)[-1] for info in inside} - {self.name, ""})

    def sizes(self) -> dict[str, int]:
        """Return the size of each file directly inside, with one listing; {} when there is no such folder."""
        if self.is_local:
            if not os.path.isdir(self.base):
                return {}
            with os.scandir(self.base) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        with self._remote() as (system, path):
            inside = system.get_file_info(pa_fs.FileSelector(path, allow_not_found=True))
            files = (info for info in inside if info.type == pa_fs.FileType.File)
            return {info.path.rsplit("/", 1)[-1]: int(info.size) for info in files}

    def open_input(self) -> pa.NativeFile:
        """Open the file for reading anywhere in it. A pipe, a device or a socket is refused: it may never end."""
        if self.is_local:
            self._refuse_special()
        with self._remote() as (system, path):
            return pa.OSFile(path) if system is None else system.open_input_file(path)

    def read_bytes(self, most: int = MAX_PHOTO_BYTES) -> bytes:
        """Return the whole file. Raises OSError for one of more than `most` bytes, before it is read."""
        with self._remote():
            if self.is_local:
                return read_regular(self.base, most)
        with self._remote(), self.open_input() as file:
            if file.size() > most:
                raise OSError(errno.EFBIG, f"file of {file.size():,} bytes, allowed at most {most:,}", self.shown)
            return cast(bytes, file.read())

    def _refuse_special(self) -> None:
        mode = os.stat(self.base).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder fails with its own message
            raise OSError(errno.EINVAL, "neither a regular file nor a folder", self.base)

    @contextlib.contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Open a binary file to write. It appears under its name, whole, when the block ends; after an error never.

        Local: a hidden file beside it is renamed (the folder must exist). Remote: a temporary local file is uploaded.
        """
        if self.is_local:
            hidden = os.path.join(os.path.dirname(self.base), f".{self.name}.{os.getpid()}.part")
            with named_errors(self.shown, hidden):
                try:
                    with open(hidden, "wb", buffering=1 << 20) as file:
                        yield file
                        file.flush()
                        os.fsync(file.fileno())  # else a loss of power may leave the new name with nothing in it
                    os.replace(hidden, self.base)
                finally:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(hidden)
            return
        with tempfile.TemporaryFile() as temporary:
            with named_errors(self.shown):
                yield cast(BinaryIO, temporary)
            temporary.seek(0)
            with self._remote() as (system, path), system.open_output_stream(path) as stream:
                while data := temporary.read(_CHUNK):
                    stream.write(data)

    def write_atomically(self, data: bytes) -> None:
        """Make these bytes the file's content: all of them, or after an error none."""
        with self.writing() as file:
            file.write(data)

    def make_folder(self) -> None:
        """Make a local folder and those above it; object stores need none."""
        if self.is_local:
            os.makedirs(self.base, exist_ok=True)

    def delete(self) -> None:
        """Delete a file, or a folder with all in it. That it is not there is no error."""
        if self.is_local:
            if os.path.isdir(self.base) and not os.path.islink(self.base):
                shutil.rmtree(self.base)
            else:
                Path(self.base).unlink(missing_ok=True)
            return
        with self._remote() as (system, path):
            kind = system.get_file_info(path).type
            if kind == pa_fs.FileType.Directory:
                system.delete_dir(path)
            elif kind == pa_fs.FileType.File:
                system.delete_file(path)

    @contextlib.contextmanager
    def _remote(self) -> Iterator[tuple[Any, str]]:
        """Yield the file system and the path in it; errors name this location in one line."""
        with named_errors(self.shown):
            if self.is_local:
                yield None, self.base
                return
            scheme, _, rest = self.base.partition("://")
            host, _, path = rest.partition("/")
            system, root = _file_system(f"{scheme}://{host}{self.query}")
            yield system, f"{root.rstrip('/')}/{path}".rstrip("/") if root else path


def open_number(path: str | Path) -> int:
    """Return the descriptor of a local regular file, open for reading.

    Raises OSError for a pipe, a device or a socket, without waiting for what it may hold, and for a folder.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return number
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "neither a regular file nor a folder", os.fspath(path))


def open_regular(path: str | Path) -> BinaryIO:
    """Open a local regular file for reading, see `open_number`."""
    return os.fdopen(open_number(path), "rb")


def read_regular(path: str | Path, most: int = MAX_PHOTO_BYTES) -> bytes:
    """Return a local regular file. Raises OSError for one of more than `most` bytes, before it is read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = (file.read(most + 1) or b"") if size <= most else b""  # files of /proc say 0, or have nothing now
    if max(size, len(data)) > most:
        raise OSError(errno.EFBIG, f"file of {max(size, len(data)):,} bytes, allowed at most {most:,}", os.fspath(path))
    return data


@contextlib.contextmanager
def named_errors(shown: str, hidden: str | None = None) -> Iterator[None]:
    """Give an OSError without a file name (or with the hidden one) the name `shown`, and one line of its message."""
    try:
        yield
    except OSError as error:
        if error.filename not in (None, hidden):
            raise
        text = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
        code = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO)
        raise OSError(code, text, shown) from error


@functools.lru_cache(maxsize=16)
def _file_system(root: str) -> tuple[Any, str]:
    """Return a URL's file system and how paths in it begin. Cached: making one costs a connection."""
    try:
        return pa_fs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if "nrecognized filesystem" not in str(error):
            shown, reason = Location.parse(root).shown, str(error).splitlines()[0]
            raise ValueError(f"URL: got {shown} ({reason}); allowed: one that pyarrow.fs takes") from None
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(root)
    except (ValueError, ImportError) as error:
        shown = Location.parse(root).shown
        raise ValueError(f"URL: got {shown} ({error}); allowed: one that pyarrow.fs or fsspec knows") from None
    return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(system)), path
