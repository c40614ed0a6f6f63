"""Find or start the Ray that a training runs on, and compare what is asked with what is there before anything starts.

What keeps Ray from starting is found here first and named in one line: an address where nobody answers, somebody
else's cluster, a folder too long for sockets, a home that cannot be written, less than one CPU.
"""

import contextlib
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine import ray_seams as tasks
from train.run import interrupts, ray_seams

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
SOCKET_ROOM = 107 - len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1")
CONNECT_S = 5.0
FIRST_WORD_S, NEXT_WORD_S = 5.0, 30.0


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """Log what is going on after 5 s of silence, and again every 30 s, while the block runs."""
    done, started = threading.Event(), time.monotonic()

    def speak() -> None:
        pause = FIRST_WORD_S
        while not done.wait(pause):
            log.warning("%s (%.0f s)", what, time.monotonic() - started)
            pause = NEXT_WORD_S

    thread = threading.Thread(target=speak, name="phase", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def start_ray(**options: Any) -> None:
    """Start or join Ray as `engine.ray_seams.start_ray` does, with Ray's warnings shown.

    Raises ValueError for what the user can mend.
    """
    import ray

    if ray.is_initialized():
        return
    options = {**_where(), **options}
    with said("starting Ray"), ray_seams.started_apart(), contextlib.chdir(ROOT):  # workers look there for our code
        tasks.start_ray(logging.WARNING, **options)
    interrupts.restore()
    tasks.quiet_data(logging.ERROR)  # failures come as exceptions


def _where() -> dict[str, Any]:
    """Return the options of `ray.init` that fit this machine. Raises ValueError when there are none."""
    check_address()
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        return {}
    short_folder()
    writable_home()
    owner = ray_seams.owner_of_noted_cluster()
    foreign = owner is not None and owner != os.getuid()
    if foreign:
        log.warning("another user's Ray stands on this machine: starting one of our own (RAY_ADDRESS joins it)")
    alone = address == "local" or foreign
    if ray_seams.counted_cpus() < 1:
        log.warning("this container has less than one CPU: working on it as if it were one")
        return {"num_cpus": 1, "address": "local"}
    return {"address": "local"} if alone else {}


def check_address() -> None:
    """Refuse a RAY_ADDRESS where nobody answers, for which Ray itself would look for minutes. Raises ValueError."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local", "auto") and "://" not in address and not answers(address):
        raise ValueError(
            f"RAY_ADDRESS: got {address}, where nobody answers; allowed: the address of a running cluster, or "
            "RAY_ADDRESS=local for a Ray of this command's own"
        )


def answers(address: str) -> bool:
    """Return whether something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError):
        return False
    return True


def short_folder() -> None:
    """Take /tmp for Ray's sockets where TMPDIR is too long for them. Raises ValueError where RAY_TMPDIR is."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        folder = os.environ.get(name, "")
        if folder and len(folder.rstrip("/")) > SOCKET_ROOM:
            if name == "RAY_TMPDIR" or not os.access("/tmp", os.W_OK):
                raise ValueError(
                    f"{name}: got {folder}, {len(folder)} letters; allowed: at most {SOCKET_ROOM}, for the paths of "
                    "Ray's sockets - set RAY_TMPDIR=/tmp"
                )
            log.warning("TMPDIR is too long for Ray's sockets: Ray works in /tmp (RAY_TMPDIR names another folder)")
            os.environ["RAY_TMPDIR"] = "/tmp"
        if folder:
            return


def writable_home() -> None:
    """Give Ray a token in a folder of our own where HOME cannot be written, which is where Ray would put it."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")):
        return
    home = Path.home()
    with contextlib.suppress(OSError):
        (home / ".ray").mkdir(exist_ok=True)
        if not (home / ".ray" / "auth_token").is_file():
            tempfile.TemporaryFile(dir=home / ".ray").close()
        return
    token = Path(tempfile.mkdtemp(prefix="taxafuse-")) / "token"  # a folder that only this user may read
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    log.warning("HOME=%s cannot be written: Ray's token lies in %s (RAY_AUTH_TOKEN_PATH)", home, token)


def lacking(each: Mapping[str, float], num_workers: int, cluster: Mapping[str, float]) -> str:
    """Return, as text, which resources the cluster lacks for so many workers; "" = it has enough."""
    needed = {name: num_workers * amount for name, amount in each.items()}
    short = {name: amount for name, amount in needed.items() if cluster.get(name, 0.0) < amount}
    return "; ".join(f"{amount:g} {name}, there are {cluster.get(name, 0.0):g}" for name, amount in short.items())


def require(each: Mapping[str, float], num_workers: int, wait: bool) -> None:
    """Compare what the workers need with what the cluster has.

    Args:
        each: resources of one worker.
        num_workers: how many there are.
        wait: for nodes that are still to come, saying every 30 s for what.

    Raises ValueError when something is missing and `wait` is not given.
    """
    import ray

    spoken = 0.0
    while lack := lacking(each, num_workers, ray.cluster_resources()):
        if not wait:
            raise ValueError(
                f"training needs {lack}; allowed: run.num_workers, run.use_gpu and run.worker_resource that this "
                "cluster has, or --wait for nodes that are to come"
            )
        if time.monotonic() - spoken > NEXT_WORD_S:
            log.warning("waiting for nodes: training needs %s", lack)
            spoken = time.monotonic()
        time.sleep(1)
