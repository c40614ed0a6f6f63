"""Bodies that no honest client sends, and some that one does: a pure function of the seed."""

import base64
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

from serve.http.schemas import ErrorBody
from tests.serve.conftest import Served

BOUNDARY = "b0undary"
JSON, FORM = "application/json", f"multipart/form-data; boundary={BOUNDARY}"
REFUSALS = {400, 404, 413, 415, 422}
PATIENCE_S = 60  # a request that takes longer hangs
PATHS = ("/v1/identify", "/v1/identify:batch", "/v1/embed")
NAMES = (
    "../../etc/passwd",
    "/etc/shadow",
    "C:\\windows\\win.ini",
    "a\0b",
    "%2e%2e%2f",
    "\u202e",
    "x" * 5000,
    "\ud7ff",
)
_TYPES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    2**80,
    "",
    "\0",
    [],
    {},
    [[]],
    {"a": {}},
    "NaN",
    ["x"] * 40,
    [None],
    -0.0,
)


@dataclass(frozen=True)
class Attack:
    """One request."""

    kind: str
    path: str
    content_type: str
    body: bytes


def form(parts: list[tuple[str, str | None, bytes]]) -> bytes:
    """(name, file name or None, data) -> a multipart body."""
    lines = []
    for name, file, data in parts:
        told = f'; filename="{file}"' if file is not None else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{told}\r\n\r\n'
        lines.append(head.encode("utf-8", "replace") + data + b"\r\n")
    return b"".join(lines) + f"--{BOUNDARY}--\r\n".encode()


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A grey PNG that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    )


def bombs(jpeg: bytes) -> list[bytes]:
    """Small files of enormous photos."""
    place = next(i for i in range(len(jpeg)) if jpeg[i : i + 1] == b"\xff" and jpeg[i + 1] in (0xC0, 0xC2))
    huge = jpeg[: place + 5] + struct.pack(">HH", 65000, 65000) + jpeg[place + 9 :]
    wide = jpeg[: place + 5] + struct.pack(">HH", 7000, 7000) + jpeg[place + 9 :]
    return [
        png(30000, 30000, bytes(30001 * 1000)),
        png(5000, 5000, bytes(5001 * 5000)),
        huge,
        wide,
        wide[: place + 1] + b"\xc2" + wide[place + 2 :],  # progressive: all coefficients are kept
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(50),
        b"BM" + bytes(16) + struct.pack("<ii", 2**30, -(2**31)) + bytes(50),
        b"II*\0" + struct.pack("<I", 2**31) + bytes(50),
        b"RIFF" + struct.pack("<I", 40) + b"WEBPVP8X" + bytes(8) + b"\xff" * 20,
    ]


class Fuzzer:
    """Draws attacks. `jpeg`, `dna`: an honest photo and barcode to start from; `big`: bytes beyond the body's limit."""

    def __init__(self, jpeg: bytes, dna: str, big: int, seed: int = 0) -> None:
        self.jpeg, self.dna, self.big, self.random = jpeg, dna, big, random.Random(seed)
        self.bombs = bombs(jpeg)
        self.kinds = [name for name in dir(self) if name.startswith("draw_")]

    @classmethod
    def of(cls, served: Served) -> "Fuzzer":
        """Starting from a simulated specimen; the largest bodies have 50 MiB."""
        honest = next(one for one in served.specimens() if one.image and one.dna)
        return cls(honest.image or b"", honest.dna or "", big=50 << 20)

    def attacks(self, count: int) -> Iterator[Attack]:
        """`count` of them, every kind in turn."""
        for number in range(count):
            name = self.kinds[number % len(self.kinds)]
            path = self.random.choice(PATHS)
            made: Attack = getattr(self, name)(path)
            yield made

    def json(self, kind: str, path: str, query: dict[str, object], **others: object) -> Attack:
        body = {**query, **others} if path == PATHS[0] else {"queries": [query], **others}
        return Attack(kind, path, JSON, json.dumps(body).encode("utf-8", "surrogatepass"))

    def photo(self, kind: str, path: str, data: bytes) -> Attack:
        """As base64 or as a file of a form."""
        if path == PATHS[0] and self.random.random() < 0.5:
            return Attack(kind, path, FORM, form([("image", self.random.choice(NAMES), data)]))
        return self.json(kind, path, {"images": [base64.b64encode(data).decode()]})

    def draw_honest(self, path: str) -> Attack:
        query = {"key": "k", "dna": self.dna, "images": [base64.b64encode(self.jpeg).decode()]}
        return self.json("honest", path, query)

    def draw_cut_jpeg(self, path: str) -> Attack:
        return self.photo("cut jpeg", path, self.jpeg[: self.random.randrange(len(self.jpeg))])

    def draw_flipped_jpeg(self, path: str) -> Attack:
        data = bytearray(self.jpeg)
        for _ in range(self.random.randint(1, 40)):
            data[self.random.randrange(len(data))] = self.random.randrange(256)
        return self.photo("flipped jpeg", path, bytes(data))

    def draw_bomb(self, path: str) -> Attack:
        return self.photo("bomb", path, self.random.choice(self.bombs))

    def draw_type(self, path: str) -> Attack:
        name = self.random.choice(
            ["key", "images", "dna", "threshold", "ranks", "subset", "top", "model", "queries", "x"]
        )
        return self.json("type", path, {"dna": self.dna}, **{name: self.random.choice(_TYPES)})

    def draw_nul(self, path: str) -> Attack:
        place = self.random.randrange(len(self.dna))
        return self.json("nul", path, {"key": "a\0b", "dna": self.dna[:place] + "\0" + self.dna[place:]})

    def draw_name(self, path: str) -> Attack:
        name = self.random.choice(NAMES)
        key, value = self.random.choice([("key", name), ("dna", name), ("model", name), ("subset", [name, "x"])])
        return self.json("name", path, {"dna": self.dna, "key": name}, **{key: value})

    def draw_long_barcode(self, path: str) -> Attack:
        if path == PATHS[0]:
            text = (">x\n" + "ACGT\n" * 250_000).encode() if self.random.random() < 0.5 else b"ACGT" * 250_000
            return Attack("long barcode", path, FORM, form([("dna", None, text)]))
        return self.json("long barcode", path, {"dna": "ACGT" * self.random.choice([4_999, 250_000])})

    def draw_strange_barcode(self, path: str) -> Attack:
        letters = self.random.choice(["ACGT", "N-", "ACGTRYKMSWBDHVN-. \n", "ACGTé☃", "acgu"])
        text = "".join(self.random.choices(letters, k=self.random.randint(0, 900)))
        return self.json("strange barcode", path, {"dna": text})

    def draw_broken_form(self, path: str) -> Attack:
        parts: list[tuple[str, str | None, bytes]] = [("image", "a.jpg", self.jpeg), ("dna", None, self.dna.encode())]
        body = bytearray(form(parts))
        for _ in range(self.random.randint(1, 4)):
            first = self.random.randrange(len(body))
            cut = self.random.choice([0, 1, 7, 60, len(body)])
            body[first : first + cut] = self.random.choice(
                [b"", b"\r\n", b"--" + BOUNDARY.encode(), b"\0", b'"', b"\r\n\r\n"]
            )
        header = self.random.choice(
            [FORM, FORM, "multipart/form-data", "multipart/form-data; boundary=", FORM + ";" * 99]
        )
        return Attack("broken form", PATHS[0], header, bytes(body))

    def draw_strange_form(self, path: str) -> Attack:
        name = self.random.choice([*NAMES, "image", "dna", "key", "top", "threshold"])
        count = self.random.choice([1, 2, 30, 300])
        return Attack(
            "strange form", PATHS[0], FORM, form([(name, self.random.choice([None, *NAMES]), b"\xff1")] * count)
        )

    def draw_noise(self, path: str) -> Attack:
        noise = self.random.randbytes(self.random.choice([0, 1, 100, 5000]))
        return Attack("noise", path, self.random.choice([JSON, FORM, "image/jpeg", "", "text/plain"]), noise)

    def draw_broken_json(self, path: str) -> Attack:
        bodies = (
            b"[" * 100_000,
            b'{"dna":' * 50_000,
            b'{"dna": NaN}',
            b'{"key": "\\ud800", "dna": "A"}',
            b"\xff\xfe{}",
            b'{"threshold": 1e99999, "dna": "A"}',
            b'{"top": ' + b"9" * 10_000 + b"}",
            b'{"dna":"A","dna":5}',
            b"null",
            b'"' + b"\\u0000" * 10_000 + b'"',
            b"",
        )
        return Attack("broken json", path, JSON, self.random.choice(bodies))

    def draw_base64(self, path: str) -> Attack:
        texts = ("====", "data:image/jpeg;base64,", "data:image/jpeg;base64,AAAA", "é", "A", "A" * 100_001, "\0" * 100)
        return self.json("base64", path, {"images": [self.random.choice(texts)] * self.random.choice([1, 16, 17])})

    def draw_many(self, path: str) -> Attack:
        """Many empty queries, or a body beyond the limit (rarely: it takes long to send)."""
        if self.random.random() < 0.2:
            return Attack("too large", path, self.random.choice([JSON, FORM]), bytes(self.big))
        return Attack("many", PATHS[1], JSON, json.dumps({"queries": [{}] * 1000}).encode())


def assault(
    url: str, fuzzer: Fuzzer, count: int, each_tenth: Callable[[], object] = lambda: None
) -> Counter[tuple[str, int]]:
    """Send `count` attacks, one after another; returns how often each kind got each status.

    Fails when one is answered neither 200 nor with one of REFUSALS as JSON that says what was wrong, or hangs.
    """
    seen: Counter[tuple[str, int]] = Counter()
    with requests.Session() as session:
        for number, attack in enumerate(fuzzer.attacks(count)):
            if number % (count // 10) == 0:
                each_tenth()
            told = f"{number} {attack.kind} {attack.path}: {attack.body[:200]!r}"
            headers = {"Content-Type": attack.content_type}
            try:
                answer = session.post(url + attack.path, data=attack.body, headers=headers, timeout=PATIENCE_S)
            except requests.ConnectionError:  # it was refused by its length and closed before all of it was sent
                assert len(attack.body) == fuzzer.big, told
                continue
            seen[attack.kind, answer.status_code] += 1
            assert answer.status_code == 200 or answer.status_code in REFUSALS, f"{told}: {answer.text}"
            if answer.status_code != 200:
                error = ErrorBody.model_validate(answer.json()).error
                assert error.what and error.allowed, told
            elif attack.path != PATHS[0]:
                assert len(next(iter(value for value in answer.json().values() if isinstance(value, list)))) >= 1
    return seen
