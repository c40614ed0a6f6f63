"""Names the requests in flight when the event loop stands still or memory gets short; looks while there are any."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serve.http.guard import MemoryWatch

log = logging.getLogger(__name__)

LOOK_S = 0.5
STALL_S = 1.0  # later than it should be: something kept the event loop from all other requests
_NAMED = 5  # of the requests in flight, the oldest


class Watchdog:
    """Knows which requests are in flight, by method, route and length of the body; belongs to one event loop."""

    def __init__(self, memory: MemoryWatch) -> None:
        self.memory = memory
        self._flying: dict[int, tuple[float, str]] = {}
        self._number = 0
        self._due = 0.0  # when it looks next; 0 = it does not

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Count a request in while the block runs."""
        self._number += 1
        number = self._number
        self._flying[number] = (time.monotonic(), what)
        if not self._due:
            self._look_later()
        try:
            yield
        finally:
            del self._flying[number]

    def _look_later(self) -> None:
        self._due = time.monotonic() + LOOK_S
        asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        late = time.monotonic() - self._due
        self._due = 0.0
        if late > STALL_S:
            log.warning("the event loop stood still for %.1f s; in flight: %s", late, self.named())
        if self.memory.is_short():
            log.warning("memory is short: new requests get a 503; in flight: %s", self.named())
        if self._flying:
            self._look_later()

    def named(self) -> str:
        """Return the oldest requests in flight: seconds, method, route, length of the body."""
        now = time.monotonic()
        return "; ".join(f"{now - start:.1f} s {what}" for start, what in list(self._flying.values())[:_NAMED])
