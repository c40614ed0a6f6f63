"""Who sent a request, and clients in turn: one that asks for much delays each other by one piece of work at most."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from serve.http.bodies import overloaded

CLIENT: ContextVar[str] = ContextVar("client", default="")
"""Address of the client whose request a task answers; set for each request."""


class Turns:
    """So many places, given to clients in turn; belongs to one event loop.

    Args:
        places: pieces of work at once.
        max_waiting: pieces of one client that may wait; the next is refused (503).
    """

    def __init__(self, places: int, max_waiting: int) -> None:
        self.max_waiting, self._free = max_waiting, places
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a place, and keep it while the block runs. Raises Refused (503) where too much waits already."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(CLIENT.get())
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str) -> None:
        own = self._waiting.setdefault(client, deque())
        if len(own) >= self.max_waiting:
            raise overloaded(f"{len(own)} photos of this client are waiting")
        future = asyncio.get_running_loop().create_future()
        own.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._pass_on()  # the place came just as the request was given up
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            client, own = self._waiting.popitem(last=False)
            future = own.popleft()
            if own:
                self._waiting[client] = own  # behind the others
            if not future.done():
                future.set_result(None)
                return
        self._free += 1
