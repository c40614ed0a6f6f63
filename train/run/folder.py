"""Hold a run's (or a sweep's) folder: found by name or path, made once, written by one process at a time.

RUN/run.json      what the run is; its name and storage are those of the folder, wherever that was moved
RUN/owner.json    who writes now: host, process, start; its time of change is the heartbeat
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.config import Config
from train.run import ray_seams

log = logging.getLogger(__name__)

RECORD = "run.json"  # in the run's folder: its MLflow run and its configuration, for --resume
OWNER, GATE = "owner.json", ".gate"
HEARTBEAT_S = 10.0
DEAD_S = 60.0  # without a heartbeat an owner on another machine counts as dead
_held: set[Path] = set()  # by this process


def place(path: str | Path) -> Path:
    """Return an absolute path, `~` expanded: a shell does not expand it after `--set run.storage=`."""
    return Path(path).expanduser().resolve()


def find(name: str, storage: str | Path, record: str = RECORD) -> Path:
    """Return the folder of a run: one of this name in `storage`, or the folder that is named itself.

    Raises ValueError with the runs that are there.
    """
    for folder in (place(storage) / name, place(name)):
        if (folder / record).is_file():
            return folder
    there = sorted(path.parent.name for path in place(storage).glob(f"*/{record}"))
    kind = "run" if record == RECORD else "sweep"
    raise ValueError(f"no {kind} {name!r} in {storage}; {kind}s there: {', '.join(there) or 'none'}")


def at_home(config: Config) -> Config:
    """Return the configuration with `~` expanded in run.storage, which a shell does not do after `=`.

    Raises ValueError for a place where results would be lost: `?` cuts MLflow's address, and a relative folder inside a
    job lies in Ray's copy of what was submitted.
    """
    storage = config.run.storage
    if "?" in storage:
        raise ValueError(f"run.storage: got {storage!r}, allowed: a folder without `?`, which cuts MLflow's address")
    if ray_seams.in_working_copy() and not Path(storage).expanduser().is_absolute():
        raise ValueError(
            f"run.storage: got {storage!r} inside a submitted job, whose working folder is Ray's copy and goes "
            f"with its session; allowed: an absolute folder, e.g. --set run.storage=$PWD/{storage}"
        )
    run = dataclasses.replace(config.run, storage=str(Path(storage).expanduser()))
    return dataclasses.replace(config, run=run)


def _where() -> str:
    """Return what tells this process's machine and container from others."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _started(pid: int) -> str:
    """Return when a process started, in ticks of the kernel; "" for one that has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""


def owner_of(folder: Path) -> dict[str, Any] | None:
    """Return who writes into a folder now; None when nobody does, or its owner is dead."""
    try:
        owner = json.loads((folder / OWNER).read_text())
        if owner["inode"] != folder.stat().st_ino:  # the folder is a copy
            return None
    except (OSError, ValueError, KeyError):
        return None
    if owner["where"] == _where():
        return owner if _started(owner["pid"]) == owner["ticks"] else None
    probe = folder / f".clock-{secrets.token_hex(4)}"
    try:
        probe.touch()  # the file server's clock, not this machine's
        silent = probe.stat().st_mtime - (folder / OWNER).stat().st_mtime
    except OSError:
        return None
    finally:
        probe.unlink(missing_ok=True)
    return owner if silent < DEAD_S else None


@contextlib.contextmanager
def _gate(folder: Path) -> Iterator[None]:
    """Let one process at a time look who the owner is and write itself down."""
    with (folder / GATE).open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks: the look below the write still decides
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _take(folder: Path, token: str) -> None:
    """Write this process down as the owner. Raises ValueError that names a living owner."""
    with _gate(folder):
        if other := owner_of(folder):
            raise ValueError(
                f"run {folder.name!r} in {folder.parent} is being written by process {other['pid']} on {other['host']} "
                f"since {other['since']}; allowed: another run.name, or wait until it ends"
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "ticks": _started(os.getpid()), "since": since}
        part = folder / f"{OWNER}.{token}"
        part.write_text(json.dumps(mine | {"where": _where(), "token": token, "inode": folder.stat().st_ino}))
        part.replace(folder / OWNER)


def _is_mine(folder: Path, token: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / OWNER).read_text())["token"] == token
    return False


def _beat(folder: Path, token: str, done: threading.Event) -> None:
    """Show every 10 s that the owner lives; end the process's training when another one has taken over."""
    while not done.wait(HEARTBEAT_S):
        if not folder.exists():
            continue
        if not _is_mine(folder, token):
            log.error("%s was taken over by another process: stopping", folder)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        with contextlib.suppress(OSError):
            os.utime(folder / OWNER)


@contextlib.contextmanager
def held(folder: Path, *, new: bool = False) -> Iterator[None]:
    """Own a folder while the block runs; make it where it is missing. Nested blocks of one process own it once.

    Args:
        folder: of a run or a sweep.
        new: it must not be there yet.

    Raises ValueError when it exists (`new`), when a living process owns it, and when it cannot be written.
    """
    if folder in _held:
        yield
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=not new)
        token = secrets.token_hex(8)
        _take(folder, token)
    except FileExistsError:
        busy = owner_of(folder)
        by = f", being written by process {busy['pid']} on {busy['host']} since {busy['since']}" if busy else ""
        raise ValueError(
            f"run {folder.name!r} exists in {folder.parent}{by}; go on with --resume {folder.name}"
        ) from None
    except OSError as error:
        raise ValueError(
            f"run.storage: got {folder.parent}, which cannot be written ({error.strerror}); "
            "allowed: a folder this user may write"
        ) from None
    _held.add(folder)
    done = threading.Event()
    thread = threading.Thread(target=_beat, args=(folder, token, done), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        _held.discard(folder)
        _release(folder, token)


def _release(folder: Path, token: str) -> None:
    with contextlib.suppress(OSError), _gate(folder):
        if _is_mine(folder, token):
            (folder / OWNER).unlink()
        if {path.name for path in folder.iterdir()} <= {GATE}:  # refused before anything was done
            shutil.rmtree(folder)
