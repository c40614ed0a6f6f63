"""Costly photos, decoded in a process of its own that can be given up: it has little memory, and is ended when late.

The process is given sizes and bytes and gives back pixels or a sentence, nothing that is unpickled on either side.
"""

import asyncio
import contextlib
import resource
import struct
import sys
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from engine.store.limits import GIB
from serve.answers.query import decode_views

MEMORY_BYTES = 4 * GIB  # of addresses; OpenCV alone takes one, 25 million pixels of 4 samples and their copies another
_HEAD, _LENGTH = struct.Struct("<II"), struct.Struct("<I")
_PIXELS, _MESSAGE = 0, 1


class Decoder:
    """Decode photos one request at a time; the process starts with the first and again after one that was ended.

    Args:
        limit_s: seconds for the photos of one specimen.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._process: asyncio.subprocess.Process | None = None

    async def views(self, photos: Sequence[bytes], size: int) -> list[np.ndarray]:
        """Return the photos as the model sees them, uint8 [size, size, 3] each.

        Raises ValueError with the reason, also when it takes too long or too much memory.
        """
        try:
            async with asyncio.timeout(self.limit_s):
                status, payload = await self._ask(photos, size)
        except TimeoutError:
            await self.end()
            raise ValueError(f"photo: not decoded within {self.limit_s:g} seconds") from None
        except (OSError, asyncio.IncompleteReadError):
            await self.end()
            raise ValueError("photo: its decoder ended, by lack of memory or a fault of the photo") from None
        except asyncio.CancelledError:  # the client went away, or its time is over
            await self.end()
            raise
        if status == _MESSAGE:
            raise ValueError(payload.decode())
        return list(np.frombuffer(payload, np.uint8).reshape(len(photos), size, size, 3))

    async def _ask(self, photos: Sequence[bytes], size: int) -> tuple[int, bytes]:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "serve.http.decoder"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(_HEAD.pack(size, len(photos)))
        for photo in photos:
            self._process.stdin.write(_LENGTH.pack(len(photo)) + photo)
        await self._process.stdin.drain()
        status, length = _HEAD.unpack(await self._process.stdout.readexactly(_HEAD.size))
        most = len(photos) * size * size * 3 if status == _PIXELS else 1 << 16
        if length > most or (status == _PIXELS and length < most):
            raise OSError("no answer of a decoder")
        return status, await self._process.stdout.readexactly(length)

    async def end(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())


def _serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until the parent closes its end."""
    while head := source.read(_HEAD.size):
        size, count = _HEAD.unpack(head)
        photos = [source.read(_LENGTH.unpack(source.read(_LENGTH.size))[0]) for _ in range(count)]
        try:
            status, payload = _PIXELS, b"".join(view.tobytes() for view in decode_views(photos, size))
        except (ValueError, MemoryError) as error:
            status, payload = _MESSAGE, (str(error) or "photo: too little memory to decode it").encode()[: 1 << 16]
        sink.write(_HEAD.pack(status, len(payload)) + payload)
        sink.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(sys.stdin.buffer, sys.stdout.buffer)
