"""Machines on one machine: network namespaces on a bridge, each with its processes, and CPU quotas. Needs root.

Nothing is ended by name: a machine's processes are those that the kernel lists for its namespace.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup/cpu")  # version 1, as mounted where this was written
PERIOD_US = 20_000  # short, so that a quota feels like a slower CPU and not like one that stops


def until(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    """The first true value of `condition`, asked ten times a second. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)
    return value


def ip(*words: str) -> str:
    """Run `ip WORDS`; returns what it says. Raises CalledProcessError."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Machine:
    """One namespace with an address of its own; `name` is part of the namespace's."""

    def __init__(self, network: "Network", name: str, number: int) -> None:
        self.name, self.address = name, f"10.{network.net}.0.{number}"
        self.namespace, self.outside = f"{network.prefix}-{number}", f"{network.prefix}{number}"
        self.group: Path | None = None
        self.processes: list[subprocess.Popen[bytes]] = []
        ip("netns", "add", self.namespace)
        ip("link", "add", self.outside, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        ip("link", "set", self.outside, "master", network.bridge, "up")
        for words in (
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
            f"route add default via 10.{network.net}.0.1",
        ):
            ip("-n", self.namespace, *words.split())

    def quota(self, cpus: float) -> None:
        """At most so many CPUs for what runs here now, and its children. Raises ValueError without cgroups v1."""
        if not (CGROUPS / "cpu.cfs_quota_us").exists():
            raise ValueError(f"CPU quotas: got no {CGROUPS}/cpu.cfs_quota_us, allowed: a machine with cgroups v1")
        if not self.group:
            self.group = CGROUPS / self.namespace
            self.group.mkdir()
            (self.group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (self.group / "cpu.cfs_quota_us").write_text(str(int(cpus * PERIOD_US)))
        procs = self.group / "cgroup.procs"
        while missing := set(self.pids()) - set(map(int, procs.read_text().split())):  # children of those may be born
            for pid in missing:
                with contextlib.suppress(OSError):  # it ended meanwhile
                    procs.write_text(str(pid))

    def start(self, command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a process on this machine, in a process group of its own."""
        inside = ["ip", "netns", "exec", self.namespace, *command]
        with log.open("ab") as out:
            process = subprocess.Popen(inside, stdout=out, stderr=out, env=environment, start_new_session=True)
        self.processes.append(process)
        return process

    def pids(self) -> list[int]:
        """All processes on this machine."""
        return [int(pid) for pid in ip("netns", "pids", self.namespace).split()]

    def signal(self, number: int, only: str = "") -> int:
        """Send a signal to every process on this machine whose command line contains `only`; returns how many."""
        sent = 0
        for pid in self.pids():
            try:
                if only.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "):
                    os.kill(pid, number)
                    sent += 1
            except OSError:  # it ended meanwhile
                continue
        return sent

    def crash(self) -> None:
        """End everything at once, as a power cut does."""
        end = time.monotonic() + 30
        while self.pids():
            self.signal(signal.SIGKILL)
            assert time.monotonic() < end, f"{self.namespace} has processes that SIGKILL does not end"
            time.sleep(0.05)
        for process in self.processes:
            process.wait(30)
        self.processes.clear()

    def connect(self, connected: bool) -> None:
        """Pull the network cable, or put it back."""
        ip("link", "set", self.outside, "up" if connected else "down")

    def _ungrouped(self) -> bool:
        """Whether the control group could be removed: the kernel keeps it while a dead process is in it."""
        try:
            self.group.rmdir()
        except OSError:
            return False
        return True

    def destroy(self) -> None:
        """End everything and remove the machine."""
        self.crash()
        ip("link", "del", self.outside)  # sockets that die slowly would keep it for minutes
        ip("netns", "del", self.namespace)
        if self.group:
            until(self._ungrouped, "the processes of a control group to be gone", 60)


class Network:
    """A bridge with machines; the host is number 1 on it. Use as a context: at its end nothing is left."""

    def __init__(self) -> None:
        self.prefix = f"tf{secrets.token_hex(2)}"  # names of network devices have 15 characters at most
        used = ip("-4", "-o", "addr")
        self.net = next(net for net in range(77, 255) if f" 10.{net}." not in used)
        self.bridge, self.host = f"{self.prefix}br", f"10.{self.net}.0.1"
        self.machines: list[Machine] = []
        self._number = 9

    def __enter__(self) -> "Network":
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.host}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        return self

    def machine(self, name: str) -> Machine:
        """Add a machine."""
        self._number += 1  # never used again: the kernel removes devices some time after their namespace
        machine = Machine(self, name, self._number)
        self.machines.append(machine)
        return machine

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:  # all of it, whatever one of them raises
            stack.callback(ip, "link", "del", self.bridge)
            for machine in self.machines:
                stack.callback(machine.destroy)
