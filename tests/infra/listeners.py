"""Starts Ray as a command on one machine does; prints {process: [addresses it listens at]} of all it started as JSON.

python -m tests.infra.listeners
"""

import json
import os
import socket
import struct
from pathlib import Path


def listening() -> dict[str, str]:
    """Return {inode: address} of all sockets that listen on this machine."""
    found = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = b"".join(
                    struct.pack(">I", *struct.unpack("<I", raw[at : at + 4])) for at in range(0, len(raw), 4)
                )
                found[fields[9]] = socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, words)
    return found


def below(pid: int) -> list[int]:
    """Return a process and all that it started."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def name_of(pid: int) -> str:
    """Return what a process is: the name of its program, or of the Python file that it runs."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    script = next((word for word in words if word.endswith(".py")), words[0])
    return Path(script).stem.partition(" ")[0]


def listeners(pid: int) -> dict[str, list[str]]:
    """Return {process: addresses} of a process and all that it started."""
    sockets, found = listening(), dict[str, set[str]]()
    for one in below(pid):
        for link in Path(f"/proc/{one}/fd").glob("*"):
            try:
                inode = os.readlink(link).removeprefix("socket:[").rstrip("]")
            except OSError:
                continue
            if inode in sockets:
                found.setdefault(name_of(one), set()).add(sockets[inode])
    return {name: sorted(addresses) for name, addresses in sorted(found.items())}


if __name__ == "__main__":
    import ray

    from engine.ray_seams import start_ray

    start_ray(address="local", num_cpus=1, object_store_memory=80 << 20)
    ray.get(ray.remote(lambda: 1).remote())
    print(json.dumps(listeners(os.getpid())))
    ray.shutdown()
