"""Photos that cost much: decoded in a process that can be given up, clients in turn, formats and requests bounded."""

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from engine.signals.photo_cost import HEAVY, check_format, cost
from serve.http import decoder, guard, watchdog
from serve.http.api import make_app
from serve.http.bodies import Refused
from serve.http.decoder import Decoder
from serve.http.direct import client_of
from serve.http.host import ModelHost
from serve.http.service import Service
from serve.http.turns import CLIENT, Turns
from serve.http.watchdog import Watchdog
from serve.models.directory import read_directory
from serve.models.settings import Settings, read_settings
from tests.serve.conftest import Served


def encoded(kind: str, side: int, *options: int) -> bytes:
    """Return a photo of one colour: the cheapest to send for what it costs to decode."""
    return bytes(cv2.imencode(kind, np.full((side, side, 3), 90, np.uint8), options)[1].tobytes())


PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)


def test_pixels_count_whatever_they_take_to_send() -> None:
    assert cost(encoded(".png", 4000)) > HEAVY > cost(encoded(".png", 1000))
    assert cost(encoded(".jpg", 4000, *PROGRESSIVE)) > HEAVY > cost(encoded(".jpg", 4000))
    assert cost(b"GIF89a\xff\xff\xff\xff") > HEAVY


def test_a_format_that_is_not_allowed_is_refused(served: Served) -> None:
    with pytest.raises(ValueError, match="got TIFF, allowed here: JPEG, PNG"):
        check_format(encoded(".tif", 8), ("JPEG", "PNG"))
    check_format(b"GIF", ("JPEG",))  # no format: the decoder says so
    with pytest.raises(ValueError, match="photo_formats: got 'EXE'"):
        read_settings({"photo_formats": "JPEG,exe"})
    settings = Settings(checkpoint=str(served.checkpoint), photo_formats="jpeg")
    with TestClient(make_app(Service(settings, read_directory(settings), ModelHost(settings)))) as client:
        answer = client.post("/v1/identify", files=[("image", ("a.png", encoded(".png", 8)))])
        assert answer.status_code == 422 and "got PNG" in answer.json()["error"]["what"]


@pytest.mark.middle  # starts a decoder
def test_a_costly_photo_is_decoded_apart_and_given_up(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    heavy = encoded(".jpg", 4000, *PROGRESSIVE)
    answer = client.post("/v1/identify", files=[("image", ("a.jpg", heavy))])
    assert answer.status_code == 200, answer.text

    async def try_all() -> None:
        one = Decoder(60)
        (view,) = await one.views([heavy], 64)
        assert view.shape == (64, 64, 3) and abs(int(view.mean()) - 90) < 3
        with pytest.raises(ValueError, match=r"photo 2 of 2: .*unknown format"):
            await one.views([heavy, b"none"], 64)
        one.limit_s = 0.02
        with pytest.raises(ValueError, match=r"not decoded within 0\.02 seconds"):
            await one.views([heavy], 64)
        assert one._process is None
        one.limit_s = 60
        task = asyncio.create_task(one.views([heavy] * 16, 64))
        await asyncio.sleep(1)
        process = one._process
        task.cancel()  # the client goes away
        with pytest.raises(asyncio.CancelledError):
            await task
        assert process is not None and process.returncode is not None
        assert len(await one.views([heavy], 64)) == 1  # another one is started
        await one.end()

    asyncio.run(try_all())


@pytest.mark.middle  # starts a decoder
def test_a_decoder_has_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(decoder.__file__).read_text().replace("4 * GIB", "GIB // 2")

    async def ask() -> None:
        one = Decoder(60)
        one._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", source), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        with pytest.raises(ValueError, match=r"allocate|too little memory|its decoder ended"):
            await one.views([encoded(".png", 4990)] * 3, 64)
        await one.end()

    asyncio.run(ask())


def test_clients_decode_in_turn() -> None:
    """One client asks for 12 pieces, then another for one: it waits for one piece at most."""
    done: list[str] = []

    async def piece(turns: Turns, client: str) -> None:
        CLIENT.set(client)
        async with turns.turn():
            await asyncio.sleep(0.01)
            done.append(client)

    async def work() -> None:
        turns = Turns(1, 11)
        greedy = [asyncio.create_task(piece(turns, "greedy")) for _ in range(12)]
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="11 photos of this client are waiting"):
            await piece(turns, "greedy")
        honest = asyncio.create_task(piece(turns, "honest"))
        await asyncio.sleep(0.005)
        greedy[5].cancel()
        await asyncio.gather(*greedy, honest, return_exceptions=True)
        async with turns.turn():
            done.append("free again")

    asyncio.run(work())
    assert done.index("honest") <= 2 and len(done) == 13 and done[-1] == "free again"


def test_each_address_has_its_own_rate(served: Served) -> None:
    rate = guard.Rate(60)
    for _ in range(60):
        rate.check("a")
    with pytest.raises(Refused) as caught:
        rate.check("a")
    assert caught.value.status == 429 and caught.value.headers["Retry-After"] == "1"
    rate.check("b")
    guard.Rate(0).check("a")
    for number in range(20_000):
        rate.check(str(number))
    assert len(rate._left) <= 10_000
    settings = Settings(checkpoint=str(served.checkpoint), max_per_minute=2, client_header="x-forwarded-for")
    with TestClient(make_app(Service(settings, read_directory(settings), ModelHost(settings)))) as client:
        statuses = [client.get("/v1/model").status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429] and client.get("/healthz").status_code == 200
        other = client.get("/v1/model", headers={"X-Forwarded-For": "9.9.9.9, 10.0.0.7"})
        assert other.status_code == 200


def test_the_watchdog_names_requests(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "LOOK_S", 0.01)
    monkeypatch.setattr(watchdog, "STALL_S", 0.1)

    async def work() -> None:
        watched = Watchdog(guard.MemoryWatch(1 << 60))
        with watched.watching("POST /v1/identify of 31 bytes"):
            time.sleep(0.2)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)
        assert not watched._due  # it sleeps while nothing is in flight

    with caplog.at_level(logging.WARNING):
        asyncio.run(work())
    text = caplog.text
    assert "stood still for 0." in text and "memory is short" in text and "s POST /v1/identify of 31 bytes" in text


@pytest.fixture
def refusals(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "serve.http.direct"):
        yield caplog


def test_refusals_leave_a_line_without_bodies(client: TestClient, refusals: pytest.LogCaptureFixture) -> None:
    client.post("/v1/model:reload", json={"secret": "name"}, headers={"Origin": "http://evil.example"})
    assert refusals.messages == ["refused: 403 POST /v1/model:reload"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_what_changes_state_takes_no_form(client: TestClient, kind: str) -> None:
    """A page of another site can send these types unasked; application/json it cannot."""
    assert client.post("/v1/model:reload", content=b"{}", headers={"Content-Type": kind}).status_code == 415


def test_a_client_is_where_the_connection_comes_from() -> None:
    scope = {"type": "http", "client": ("1.2.3.4", 5), "headers": [(b"x-forwarded-for", b"6.6.6.6")]}
    assert client_of(Request(scope)) == "1.2.3.4"
    assert client_of(Request(scope), "x-forwarded-for") == "6.6.6.6"
