"""HDF5 files that many workers read in place: opened by each process when it first needs one, never listed."""

import os
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np

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
        """Return a group or data set, kept open: to find it takes as long as to read a photo. Raises KeyError."""
        file = self.file()
        if name not in self._members:
            self._members[name] = file[name]
        return self._members[name]

    def _open(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r", locking=False)  # a lock fails on read-only and on some network disks
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"hdf5: got {self.path}, which cannot be read ({reason}); allowed: an HDF5 file") from None


class Hdf5Images:
    """Encoded photos, one dataset each, in the group "bioscan_dataset" or at the top of a file.

    Raises ValueError when the file is no HDF5 file: once, and not for each of its photos.
    """

    def __init__(self, path: Path) -> None:
        self.source = Hdf5File(path)
        self.group = TOP_GROUP if TOP_GROUP in self.source.file() else "/"

    def load(self, name: str) -> bytes:
        """Return a photo's bytes. Raises ValueError when it is not there or nothing readable."""
        where = f"{name} in {self.source.path}"
        try:
            return _bytes_of(self.source.member(self.group)[name])
        except KeyError:
            raise ValueError(f"missing image file: {where}") from None
        except (OSError, RuntimeError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"image file cannot be read: {reason} ({where})") from None


def _bytes_of(dataset: Any) -> bytes:
    """Return the bytes that a dataset holds: a row of uint8, or a scalar of bytes.

    A fixed-length scalar is read as an array, since a Python bytes object of it would lose the zeros at its end.
    """
    value = np.asarray(dataset)
    if (value.dtype == np.uint8 and value.ndim <= 1) or (value.size == 1 and value.dtype.kind in "SV"):
        return value.tobytes()
    if value.size == 1 and isinstance(value.item(), bytes):
        return value.item()
    raise TypeError(f"{dataset.dtype} of shape {dataset.shape} is no encoded photo")
