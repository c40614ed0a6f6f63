"""The service as it is started, on Ray Serve in processes of its own: answers, overload, reload, a killed replica."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from serve.answers.answer import Query
from serve.answers.predictor import Predictor
from serve.app import DEPLOYMENT
from tests.serve.conftest import Served, Stored
from tests.serve.fuzz import Fuzzer, assault
from tests.serve.http.test_app import close, unnamed
from tests.serve.http.test_service import moved

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
IN_FLIGHT = 6
START_S = 300  # on a machine that does much else


class Running:
    """`python -m serve.main` with a copy of the tiny model, so that it can be changed."""

    def __init__(self, served: Served, folder: Path) -> None:
        self.model = folder / "tiny" / "model"
        shutil.copytree(served.checkpoint, self.model)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "-m",
            "serve.main",
            "--checkpoint",
            str(self.model),
            "--port",
            str(port),
            "--library",
            str(served.library),
            "--max-in-flight",
            str(IN_FLIGHT),
        ]
        self.log = (folder / "log.txt").open("w+")
        environment = os.environ | {"RAY_ADDRESS": "local"}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self.log, stderr=self.log)

    def wait(self) -> None:
        for _ in range(START_S * 10):
            if f"serving at {self.url}" in Path(self.log.name).read_text():
                return
            assert self.process.poll() is None, Path(self.log.name).read_text()
            time.sleep(0.1)
        raise AssertionError(f"not serving after {START_S} s: {Path(self.log.name).read_text()}")

    def replicas(self) -> list[int]:
        """Process numbers of the replicas of this service."""
        return self.below(f"ServeReplica:taxafuse:{DEPLOYMENT}")

    def below(self, title_part: str) -> list[int]:
        """Processes of this service whose command line holds these words."""
        parents: dict[int, int] = {}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                told = (folder / "stat").read_text()
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            parents[int(folder.name)] = int(told.rsplit(")", 1)[1].split()[1])
            if title_part.encode() in title:
                found.append(int(folder.name))
        return [one for one in found if self.process.pid in _ancestors(one, parents)]


def _ancestors(one: int, parents: dict[int, int]) -> set[int]:
    seen: set[int] = set()
    while one in parents and one not in seen:
        seen.add(one)
        one = parents[one]
    return seen


def test_a_service_that_still_starts_ends_at_once(served: Served, tmp_path: Path) -> None:
    service = Running(served, tmp_path)
    log = Path(service.log.name)
    for _ in range(START_S * 10):
        if "Started Serve" in log.read_text():
            break
        time.sleep(0.1)
    service.process.terminate()
    assert service.process.wait(90) == 143 and "*** SIG" not in log.read_text()


@pytest.fixture(scope="module")
def running(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = Running(served, tmp_path_factory.mktemp("running"))
    try:
        service.wait()
        yield service
    finally:
        if service.process.poll() is None:
            service.process.terminate()
            try:
                service.process.wait(60)
            except subprocess.TimeoutExpired:
                service.process.kill()


@pytest.fixture(scope="module")
def some(served: Served) -> list[Stored]:
    return [one for one in served.specimens() if one.image and one.dna][:16]


def body(one: Stored, asked: str) -> dict[str, Any]:
    image = {"images": [base64.b64encode(one.image or b"").decode()]} if asked != "dna" else {}
    return {"key": one.key, "threshold": 0.3, **image, **({"dna": one.dna} if asked != "image" else {})}


def query(one: Stored, asked: str) -> Query:
    return Query(one.key, (one.image or b"",) if asked != "dna" else (), one.dna if asked != "image" else None)


ASKED = ("image", "dna", "fused")


def test_answers_are_the_predictors_alone_and_in_a_batch(
    running: Running, predictor: Predictor, some: list[Stored]
) -> None:
    queries = [query(one, ASKED[number % 3]) for number, one in enumerate(some)]
    wanted = [
        unnamed(json.loads(json.dumps(answer.to_dict()))) for answer in predictor.identify(queries, threshold=0.3)
    ]
    bodies = [body(one, ASKED[number % 3]) for number, one in enumerate(some)]
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda one: requests.post(f"{running.url}/v1/identify", json=one, timeout=60), bodies))
    for answer, expected in zip(alone, wanted, strict=True):
        assert answer.status_code == 200 and close(unnamed(answer.json()), expected)
    for one in bodies:
        del one["threshold"]
    batch = requests.post(f"{running.url}/v1/identify:batch", json={"queries": bodies, "threshold": 0.3}, timeout=60)
    for found, expected in zip(batch.json()["answers"], wanted, strict=True):
        assert close(unnamed(found), expected)
    stored = some[0]
    form = requests.post(
        f"{running.url}/v1/identify",
        timeout=60,
        files=[
            ("image", ("x.jpg", stored.image or b"")),
            ("dna", (None, stored.dna or "")),
            ("key", (None, stored.key)),
            ("threshold", (None, "0.3")),
        ],
    )
    (named,) = predictor.identify([query(stored, "fused")], threshold=0.3)
    assert close(unnamed(form.json()), unnamed(json.loads(json.dumps(named.to_dict()))))


def test_the_other_endpoints_work_through_ray(running: Running) -> None:
    health = requests.get(f"{running.url}/healthz", timeout=60)
    assert health.status_code == 200 and health.json()["model"].startswith("tiny/")
    assert requests.get(f"{running.url}/v1/taxa", timeout=60).json()["total"] > 16
    assert requests.get(f"{running.url}/v1/model", timeout=60).json()["card"]["library"]["version"] == 1
    assert "taxafuse_requests_total" in requests.get(f"{running.url}/metrics", timeout=60).text
    assert requests.get(f"{running.url}/", timeout=60).headers["content-type"].startswith("text/html")


def test_nothing_listens_beyond_this_machine_for_the_service(running: Running) -> None:
    """HAProxy's counters, too, are bound to loopback: Ray's own configuration opens them to the network."""
    front, ports = (
        [],
        {
            line.split()[9]: line.split()[1]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if line.split()[3] == "0A"
        },
    )
    for process in running.below("haproxy"):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            socket_number = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
            if socket_number and socket_number[1] in ports:
                front.append(ports[socket_number[1]])
    assert len(front) == 3 and {address.split(":")[0] for address in front} == {"0100007F"}, front


def test_too_large_a_body_is_refused_while_it_comes(running: Running) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(60):
            yield bytes(1 << 20)

    try:
        answer = requests.post(
            f"{running.url}/v1/identify", data=endless(), timeout=60, headers={"Content-Type": "application/json"}
        )
    except requests.ConnectionError:
        pass  # closed before all of it was sent
    else:
        assert answer.status_code == 413 and "allowed" in answer.json()["error"]
    assert requests.get(f"{running.url}/healthz", timeout=60).status_code == 200


def test_attacked_through_ray(running: Running, served: Served) -> None:
    """The bodies of test_attacks.py, the short form: Ray Serve's proxy stands between."""
    seen = assault(running.url, Fuzzer.of(served), 100)
    assert seen["honest", 200] > 0
    assert requests.get(f"{running.url}/healthz", timeout=60).status_code == 200


def test_past_capacity_503_with_retry_after_and_no_wrong_answer(
    running: Running, predictor: Predictor, some: list[Stored]
) -> None:
    queries = [body(some[number % len(some)], "fused") for number in range(64)]
    for one in queries:
        del one["threshold"]
    wanted = [
        answer.to_dict()["answer"]["name"] for answer in predictor.identify([query(one, "fused") for one in some])
    ]

    def ask(_: int) -> requests.Response:
        return requests.post(f"{running.url}/v1/identify:batch", json={"queries": queries}, timeout=60)

    with ThreadPoolExecutor(6 * IN_FLIGHT) as pool:
        answers = list(pool.map(ask, range(12 * IN_FLIGHT)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["Retry-After"]) >= 1 and "busy" in answer.json()["error"]["what"]
        else:
            names = [found["answer"]["name"] for found in answer.json()["answers"]]
            assert names == [wanted[number % len(some)] for number in range(64)]


class Load:
    """Clients that ask one after another until they are told to stop."""

    def __init__(self, running: Running, one: Stored, clients: int) -> None:
        self.url, self.body = f"{running.url}/v1/identify", body(one, "dna")
        self.answers: list[tuple[float, float, int, Any]] = []  # began, ended, status, answer
        self.done = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self.done.is_set():
            began = time.monotonic()
            try:
                answer = requests.post(self.url, json=self.body, timeout=60)
            except requests.ConnectionError as error:  # closed without an answer
                self.answers.append((began, time.monotonic(), 0, repr(error)))
                continue
            told = answer.json() if answer.status_code == 200 else answer.text
            self.answers.append((began, time.monotonic(), answer.status_code, told))

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        for thread in self.threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Until so many further answers are there."""
        wanted = len(self.answers) + count
        for _ in range(START_S * 20):
            if len(self.answers) >= wanted:
                return
            time.sleep(0.05)
        raise AssertionError(f"{len(self.answers)} of {wanted} answers")


def test_a_killed_replica_costs_its_own_requests_only(running: Running, some: list[Stored]) -> None:
    clients = 4
    with Load(running, some[0], clients) as load:
        load.wait_for(10)
        (victim,) = running.replicas()
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        load.wait_for(30)
    failed = [(began, status) for began, _, status, _ in load.answers if status != 200]
    assert {status for _, status in failed} <= {0, 500}  # HAProxy closes the connection, Ray Serve's proxy says 500
    assert len(failed) <= clients, f"{len(failed)} requests failed"
    assert all(began < killed + 0.5 for began, _ in failed), "requests failed that began after the kill"
    assert running.replicas() not in ([], [victim])


def test_reload_through_ray_drops_no_request(served: Served, running: Running, some: list[Stored]) -> None:
    before = requests.get(f"{running.url}/healthz", timeout=60).json()["model"]
    moved(served, running.model)
    with Load(running, some[0], 3) as load:
        load.wait_for(5)
        reloaded = requests.post(f"{running.url}/v1/model:reload", json={}, timeout=60).json()
        load.wait_for(10)
    after = requests.get(f"{running.url}/healthz", timeout=60).json()["model"]
    assert after != before and reloaded["loaded"] == [after]
    assert {status for _, _, status, _ in load.answers} == {200}
    assert {f"tiny/{told['model']['version']}" for _, _, _, told in load.answers} == {before, after}


def test_sigterm_answers_what_is_in_flight_and_ends(running: Running, some: list[Stored]) -> None:
    """Last of this file: it ends the service."""
    queries = [body(one, "fused") for one in some] * 4
    for one in queries:
        one.pop("threshold", None)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(requests.post, f"{running.url}/v1/identify:batch", json={"queries": queries}, timeout=60)
        for _ in range(200):
            told = requests.get(f"{running.url}/metrics", timeout=60).text
            if "taxafuse_in_flight 1.0" in told or asked.done():
                break
        running.process.terminate()
        assert asked.result().status_code == 200
        ends = pool.submit(running.process.wait, 90)
        while not ends.done():  # whoever asks now is asked to come back
            with contextlib.suppress(requests.ConnectionError):
                answer = requests.get(f"{running.url}/v1/model", timeout=60)
                assert answer.status_code in (200, 503), answer.text
                assert answer.status_code == 200 or answer.headers["Retry-After"]
    assert ends.result() == 0
