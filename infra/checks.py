"""What `infra.doctor` looks at on one machine: each check returns a Finding that says what is there and what to do.

They run in a Ray task on every node, or in the doctor's own process where there is no cluster; nothing is changed but a
small file in `run.storage`, which is removed again.
"""

import importlib.metadata
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PACKAGES = ("taxafuse", "ray", "torch", "numpy", "pyarrow", "mlflow")  # whose versions must agree
DISK_FULL = 0.95  # Ray stops spilling here (RAY_local_fs_capacity_threshold)
DISK_LOW_BYTES = 20e9  # checkpoints of a ViT-L with its optimizer take 6 GB each
OPEN_FILES = 8192  # a raylet keeps some for each worker process and each peer
STORE_OF_MEMORY = 0.5  # more than half of the memory as object store leaves too little for the processes
TIMEOUT_S = 5.0  # of one connection


@dataclass(frozen=True)
class Finding:
    """What one check found on one node."""

    check: str
    status: Literal["ok", "warning", "problem"]
    what: str
    fix: str = ""
    node: str = ""


@dataclass(frozen=True)
class Request:
    """What a node is asked to look at. Plain data, so that it travels."""

    versions: dict[str, str]  # of the doctor's own process
    shards: tuple[str, ...] = ()
    storage: str = ""
    marker: str = ""  # a file that the doctor has put into `storage`
    tracking_uri: str = ""
    num_nodes: int = 1
    gpus: float = 0.0  # that Ray counts on this node
    object_store_bytes: float = 0.0
    folder: str = "/tmp"  # Ray's own on this node
    peers: tuple[tuple[str, int], ...] = ()  # raylets of the other nodes


def own_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that must agree on all nodes."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def versions(expected: dict[str, str]) -> Finding:
    """Compare the versions of Python and of the packages with those of the driver."""
    here = own_versions()
    other = [f"{name} {here[name]}, not {version}" for name, version in expected.items() if here[name] != version]
    if other:
        fix = "install the same wheel with the same constraints.txt on every node, or use one image"
        return Finding("versions", "problem", "; ".join(other), fix)
    return Finding("versions", "ok", ", ".join(f"{name} {version}" for name, version in here.items()))


def device_files() -> int:
    """Return how many NVIDIA GPUs the kernel shows (/dev/nvidia0, ...)."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


_SEE = (
    "import torch, json; print(json.dumps([torch.cuda.device_count(), torch.version.cuda, "
    "torch.distributed.is_nccl_available() and '.'.join(map(str, torch.cuda.nccl.version()))]))"
)


def gpus(counted: float) -> list[Finding]:
    """Compare the GPUs that Ray counts, that the kernel shows and that torch can use; look for NCCL."""
    files = device_files()
    if not files and not counted:
        return [Finding("GPU", "ok", "none on this node")]
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run([sys.executable, "-c", _SEE], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [Finding("GPU", "problem", f"torch does not start: {last}", "install torch for CUDA; see nvidia-smi")]
    seen, cuda, nccl = json.loads(done.stdout)
    what = f"Ray counts {counted:g}, /dev shows {files}, torch (CUDA {cuda}) sees {seen}"
    if seen < counted or (files and not seen):
        fix = "compare `nvidia-smi` with torch's CUDA: a newer driver, or a torch for the CUDA of this one"
        return [Finding("GPU", "problem", what, fix)]
    if seen > counted:
        found = Finding("GPU", "warning", what, f"start the node with `ray start ... --num-gpus={seen}`")
    else:
        found = Finding("GPU", "ok", what)
    if not nccl:
        return [found, Finding("NCCL", "problem", "torch was built without it", "install torch's CUDA wheel")]
    return [found, Finding("NCCL", "ok", f"version {nccl}")]


def shared_memory(object_store_bytes: float, folder: str = "/dev/shm") -> Finding:
    """Check that the object store fits into shared memory, where Ray puts it."""
    try:
        total = shutil.disk_usage(folder).total
    except OSError as error:
        return Finding("shared memory", "problem", f"{folder}: {error.strerror}", "mount a tmpfs there")
    what = f"{folder} has {total / 2**30:.1f} GiB, the object store {object_store_bytes / 2**30:.1f} GiB"
    if total < object_store_bytes:
        return Finding(
            "shared memory",
            "problem",
            f"{what}: it lies on disk",
            f"docker run --shm-size={object_store_bytes / 2**30 + 1:.0f}g; in Kubernetes an emptyDir of medium Memory "
            "on /dev/shm; or `ray start --object-store-memory` below it",
        )
    return Finding("shared memory", "ok", what)


def memory(object_store_bytes: float) -> Finding:
    """Check that the object store leaves enough memory to the processes."""
    from ray._common.utils import get_system_memory

    total = get_system_memory()
    what = f"{total / 2**30:.1f} GiB, of which the object store takes {object_store_bytes / 2**30:.1f} GiB"
    if object_store_bytes > STORE_OF_MEMORY * total:
        return Finding("memory", "warning", what, "lower `ray start --object-store-memory` to a third of the memory")
    return Finding("memory", "ok", what)


def disk(folder: str) -> Finding:
    """Check the free space where checkpoints, logs and spilled objects go."""
    place = Path(folder)
    while not place.exists() and place != place.parent:
        place = place.parent
    total, _, free = shutil.disk_usage(place)
    what = f"{folder}: {free / 1e9:.0f} GB free of {total / 1e9:.0f} GB"
    if free < (1 - DISK_FULL) * total:
        return Finding("disk", "problem", f"{what}, more than 95% full: Ray spills no more", "free some or move it")
    if free < DISK_LOW_BYTES:
        return Finding("disk", "warning", what, "a run keeps run.keep_checkpoints + 1 checkpoints; see infra.capacity")
    return Finding("disk", "ok", what)


def open_files() -> Finding:
    """Check how many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES:
        fix = f"`ulimit -n {hard if hard > 0 else 8 * OPEN_FILES}` before `ray start`"
        return Finding("open files", "warning", f"{soft} a process", fix)
    return Finding("open files", "ok", f"{soft} a process")


def ports_free(ports: Iterable[int]) -> Finding:
    """Check that a head could listen on these ports of this machine."""
    taken = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                taken.append(str(port))
    if taken:
        return Finding(
            "ports", "warning", f"in use: {', '.join(taken)}", "`ray status`, or other ports for `ray start`"
        )
    return Finding("ports", "ok", "free: " + ", ".join(map(str, ports)))


def peers(addresses: Iterable[tuple[str, int]]) -> Finding:
    """Check that this node can connect to the other nodes' raylets."""
    silent = []
    for host, port in addresses:
        try:
            socket.create_connection((host, port), TIMEOUT_S).close()
        except OSError as error:
            silent.append(f"{host}:{port} ({error.strerror or error})")
    if silent:
        return Finding(
            "network",
            "problem",
            f"no connection to {', '.join(silent)}",
            "open all TCP ports between the nodes of a cluster; check `ray start --node-ip-address`",
        )
    return Finding("network", "ok", f"reaches {len(list(addresses))} other nodes")


def mlflow(uri: str, num_nodes: int) -> Finding:
    """Check that runs can be recorded from here."""
    if not uri.startswith(("http://", "https://")):
        if num_nodes > 1:
            return Finding(
                "MLflow",
                "problem",
                f"{uri} with {num_nodes} nodes: a file that several machines write is lost",
                "start `mlflow server` (infra/mlflow/compose.yaml) and set run.tracking_uri=http://...",
            )
        return Finding("MLflow", "ok", uri)
    try:
        with urllib.request.urlopen(
            f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1", timeout=TIMEOUT_S
        ) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        fix = "start it with --allowed-hosts naming this address" if error.code == 403 else "see the server's log"
        return Finding("MLflow", "problem", f"{uri} answers {error.code}", fix)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding("MLflow", "problem", f"{uri}: {reason}", "is `mlflow server` running with --host 0.0.0.0?")
    return Finding("MLflow", "ok", f"{uri} answers")


def shards(folder: str) -> Finding:
    """Check that this node reads the shards: manifest, sizes of all files, the index."""
    from engine.store.shards import check_files, read_index, read_manifest

    try:
        check_files(folder)
        rows = len(read_index(folder, ["key"]))
        digest = read_manifest(folder)["index_sha256"]
    except (ValueError, OSError) as error:
        fix = "one file system or bucket that every node reaches; S3: credentials in every node's environment"
        return Finding("shards", "problem", " ".join(str(error).split()), fix)
    return Finding("shards", "ok", f"{folder}: {rows} specimens, index {digest[:8]}")


def storage(folder: str, marker: str) -> Finding:
    """Check that this node sees what the driver writes to run.storage, and may write there itself."""
    fix = "run.storage must be one folder on a file system that all nodes share"
    if not Path(marker).is_file():
        return Finding("storage", "problem", f"{folder}: what the driver wrote is not seen here", fix)
    own = Path(folder) / f".doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        own.write_bytes(b"")
        own.unlink()
    except OSError as error:
        return Finding("storage", "problem", f"{folder} cannot be written here: {error.strerror}", fix)
    return Finding("storage", "ok", f"{folder} is shared and writable")


def guarded(name: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """Run a check; report one that breaks as a problem, so that the others still run."""
    try:
        found = check()
    except Exception as error:  # whatever a strange machine does, the other checks must run
        return [Finding(name, "problem", f"the check broke: {type(error).__name__}: {error}", "look at this node")]
    return found if isinstance(found, list) else [found]


def node(request: Request) -> tuple[list[Finding], float]:
    """Run all checks of this node; return the findings and its clock (seconds since 1970)."""
    found = guarded("versions", lambda: versions(request.versions))
    found += guarded("GPU", lambda: gpus(request.gpus))
    if request.object_store_bytes:
        found += guarded("shared memory", lambda: shared_memory(request.object_store_bytes))
        found += guarded("memory", lambda: memory(request.object_store_bytes))
    for folder in filter(None, (request.folder, request.storage)):
        found += guarded("disk", lambda folder=folder: disk(folder))  # type: ignore[misc]
    found += guarded("open files", open_files)
    if request.peers:
        found += guarded("network", lambda: peers(request.peers))
    if request.tracking_uri:
        found += guarded("MLflow", lambda: mlflow(request.tracking_uri, request.num_nodes))
    for folder in request.shards:
        found += guarded("shards", lambda folder=folder: shards(folder))  # type: ignore[misc]
    if request.storage:
        found += guarded("storage", lambda: storage(request.storage, request.marker))
    return found, time.time()
