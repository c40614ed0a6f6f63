"""10,000 hostile requests over 8 connections, and an honest client beside them: its latency, the replica's memory.

The attacker is a process of its own, so that what it draws costs the honest client nothing but the service's time.
"""

import json
import multiprocessing
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests

from tests.serve.conftest import Served
from tests.serve.fuzz import JSON, PATHS, PATIENCE_S, Attack, Fuzzer, form

pytestmark = pytest.mark.slow  # a server, an attacker, and about a minute

ROOT = Path(__file__).resolve().parents[3]
COUNT, CONNECTIONS = 10_000, 8
HONEST = 200  # requests of the honest client before the attack
GROWTH_MIB = 100
EXPENSIVE = ("draw_bomb", "draw_honest", "draw_many", "draw_long_barcode", "draw_elements", "draw_broken_json")
EXPENSIVE_EACH = 5
HEAVY_EACH = 250  # one attack in so many is a photo that takes a decoder seconds


class Many(Fuzzer):
    """Also what costs most: photos of many scans and pixels, lists of a million elements, checklists of names."""

    def attacks(self, count: int) -> Iterator[Attack]:
        """`count` of them: the kinds that take long to draw, to send or to answer once in EXPENSIVE_EACH rounds."""
        cheap = [name for name in self.kinds if name not in EXPENSIVE]
        number = 0
        while number < count:
            whole = number % (EXPENSIVE_EACH * len(cheap)) < len(cheap)
            for name in [*cheap, *(EXPENSIVE if whole else ())][: count - number]:
                made: Attack = getattr(self, name)(self.random.choice(PATHS))
                yield self.heavy() if number % HEAVY_EACH == 0 else made
                number += 1

    def draw_elements(self, path: str) -> Attack:
        items = b",".join([self.random.choice((b"{}", b"1", b"[]"))] * 300_000)
        return Attack("elements", PATHS[1], JSON, b'{"queries":[' + items + b"]}")

    def draw_checklist(self, path: str) -> Attack:
        names = [f"Genus{self.random.randrange(10**9)} x" for _ in range(2000)]
        return self.json("checklist", PATHS[0], {"dna": self.dna}, subset=names)

    def heavy(self) -> Attack:
        return Attack("heavy", PATHS[0], "multipart/form-data; boundary=b0undary", form([("image", "a", self.costly)]))

    costly: bytes = b""


def attack(url: str, jpeg: bytes, dna: str, results: Any) -> None:
    """Send all attacks over CONNECTIONS connections; put ({kind, status}: count, faults)."""
    fuzzer = Many(jpeg, dna, big=9 << 20, seed=26)
    pixels = np.random.default_rng(1).integers(0, 60, (3000, 3000, 3), dtype=np.uint8)
    fuzzer.costly = bytes(cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[1])
    waiting: queue.Queue[Attack | None] = queue.Queue(4 * CONNECTIONS)
    seen: Counter[str] = Counter()
    faults: list[str] = []

    def send() -> None:
        with requests.Session() as session:
            while (one := waiting.get()) is not None:
                try:
                    headers = {"Content-Type": one.content_type}
                    answer = session.post(url + one.path, data=one.body, headers=headers, timeout=PATIENCE_S)
                    seen[f"{one.kind} {answer.status_code}"] += 1
                    if answer.status_code >= 500 and answer.status_code != 503:
                        faults.append(f"{one.kind}: {answer.status_code} {answer.text[:300]}")
                except requests.ConnectionError:  # refused by its length and closed before all was sent
                    seen[f"{one.kind} closed"] += 1
                except requests.Timeout:
                    faults.append(f"{one.kind}: no answer in {PATIENCE_S} s")

    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for one in fuzzer.attacks(COUNT):
        waiting.put(one)
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    results.put((dict(seen), faults))


class Replica:
    """A plain server in its own process."""

    def __init__(self, served: Served) -> None:
        command = [sys.executable, "-m", "tests.serve.plain_server"]
        for pair in (f"checkpoint={served.checkpoint}", f"library={served.library}", "max_body_mib=8"):
            command += ["--set", pair]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.fixture
def replica(served: Served) -> Iterator[Replica]:
    server = Replica(served)
    yield server
    server.process.kill()
    server.process.wait()


def latencies(url: str, dna: str, until: Any) -> list[float]:
    """Return the seconds of an honest client's barcodes, one after another; each must be answered."""
    found: list[float] = []
    with requests.Session() as session:
        while not until(len(found)):
            start = time.perf_counter()
            answer = session.post(f"{url}/v1/identify", json={"dna": dna}, timeout=PATIENCE_S)
            found.append(time.perf_counter() - start)
            assert answer.status_code == 200, answer.text
            time.sleep(0.01)
    return found


def test_ten_thousand_hostile_requests_beside_an_honest_client(replica: Replica, served: Served) -> None:
    one = next(one for one in served.specimens() if one.image and one.dna)
    jpeg, dna = one.image or b"", one.dna or ""
    latencies(replica.url, dna, lambda done: done >= 50)
    alone = np.percentile(latencies(replica.url, dna, lambda done: done >= HONEST), [50, 99])
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    attacker = context.Process(target=attack, args=(replica.url, jpeg, dna, results))
    memory: list[float] = []

    def ended(done: int) -> bool:
        if done % 50 == 0:
            memory.append(replica.memory_mib())
        return not results.empty() or attacker.exitcode is not None

    start = time.monotonic()
    attacker.start()
    beside = latencies(replica.url, dna, ended)
    seen, faults = results.get(timeout=PATIENCE_S)
    attacker.join()
    seconds = time.monotonic() - start
    memory.append(replica.memory_mib())
    during = np.percentile(beside, [50, 99])
    statuses = Counter[str]()
    for name, count in seen.items():
        statuses[name.rpartition(" ")[2]] += count
    warm = memory[len(memory) // 4]
    print(
        json.dumps({"attacks": sum(seen.values()), "seconds": round(seconds), "statuses": statuses}),
        f"honest p50/p99 alone {alone * 1000} ms, beside {during * 1000} ms ({len(beside)} requests)",
        f"memory {memory[0]:.0f} -> {warm:.0f} -> {memory[-1]:.0f} MiB",
    )
    assert not faults, faults[:5]
    assert sum(seen.values()) == COUNT
    assert memory[-1] - warm < GROWTH_MIB
