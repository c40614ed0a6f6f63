"""The service attacked: schemathesis on its OpenAPI document, fuzzed bodies, broken connections.

A short form by default; `--attacks 5000` for the long one. Wanted: no 5xx, no hang, every refusal as JSON that says
what was wrong, flat memory, no file written and nothing unpickled because of a request.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as openapi

from tests.serve.conftest import Served
from tests.serve.fuzz import PATIENCE_S, Fuzzer, assault

pytestmark = pytest.mark.middle

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = 10  # of schemathesis, per endpoint
GROWTH_MIB = 64  # of resident memory, from the first half of the attacks to the second
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
    openapi.negative_data_rejection,
]
PATHS = json.loads((ROOT / "serve" / "openapi.json").read_text(encoding="utf-8"))["paths"]
OPERATIONS = [
    (path, method, mode)
    for path, methods in PATHS.items()
    for method, told in methods.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or "requestBody" in told or "parameters" in told  # else nothing can be wrong
]


class Attacked:
    """A plain server in its own process."""

    def __init__(self, served: Served) -> None:
        command = [sys.executable, "-m", "tests.serve.plain_server", "--audit"]
        for pair in (f"checkpoint={served.checkpoint}", f"library={served.library}", "max_body_mib=40"):
            command += ["--set", pair]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1"), "the server did not start"

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    def end(self) -> list[str]:
        """Ends it gently; returns what it opened for writing, unpickled or started."""
        self.process.send_signal(signal.SIGTERM)
        out, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode in (0, -signal.SIGTERM)
        events: list[str] = json.loads(out.splitlines()[-1])
        return events


@pytest.fixture(scope="module")
def attacked(served: Served) -> Iterator[Attacked]:
    server = Attacked(served)
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


@pytest.mark.parametrize(("path", "method", "mode"), OPERATIONS)
def test_the_document_is_kept(attacked: Attacked, path: str, method: str, mode: GenerationMode) -> None:
    """Whatever it allows or forbids: documented statuses, types and shapes, wrong data refused, never a 5xx."""
    document = schemathesis.openapi.from_url(f"{attacked.url}/openapi.json")
    strategy = document[path][method].as_strategy(generation_mode=mode)
    with requests.Session() as session:

        @given(case=strategy)
        @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        def attack(case: schemathesis.Case) -> None:
            case.call_and_validate(session=session, timeout=PATIENCE_S, checks=CHECKS)

        attack()


def test_fuzzed_bodies(attacked: Attacked, served: Served, pytestconfig: pytest.Config) -> None:
    count = pytestconfig.getoption("--attacks")
    fuzzer = Fuzzer.of(served)
    memory: list[float] = []
    seen = assault(attacked.url, fuzzer, count, each_tenth=lambda: memory.append(attacked.memory_mib()))
    memory.append(attacked.memory_mib())
    print(dict(sorted(seen.items())), [round(value) for value in memory])
    assert seen["honest", 200] == len(range(fuzzer.kinds.index("draw_honest"), count, len(fuzzer.kinds)))
    assert max(memory[5:]) - max(memory[2:5]) < GROWTH_MIB, memory


def test_broken_connections(attacked: Attacked) -> None:
    """Bodies that never come, lengths that lie, requests that are none: the next client is served."""
    host, port = urlsplit(attacked.url).netloc.split(":")
    head = b"POST /v1/identify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    pieces = [
        head + b"Content-Length: 1000\r\n\r\n{",
        head + b"Content-Length: -5\r\n\r\n{}",
        head + b"Content-Length: 99999999999999999999\r\n\r\n{",
        head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n" + b"x" * 1000,
        b"\x16\x03\x01" + os.urandom(200),
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ]
    open_ones = []
    for piece in pieces * 5:
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        connection.sendall(piece)
        open_ones.append(connection)
    start = time.monotonic()
    assert requests.get(f"{attacked.url}/healthz", timeout=PATIENCE_S).status_code == 200
    assert time.monotonic() - start < PATIENCE_S
    for connection in open_ones:
        connection.close()
    assert requests.get(f"{attacked.url}/healthz", timeout=PATIENCE_S).status_code == 200
    for _ in range(100):  # what was held for them is let go
        told = requests.get(f"{attacked.url}/metrics", timeout=PATIENCE_S).text
        if "taxafuse_in_flight 0.0" in told and "taxafuse_held_bytes 0.0" in told:
            return
        time.sleep(0.1)
    raise AssertionError("requests whose clients are gone are still counted")


def test_no_request_wrote_a_file_or_was_unpickled(attacked: Attacked) -> None:
    """Last of this file: of all the requests above; what is started is the decoder of costly photos."""
    assert [event for event in attacked.end() if "'serve.http.decoder'" not in event] == []
