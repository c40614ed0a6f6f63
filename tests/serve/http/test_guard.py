"""One client's bounded share: bodies of too many elements, photos that cost too much, foreign pages, short memory."""

import struct
import time

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from engine.signals.photo_cost import cost
from serve.http import guard
from serve.http.bodies import Refused, check_json
from tests.serve.conftest import Served

BATCH = "/v1/identify:batch"


def tiff(*entries: tuple[int, int, int, int], magic: bytes = b"II*\0") -> bytes:
    """Return a TIFF of one directory with (tag, kind, number, value) entries."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return magic + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def progressive(scans: int, height: int = 2000, width: int = 2000) -> bytes:
    """Return the structure of a progressive JPEG of many scans, each with a few bytes."""
    frame = b"\xff\xc2\0\x11\x08" + struct.pack(">HH", height, width) + b"\3\1\x22\0\2\x11\0\3\x11\0"
    return b"\xff\xd8" + frame + b"\xff\xda\0\x08\1\1\0\0\0\0\x12\x34\xff\0\x56" * scans + b"\xff\xd9"


@pytest.mark.parametrize(
    "body",
    [
        b'{"queries":[' + b",".join([b"1"] * 8_000_000) + b"]}",
        b'{"queries":[' + b",".join([b"{}"] * 700_000) + b"]}",
        b"[" * 2_000_000,
        b'{"a":' * 400_000,
        b'{"queries":[{"key":"a"}],"subset":[' + b",".join([b'"x"'] * 300_000) + b"]}",
    ],
    ids=["numbers", "empty queries", "depth of lists", "depth of objects", "subset"],
)
def test_elements_are_counted_before_they_are_parsed(body: bytes) -> None:
    start = time.process_time()
    with pytest.raises(Refused, match="body: got"):
        check_json(body, 3 * 256 + 64, 100_000 + 24 * 256)
    assert time.process_time() - start < 0.2


def test_many_elements_get_a_413_and_few_error_lines(client: TestClient, served: Served) -> None:
    limit = {"Content-Type": "application/json"}
    answer = client.post(BATCH, content=b'{"queries":[' + b"{}," * 9000 + b"{}]}", headers=limit)
    assert answer.status_code == 413 and "objects" in answer.json()["error"]["what"]
    answer = client.post(BATCH, content=b'{"queries":[' + b"1," * 90_000 + b"1]}", headers=limit)
    assert answer.status_code == 422 and len(answer.content) < 1000
    answer = client.post("/v1/identify", json={"dna": ["x" * 100_000] * 5})
    assert answer.status_code == 422 and len(answer.content) < 1000


def test_a_tiff_says_its_size_once() -> None:
    one = [(256, 4, 1, 50), (257, 4, 1, 50)]
    assert cost(tiff(*one)) > 0
    for wrong in (
        [*one, (256, 4, 1, 30_000)],
        [*one, (257, 3, 1, 30_000)],
        [(256, 4, 2, 8), (257, 4, 1, 50)],
        [(256, 16, 1, 8), (257, 4, 1, 50)],
        [*one, (277, 3, 1, 60_000)],
    ):
        with pytest.raises(ValueError, match="TIFF"):
            cost(tiff(*wrong))
    with pytest.raises(ValueError, match="BigTIFF"):
        cost(tiff(*one, magic=b"II+\0"))
    with pytest.raises(ValueError, match="truncated"):
        cost(tiff(*one)[:20])


def test_scans_of_a_jpeg_are_counted() -> None:
    assert cost(progressive(10)) == 40_000_000
    for scans, height in ((800, 2000), (65, 10), (40, 30_000)):
        with pytest.raises(ValueError, match="scans"):
            cost(progressive(scans, height))
    with pytest.raises(ValueError, match="two frames"):
        cost(progressive(1) + progressive(1)[2:])
    pixels = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    for options in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 4]):
        photo = cv2.imencode(".jpg", pixels, options)[1].tobytes()
        assert 60_000 <= cost(photo) <= 12 * 60_000
    for length in range(0, 400, 7):
        cost(progressive(3)[:length])  # cut anywhere: left to the decoder


def test_looking_at_a_jpeg_is_cheap() -> None:
    start = time.process_time()
    assert cost(b"\xff\xd8" + b"\xff\0" * (16 << 20)) == 0
    with pytest.raises(ValueError, match="segments"):
        cost(b"\xff\xd8" + b"\xff\xe0\0\2" * (8 << 20))
    assert time.process_time() - start < 3


def test_costly_photos_are_refused_in_their_place(client: TestClient, served: Served) -> None:
    one = next(one for one in served.specimens() if one.image)
    assert one.image is not None
    files = [("image", ("a.tif", tiff((256, 4, 1, 50), (257, 4, 1, 50), (256, 4, 1, 30_000))))]
    answer = client.post("/v1/identify", files=files)
    assert answer.status_code == 422 and "TIFF" in answer.json()["error"]["what"]
    assert client.post("/v1/identify", files=[("image", ("a.jpg", one.image))]).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "testserver", "a.ns.svc:80", "x.internal"]
)
def test_own_names_are_served(client: TestClient, host: str) -> None:
    assert client.get("/v1/model", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.org."])
def test_a_rebound_name_is_refused(client: TestClient, host: str) -> None:
    for answer in (
        client.get("/v1/model", headers={"Host": host}),
        client.post("/v1/model:reload", json={}, headers={"Host": host}),
    ):
        assert answer.status_code == 403 and "allowed_hosts" in answer.json()["error"]["allowed"]
    guard.check_host({"host": "names.example:443"}, ("names.example",))


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
def test_another_sites_page_cannot_post(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/v1/model:reload", json={}, headers=headers).status_code == 403
    assert client.post("/v1/identify", data={"dna": "ACGT"}, files={}, headers=headers).status_code in (403, 415)
    assert client.post("/v1/model:reload", json={}, headers={"Origin": "http://testserver"}).status_code == 200


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/v1/model", "/nowhere", "/healthz"):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in guard.HEADERS} == guard.HEADERS
    policy = client.get("/").headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_short_memory_turns_away_before_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    assert guard.free_bytes() > 0
    monkeypatch.setattr(guard, "free_bytes", lambda: guard.SPARE_BYTES + (1 << 20))
    watch = guard.MemoryWatch()
    watch.check()
    with pytest.raises(Refused, match="memory is short") as caught:
        watch.check(2 << 20)
    assert caught.value.status == 503
