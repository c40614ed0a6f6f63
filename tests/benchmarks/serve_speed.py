"""Latency and load of the service, beside the bare predictor, plain FastAPI + uvicorn, and endpoints that do nothing.

    python -m tests.benchmarks.serve_speed --checkpoint runs/NAME --barcodes barcodes.parquet --photos folder \
        [--library DIR] [--rounds 5] [--seconds 4] [--ray-proxy]

Prints a table. In every round each variant is measured once, in turn, for --seconds; the others idle meanwhile. Told
are medians over the rounds, with the lowest and highest. Variants:

bare    `Predictor.identify` in this process: one query at a time, and 64 at once
serve   the service on Ray Serve: what stands before the replicas (HAProxy; Ray's own proxy with --ray-proxy), a replica
serve2  the same with two replicas
plain   the same HTTP interface and predictor in one uvicorn process (tests/serve/plain_server.py)
noop    on Ray Serve with the same interface, requests and answers, but without asking the model: an answer that was
        stored. What Ray Serve and the HTTP interface can do

All models run one torch thread. The client is one process that writes prepared requests to sockets. Saturated: for
each replica as many clients as it admits at once, but four.
"""

import argparse
import asyncio
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import torch

from serve.answers.answer import Query
from serve.answers.predictor import Options, Predictor
from serve.front import use_haproxy
from serve.http.host import ModelHost, Reply
from serve.main import PATIENCE_S
from serve.models.directory import Spec
from serve.models.settings import Settings

BATCH = 64
CLIENTS = 16
REPLICAS = {"serve": 1, "serve2": 2, "noop": 1, "plain": 1}
PORT = 8765
PHOTO_BYTES = 20_000


class NoopHost(ModelHost):
    """Answers with what was answered first, without asking the model again."""

    stored: Reply | None = None

    async def identify(self, spec: Spec, queries: list[Query], options: Options) -> list[Reply]:
        if self.stored is None:
            self.stored = (await super().identify(spec, queries[:1], options))[0]
        return [self.stored] * len(queries)


@dataclass(frozen=True)
class Inputs:
    """Prepared requests, and the queries that they carry."""

    queries: list[Query]  # barcodes
    photo: Query
    single: list[bytes]  # JSON bodies of one barcode
    batch: list[bytes]  # JSON bodies of BATCH barcodes
    form: bytes


class Client:
    """One keep-alive connection."""

    def __init__(self, url: str) -> None:
        self.host, self.port = urlsplit(url).hostname, urlsplit(url).port
        self.prefix = urlsplit(url).path

    async def __aenter__(self) -> "Client":
        await self.connect()
        return self

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, bytes]:
        head = f"POST {self.prefix}{path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        message = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.writer.write(message)
        try:
            answer = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            await self.connect()  # an idle connection may be closed at any time, as HAProxy does when it reloads
            self.writer.write(message)
            answer = await self.reader.readuntil(b"\r\n\r\n")
        status = int(answer[9:12])
        assert status != 503 or b"retry-after: " in answer.lower()
        length = next(int(line[15:]) for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return status, await self.reader.readexactly(length)


def inputs(options: argparse.Namespace) -> Inputs:
    rows = pq.read_table(options.barcodes, columns=["barcode", "split"]).to_pylist()
    barcodes = [row["barcode"] for row in rows if row["split"] == "test" and row["barcode"]][: 4 * BATCH]
    queries = [Query(str(number), (), barcode) for number, barcode in enumerate(barcodes)]
    files = sorted(Path(options.photos).rglob("*.jpg"))[:500]
    photo = min(files, key=lambda file: abs(file.stat().st_size - PHOTO_BYTES)).read_bytes()
    bodies = [{"key": query.key, "dna": query.dna} for query in queries]
    batches = [bodies[first : first + BATCH] for first in range(0, len(bodies) - BATCH + 1, BATCH)]
    form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + photo + b"\r\n--b--\r\n"
    return Inputs(
        queries,
        Query("photo", (photo,)),
        [json.dumps(body).encode() for body in bodies],
        [json.dumps({"queries": one}).encode() for one in batches],
        form,
    )


async def clients(
    url: str, count: int, seconds: float, ask: Callable[[Client, int], Awaitable[int]]
) -> tuple[list[float], float]:
    """Seconds of every request, and requests a second, of so many clients that ask without pause."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def one(first: int) -> None:
        async with Client(url) as client:
            number = first
            while time.perf_counter() < end:
                start = time.perf_counter()
                status = await ask(client, number)
                if status != 200:
                    raise RuntimeError(f"{url} answered {status}")
                times.append(time.perf_counter() - start)
                number += 1

    start = time.perf_counter()
    await asyncio.gather(*(one(number * 7) for number in range(count)))
    return times, len(times) / (time.perf_counter() - start)


def measure_bare(predictor: Predictor, given: Inputs, seconds: float) -> dict[str, float]:
    """p50 of one query in ms, and queries a second one by one and BATCH at a time."""

    def loop(call: Callable[[int], Any]) -> tuple[float, float]:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            call(len(times))
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times), len(times) / sum(times)

    count = len(given.queries)
    dna_ms, single = loop(lambda number: predictor.identify([given.queries[number % count]]))
    photo_ms, _ = loop(lambda number: predictor.identify([given.photo]))
    _, batches = loop(lambda number: predictor.identify(given.queries[number * BATCH % count :][:BATCH]))
    return {"dna p50 ms": dna_ms, "photo p50 ms": photo_ms, "single /s": single, "batch items/s": BATCH * batches}


async def measure_http(url: str, given: Inputs, seconds: float, many: int) -> dict[str, float]:
    """One client's p50 in ms; p50 and p99 of CLIENTS clients; rates when saturated, by `many` clients."""

    async def dna(client: Client, number: int) -> int:
        return (await client.post("/v1/identify", given.single[number % len(given.single)]))[0]

    async def photo(client: Client, number: int) -> int:
        return (await client.post("/v1/identify", given.form, "multipart/form-data; boundary=b"))[0]

    async def batch(client: Client, number: int) -> int:
        return (await client.post("/v1/identify:batch", given.batch[number % len(given.batch)]))[0]

    found: dict[str, float] = {}
    for name, ask in (("dna", dna), ("photo", photo)):
        times, _ = await clients(url, 1, seconds / 2, ask)
        found[f"{name} p50 ms"] = 1e3 * statistics.median(times)
    times, found["single, 16 clients /s"] = await clients(url, CLIENTS, seconds, dna)
    cuts = statistics.quantiles(times, n=100)
    found["16 clients p50 ms"], found["16 clients p99 ms"] = 1e3 * cuts[49], 1e3 * cuts[98]
    _, found["single /s"] = await clients(url, many, seconds, dna)
    _, rate = await clients(url, 4, seconds, batch)
    return found | {"batch items/s": BATCH * rate}


async def overload(url: str, given: Inputs, seconds: float) -> dict[int, int]:
    """Statuses of 200 clients that ask without pause; every 503 must say when to come back."""
    seen: dict[int, int] = {}
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        async with Client(url) as client:
            while time.perf_counter() < end:
                status, _ = await asyncio.wait_for(
                    client.post("/v1/identify", given.single[number % len(given.single)]), 60
                )
                seen[status] = seen.get(status, 0) + 1

    await asyncio.gather(*(one(number) for number in range(200)))
    return seen


def start_serve(settings: Settings) -> dict[str, str]:
    """The applications on one Ray Serve; returns their addresses."""
    import ray
    from ray import serve

    from serve.app import Identifier, bind

    class NoopIdentifier(Identifier):
        Host = NoopHost

    ray.init(address="local", num_cpus=6, log_to_driver=False, logging_level=logging.ERROR)  # processes, not cores
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": PATIENCE_S})
    two = replace(settings, min_replicas=2, max_replicas=2)
    applications = {"serve": bind(settings), "serve2": bind(two), "noop": bind(settings, NoopIdentifier)}
    for name, application in applications.items():
        serve.run(application, name=name, route_prefix=f"/{name}")
    return {name: f"http://127.0.0.1:{PORT}/{name}" for name in applications}


def start_plain(settings: Settings) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "tests.serve.plain_server", "--set", f"checkpoint={settings.checkpoint}"]
    command += ["--set", f"library={settings.library}"] if settings.library else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def table(rounds: list[dict[str, dict[str, float]]]) -> str:
    """Medians (lowest-highest) of every number and variant."""
    variants = list(rounds[0])
    names = list(dict.fromkeys(name for one in rounds[0].values() for name in one))
    lines = ["| | " + " | ".join(variants) + " |", "|---|" + "---:|" * len(variants)]
    for name in names:
        cells = []
        for variant in variants:
            values = sorted(one[variant][name] for one in rounds if name in one[variant])
            cells.append(f"{statistics.median(values):.4g} ({values[0]:.4g}-{values[-1]:.4g})" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdicts(rounds: list[dict[str, dict[str, float]]]) -> list[str]:
    """The figures that are asked for, each a median over rounds of a ratio or a difference within the round."""

    def middle(of: Callable[[dict[str, dict[str, float]]], float]) -> float:
        return statistics.median(of(one) for one in rounds)

    told = []
    for variant in ("serve", "serve2", "plain"):
        dna = middle(lambda one, v=variant: one[v]["dna p50 ms"] - one["bare"]["dna p50 ms"])  # type: ignore[misc]
        photo = middle(lambda one, v=variant: one[v]["photo p50 ms"] - one["bare"]["photo p50 ms"])  # type: ignore[misc]
        batch = middle(lambda one, v=variant: one[v]["batch items/s"] / one["bare"]["batch items/s"])  # type: ignore[misc]
        tail = middle(lambda one, v=variant: one[v]["16 clients p99 ms"] / one[v]["16 clients p50 ms"])  # type: ignore[misc]
        told.append(
            f"{variant}: one client, over the bare predictor at p50: JSON barcode {dna:.1f} ms, form with a photo "
            f"{photo:.1f} ms; :batch {batch:.0%} of the bare batched rate; 16 clients p99 = {tail:.1f} x p50"
        )
    for variant in ("serve", "serve2", "plain"):
        single = middle(
            lambda one, v=variant: one[v]["single /s"] / min(one["noop"]["single /s"], one["bare"]["batch items/s"])  # type: ignore[misc]
        )
        told.append(f"{variant}: single items {single:.0%} of the smaller of noop and the bare batched rate")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, text in (
        ("checkpoint", "a run's folder"),
        ("barcodes", "parquet with columns barcode and split"),
        ("photos", "folder of JPEGs"),
    ):
        parser.add_argument(f"--{name}", required=True, help=text)
    parser.add_argument("--library", default="")
    parser.add_argument("--ray-proxy", action="store_true", help="Ray Serve's own proxy before the replicas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = tempfile.TemporaryDirectory(prefix="taxafuse-")
    if not options.ray_proxy:
        use_haproxy(Path(folder.name))
    library = str(Path(options.library).resolve()) if options.library else ""
    settings = Settings(checkpoint=str(Path(options.checkpoint).resolve()), library=library)
    given = inputs(options)
    predictor = Predictor.load(settings.checkpoint, library=library or None)
    process, plain = start_plain(settings)
    try:
        urls = {**start_serve(settings), "plain": plain}
        for url in urls.values():
            asyncio.run(measure_http(url, given, 1.0, CLIENTS))  # everything is warm
        rounds = []
        for number in range(options.rounds):
            one = {"bare": measure_bare(predictor, given, options.seconds)}
            for name, url in urls.items():
                many = REPLICAS[name] * (settings.max_in_flight - 4)
                one[name] = asyncio.run(measure_http(url, given, options.seconds, many))
            rounds.append(one)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        print(f"photo of {len(given.photo.images[0]):,} bytes\n\n{table(rounds)}\n")
        print("\n".join(verdicts(rounds)))
        print(f"serve, 200 clients: {asyncio.run(overload(urls['serve'], given, options.seconds))}")
    finally:
        process.terminate()


if __name__ == "__main__":
    main()
