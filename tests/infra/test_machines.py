"""Several machines on one: networks that can be cut, quotas, nothing left behind; a Ray cluster on them, doctored."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drills.machines import CGROUPS, Machine, Network, ip, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def network() -> Iterator[Network]:
    """A network of machines, where this machine allows one."""
    try:
        with Network() as network:
            network.machine("probe")
            yield network
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespaces")


def reaches(machine: Machine, address: str, port: int) -> bool:
    program = f"import socket; socket.create_connection(('{address}', {port}), 1)"
    command = ["ip", "netns", "exec", machine.namespace, sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_machines_are_apart(network: Network, tmp_path: Path) -> None:
    """Each with its address and processes; a cable that is pulled cuts it off, a crash ends what runs on it."""
    one, two = network.machine("one"), network.machine("two")
    server = one.start([sys.executable, "-m", "http.server", "8000", "--bind", one.address], tmp_path / "log", {})
    until(lambda: reaches(two, one.address, 8000), "the server", 20)
    assert one.pids() == [server.pid] and two.pids() == []
    one.connect(False)
    assert not reaches(two, one.address, 8000)
    one.connect(True)
    until(lambda: reaches(two, one.address, 8000), "the network", 20)
    assert one.signal(signal.SIGSTOP, only="no such program") == 0
    one.crash()
    assert one.pids() == [] and server.returncode == -signal.SIGKILL


def test_a_quota_holds(network: Network, tmp_path: Path) -> None:
    """Processes that were there, and those that they start, get no more than the quota from then on."""
    if not (CGROUPS / "cpu.cfs_quota_us").exists():
        pytest.skip("no network namespaces")  # nor quotas: cgroups v1 are not mounted here
    machine = network.machine("slow")
    shell = machine.start(
        ["sh", "-c", "while true; do sh -c 'n=0; while [ $n -lt 2000 ]; do n=$((n+1)); done'; done"],
        tmp_path / "log",
        dict(os.environ),
    )
    until(machine.pids, "the shell", 20)
    machine.quota(0.1)

    def used() -> float:
        """CPU seconds of the shell and of the children that it has waited for."""
        fields = Path(f"/proc/{shell.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    started, before = time.monotonic(), used()
    time.sleep(4)
    after, elapsed = used(), time.monotonic() - started
    assert after - before <= 0.1 * elapsed + 0.3  # a child counts when it has ended
    assert set(machine.pids()) <= set(map(int, (machine.group / "cgroup.procs").read_text().split()))


def test_nothing_is_left(tmp_path: Path) -> None:
    """After an error, too: no namespace, no device, no process."""
    try:
        with Network() as network:
            machine = network.machine("one")
            process = machine.start(["sleep", "1000"], tmp_path / "log", dict(os.environ))
            raise KeyboardInterrupt
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no network namespaces")
    except KeyboardInterrupt:
        assert network.prefix not in ip("netns", "list") + ip("-o", "link")
        assert process.returncode is not None


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_the_doctor_of_a_cluster(network: Network, simulated_shards: Path, tmp_path: Path) -> None:
    """Head and two nodes with a token; every node is looked at, a sum goes over all of them; without it no entry."""
    ran = subprocess.run(
        [sys.executable, ROOT / "tests/infra/doctored.py", simulated_shards, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    (code, out, said), (refused, _, why) = json.loads(ran.stdout.splitlines()[-1])
    found = json.loads(out)
    problems = [one for one in found if one["status"] == "problem"]
    assert code == 0 and problems == [], (problems, said)
    assert len({one["node"] for one in found if one["check"] == "shards"}) == 3
    assert [one["what"] for one in found if one["check"] == "network"] == ["reaches 2 other nodes"] * 3
    (summed,) = (one for one in found if one["check"].startswith("all-reduce"))
    assert summed["what"].startswith("3 ranks")
    assert refused == 2 and "token" in why, why
