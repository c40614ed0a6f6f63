"""Requests as plain values: bodies read up to a limit, multipart forms taken apart in memory, errors for clients."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

logging.getLogger("python_multipart").setLevel(
    logging.ERROR
)  # it logs every malformed form; the client gets the reason

MAX_PARTS = 200  # of a form
RETRY_AFTER_S = 2  # what a client that is turned away is asked to wait


class Refused(Exception):
    """A request that is not answered: becomes `status` with JSON `{"error": {"what": ..., "allowed": ...}}`."""

    def __init__(self, status: int, what: str, allowed: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(what)
        self.status, self.what, self.allowed, self.headers = status, what, allowed, dict(headers or {})


def overloaded(what: str) -> Refused:
    """Return the refusal of a request that this service has no room for now."""
    return Refused(
        503, what, "the same request again, after the seconds of Retry-After", {"Retry-After": str(RETRY_AFTER_S)}
    )


class Admission:
    """Counts the requests in flight and the bytes that they hold, and turns away what is too much."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests, self.max_bytes = max_requests, max_bytes
        self.requests = self.bytes = self.refused = 0

    def enter(self) -> None:
        """Count a request. Raises Refused (503) when the service is full."""
        if self.requests >= self.max_requests:
            self.refused += 1
            raise overloaded(f"the service is busy: {self.requests} requests are in flight")
        self.requests += 1

    def hold(self, count: int) -> None:
        """Count bytes that a request holds. Raises Refused (503) when they are too many."""
        if self.bytes + count > self.max_bytes:
            self.refused += 1
            raise overloaded(f"the service is busy: requests in flight hold {self.bytes:,} bytes")
        self.bytes += count

    def leave(self, held: int) -> None:
        """Count out a request that entered, with the bytes that it held."""
        self.requests -= 1
        self.bytes -= held


async def read_body(stream: AsyncIterator[bytes], length: str | None, limit: int, hold: Callable[[int], None]) -> bytes:
    """Return the whole body, counted while it comes.

    Args:
        stream: of its pieces.
        length: the Content-Length that the client named.
        limit: of bytes.
        hold: gets the size of every piece, before the next is waited for.

    Raises:
        Refused: 413 as soon as it is known to exceed `limit` bytes; 400 when the client goes away before its end.
    """
    if length is not None and length.isdigit() and int(length) > limit:
        raise _too_large(f"{int(length):,}", limit)
    pieces: list[bytes] = []
    count = 0
    try:
        async for piece in stream:
            count += len(piece)
            if count > limit:
                raise _too_large(f"more than {limit:,}", limit)
            hold(len(piece))
            pieces.append(piece)
    except ClientDisconnect:
        raise Refused(400, f"body: it ended after {count:,} bytes", "a whole body") from None
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large(got: str, limit: int) -> Refused:
    return Refused(413, f"body: got {got} bytes", f"up to {limit:,} bytes", {"Connection": "close"})


def check_json(body: bytes, max_objects: int, max_values: int) -> None:
    """Raise Refused (413) for a JSON text of more elements than a request can need, before it is parsed.

    Counted are the marks that separate elements, also those inside strings: names and barcodes have few. 32 MiB of
    photos take 10 ms.

    Args:
        body: of the request.
        max_objects: objects and lists together, which also bounds their depth.
        max_values: elements of all lists and objects.
    """
    for marks, most, kind in (((b"{", b"["), max_objects, "objects and lists"), ((b",",), max_values, "values")):
        count = sum(body.count(mark) for mark in marks)
        if count > most:
            raise Refused(413, f"body: got {count:,} {kind}", f"up to {most:,}")


@dataclass
class Part:
    """One part of a form."""

    name: str = ""
    is_file: bool = False
    pieces: list[bytes] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        """Return the part's content."""
        return b"".join(self.pieces)

    def text(self) -> str:
        """Return the content as text. Raises Refused (422) for what is no UTF-8."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(422, f"form: part {self.name!r} is no UTF-8 text ({error.reason})", "UTF-8 text") from None


class _Form:
    """Collect what the parser finds."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._header: tuple[list[bytes], list[bytes]] = ([], [])

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """Return what the multipart parser calls, by its own names."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].append(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].append(data[start:end]),
            "on_header_end": self._header_end,
            "on_part_data": lambda data, start, end: self.parts[-1].pieces.append(data[start:end]),
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise Refused(422, f"form: got more than {MAX_PARTS} parts", f"up to {MAX_PARTS} parts")
        self.parts.append(Part())

    def _header_end(self) -> None:
        name, value = (b"".join(pieces) for pieces in self._header)
        self._header = ([], [])
        if name.strip().lower() == b"content-disposition":
            _, options = parse_options_header(value)
            self.parts[-1].name = options.get(b"name", b"").decode("utf-8", "replace")
            self.parts[-1].is_file = b"filename" in options

    def _end(self) -> None:
        self.ended = True


def read_form(body: bytes, content_type: str) -> list[Part]:
    """Return the parts of a multipart/form-data body, in their order.

    Raises Refused (422) for a form that is malformed or cut short.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 200:
        raise Refused(422, "form: the content type names no boundary", "multipart/form-data; boundary=...")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refused(422, f"form: malformed ({error})", "multipart/form-data as RFC 7578 has it") from None
    if not form.ended:
        raise Refused(422, "form: it is cut short, or its boundary is another", "a form with its closing boundary")
    return form.parts
