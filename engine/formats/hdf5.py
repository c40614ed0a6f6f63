"""HDF5 files that many workers read in place: opened by each process when it first needs one, never listed.

Only what lies in the file itself is read: a link to another file, a data set whose bytes or parts lie in others, and
one that says it holds far more than the file can hold, are refused by name.
"""

import math
import os
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from engine.store.limits import MAX_PHOTO_BYTES, MAX_RATIO, MIB
from engine.store.storage import open_regular

TOP_GROUP = "bioscan_dataset"


class Hdf5File:
    """An HDF5 file to read from. Picklable (the open file stays behind), thread-safe, safe after a fork."""

    def __init__(self, path: Path) -> None:
        self.path = str(path.resolve())
        self._opened: tuple[int, h5py.File] | None = None
        self._members: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, state: str) -> None:
        self.__init__(Path(state))  # type: ignore[misc]

    def file(self) -> h5py.File:
        """Return the open file. Raises ValueError when it is no HDF5 file."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            with self._lock:
                opened = self._opened
                if opened is None or opened[0] != os.getpid():
                    self._members = {}
                    opened = self._opened = (os.getpid(), self._open())
        return opened[1]

    def member(self, name: str) -> Any:
        """Return a group or data set, kept open: to find it takes as long as to read a photo.

        Raises KeyError where there is none, ValueError as `own_child`.
        """
        file = self.file()
        if name not in self._members:
            self._members[name] = own_child(file, name)
        return self._members[name]

    def _open(self) -> h5py.File:
        try:
            open_regular(self.path).close()
            return h5py.File(self.path, "r", locking=False)  # a lock fails on read-only and on some network disks
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"hdf5: got {self.path}, which cannot be read ({reason}); allowed: an HDF5 file") from None


def has_child(group: h5py.Group, name: str) -> bool:
    """Return whether a group has a member of that name, wherever its link leads. Raises ValueError for damage."""
    try:
        return bool(group.id.links.exists(name.encode()))
    except (RuntimeError, OSError) as error:
        raise _damaged(group, error) from None


def names_in(group: h5py.Group, most: int) -> list[str]:
    """Return the names of a group's members, [] where there are more than `most`. Raises ValueError for damage."""
    try:
        return list(group) if len(group) <= most else []
    except (RuntimeError, OSError, ValueError) as error:
        raise _damaged(group, error) from None


def _damaged(group: h5py.Group, error: Exception) -> ValueError:
    reason = (str(error).splitlines() or [repr(error)])[0]
    return ValueError(f"hdf5: got {group.file.filename}, which is damaged ({reason}); get it again")


def own_child(group: h5py.Group, path: str) -> Any:
    """Return a group or data set below `group` that lies in the same file.

    Raises KeyError where there is none; ValueError for a link that leads elsewhere, external or virtual storage, and
    sizes that the file cannot hold.
    """
    found: Any = group
    for name in filter(None, path.split("/")):
        if not isinstance(found, h5py.Group) or name == "." or not has_child(found, name):
            raise KeyError(path)
        try:
            kind = found.id.links.get_info(name.encode()).type
            found = found[name] if kind == h5py.h5l.TYPE_HARD else None
            size = _size(found) if isinstance(found, h5py.Dataset) else 0
        except (RuntimeError, OSError, TypeError, KeyError, ValueError) as error:
            raise _damaged(group, error) from None
        if found is None:
            raise ValueError(f"{path!r:.200} is a link to another place, allowed: what lies in the file itself")
    if isinstance(found, h5py.Dataset):
        _check(found, path, size)
    return found


def _check(dataset: Any, path: str, size: int) -> None:
    layout = dataset.id.get_create_plist()
    if layout.get_external_count() or dataset.is_virtual:
        raise ValueError(f"{path!r:.200} lies in other files, allowed: what lies in the file itself")
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    most = MIB + MAX_RATIO * os.path.getsize(dataset.file.filename)
    if chunk > MAX_PHOTO_BYTES or size > most:
        got = f"{size:,} bytes in chunks of {chunk:,}"
        raise ValueError(f"{path!r:.200} has {got}, allowed in this file: {most:,} in chunks of {MAX_PHOTO_BYTES:,}")


def _size(dataset: Any) -> int:
    """Return a data set's bytes; h5py's own number may run over."""
    return (0 if dataset.shape is None else math.prod(dataset.shape)) * int(dataset.dtype.itemsize)


class Hdf5Images:
    """Encoded photos, one dataset each, in the group "bioscan_dataset" or at the top of a file.

    Raises ValueError when the file is no HDF5 file: once, and not for each of its photos.
    """

    def __init__(self, path: Path) -> None:
        self.source = Hdf5File(path)
        self.group = TOP_GROUP if has_child(self.source.file(), TOP_GROUP) else "/"

    def load(self, name: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when it is not there or nothing readable."""
        where = f"{name} in {self.source.path}"
        try:
            return _bytes_of(own_child(self.source.member(self.group), name))
        except KeyError:
            raise ValueError(f"missing image file: {where}") from None
        except (OSError, RuntimeError, TypeError, AttributeError, ValueError, MemoryError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"image file cannot be read: {reason} ({where})") from None


def _bytes_of(dataset: Any) -> bytes:
    """Return the bytes that a dataset holds: a row of uint8, or a scalar of bytes.

    A fixed-length scalar is read as an array, since a Python bytes object of it would lose the zeros at its end.
    """
    if not isinstance(dataset, h5py.Dataset) or (dataset.dtype.hasobject and dataset.size != 1):
        raise TypeError("a group or a list of objects is no encoded photo")
    if _size(dataset) > MAX_PHOTO_BYTES:
        raise TypeError(f"{_size(dataset):,} bytes, a photo has at most {MAX_PHOTO_BYTES:,}")
    value = np.asarray(dataset)
    if (value.dtype == np.uint8 and value.ndim <= 1) or (value.size == 1 and value.dtype.kind in "SV"):
        return value.tobytes()
    if value.size == 1 and isinstance(value.item(), bytes):
        return value.item()
    raise TypeError(f"{dataset.dtype} of shape {dataset.shape} is no encoded photo")
