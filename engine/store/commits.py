"""The one way in which files and folders are written: owned by one process, made beside, synced, switched at once.

A reader sees the old state or the new one, whenever the writer or its machine ends. What a killed writer leaves, hidden
files and folders that begin with a dot, the next writer of the same place removes.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from engine.store.storage import named_errors

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_CWD = -100  # AT_FDCWD
_POLL_S = 0.1
_PART, _READY = ".files.part", ".files.ready"
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


@contextlib.contextmanager
def owned(place: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Own a file or folder (it need not exist) among all writers of this machine and of a shared POSIX file system.

    The lock is a hidden file beside it, which names its owner; the kernel gives it free when the owner ends.

    Args:
        place: what is to be written.
        wait_s: seconds to wait for another owner.

    Raises:
        ValueError: another process owns it still, with its id, machine and age.
        OSError: the folder cannot be written to.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    hidden = _hidden(place, "lock")
    number = _lock(hidden, place, time.monotonic() + wait_s)
    try:
        _sweep(place)
        value = {"pid": os.getpid(), "machine": socket.gethostname(), "since": time.time()}
        os.pwrite(number, json.dumps(value).encode().ljust(256), 0)
        yield
    finally:
        os.unlink(hidden)  # before it is free: who waits for it sees that it is no longer the one of that name
        os.close(number)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Own a folder that is there and is written in place; nothing is left in it or beside it.

    Raises ValueError where another process owns it, OSError where there is no such folder.
    """
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: got one that another process is writing; allowed: when that has ended, or another place"
            ) from None
        yield
    finally:
        os.close(number)


def _lock(hidden: Path, place: Path, deadline: float) -> int:
    while True:
        number = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_named(number, hidden):
                return number
        except BlockingIOError:
            if time.monotonic() >= deadline:
                owner = _owner(os.pread(number, 256, 0))
                os.close(number)
                raise ValueError(
                    f"{place}: got one that {owner} is writing; allowed: when that has ended, or another place"
                ) from None
            time.sleep(_POLL_S)
        os.close(number)


def _sweep(place: Path) -> None:
    """Remove what killed writers left beside a file, `Location.writing`'s hidden files of it and of its description."""
    left = re.compile(rf"\.{re.escape(place.name)}(\.\w+)?\.\d+\.part")
    for name in filter(left.fullmatch, os.listdir(place.parent)):
        os.unlink(place.parent / name)


def _is_named(number: int, path: Path) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(text: bytes) -> str:
    try:
        value = json.loads(text)
        age = time.time() - float(value["since"])
        return f"process {int(value['pid'])} of {str(value['machine'])[:80]}, for {age:.0f} s,"
    except (ValueError, KeyError, TypeError):  # it has just been taken
        return "another process"


@contextlib.contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends without an error, it stands under the name `folder`.

    The caller owns the place (`owned`). Who has files of a replaced folder open keeps them.

    Args:
        folder: where it will stand.
        replace: put it in place of the folder there; False = there is none, or an empty one.

    Raises:
        OSError: with a file name and one line, also for a full disk; the old state is whole.
    """
    recover(folder)
    part = _hidden(folder, "part")
    with named_errors(str(folder)):
        part.mkdir(parents=True)
        try:
            yield part
            _sync_tree(part)
            _switch(part, folder, replace)
        except OSError as error:
            if error.errno is None and shutil.disk_usage(folder.parent).free < 1 << 20:  # NumPy gives no number
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)


def recover(folder: Path) -> None:
    """Bring a place to the old or the new state after a writer was killed, and remove what that left."""
    part, old = _hidden(folder, "part"), _hidden(folder, "old")
    if old.is_dir() and not folder.exists():  # killed between two renames, where no exchange is possible
        os.rename(old, folder)
    for left in (part, old):
        if left.exists():
            shutil.rmtree(left)


@contextlib.contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends without an error, its files stand in `folder`, all of them.

    Other files of the folder stay. The caller owns it (`locked`). A writer that is killed while names are exchanged is
    finished by `finish_files`, which whoever writes or reads the folder next calls.

    Raises:
        OSError: with a file name and one line, also for a full disk; the old files are whole.
    """
    finish_files(folder)
    part, ready = folder / _PART, folder / _READY
    with named_errors(str(folder)):
        part.mkdir()
        try:
            yield part
            _sync_tree(part)
            os.rename(part, ready)  # from here on the new files count
        finally:
            shutil.rmtree(part, ignore_errors=True)
        sync_folder(folder)
        finish_files(folder)


def finish_files(folder: Path) -> None:
    """Bring a folder's files to the old or the new state after a writer was killed."""
    part, ready = folder / _PART, folder / _READY
    if ready.is_dir():
        for path in sorted(ready.iterdir()):
            os.replace(path, folder / path.name)
        sync_folder(folder)
        ready.rmdir()
    if part.is_dir():
        shutil.rmtree(part)


def _hidden(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _switch(part: Path, folder: Path, replace: bool) -> None:
    if not (replace and folder.exists()):
        os.rename(part, folder)  # over an empty folder, or none
    elif not exchange(part, folder):
        old = _hidden(folder, "old")
        os.rename(folder, old)
        os.rename(part, folder)
        sync_folder(folder.parent)
        shutil.rmtree(old)
    sync_folder(folder.parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically (Linux, renameat2). Returns False where system or file system cannot."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_CWD, os.fsencode(one), _CWD, os.fsencode(other), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            _sync(os.path.join(place, name))
        _sync(place)


def sync_folder(folder: Path) -> None:
    """Make a folder's names last through a loss of power."""
    _sync(str(folder))


def _sync(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
