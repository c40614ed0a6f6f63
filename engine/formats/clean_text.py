"""Text files of any encoding and line end as well-formed UTF-8, streamed and unpacked."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from engine.formats.unpacked import open_unpacked
from engine.store.limits import MAX_LINE_BYTES, MAX_ZERO_BYTES


def _byte_as_windows(error: UnicodeError) -> tuple[str, int]:
    """Return a byte that is no UTF-8 as Windows' Latin-1 (1252) has it."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    data = error.object[error.start : error.end]
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in data), error.end


codecs.register_error("taxafuse.byte-as-windows", _byte_as_windows)


class CleanText(io.RawIOBase):
    """A text file as well-formed UTF-8 bytes with plain newlines, streamed.

    Bytes that are no UTF-8 are taken as Latin-1 one by one (BOLD mixes both inside a file); UTF-16 is recognised by
    its mark or its zero bytes; what is packed is unpacked.

    Args:
        path: the file.
        member: of a zip; default: its only one.
        returns_end_lines: whether a lone carriage return ends a line, as in old Mac files; None = it does where the
            file has no other newline, else it goes, wherever it stands (BOLD has them in the middle of each line).
    """

    def __init__(self, path: Path, member: str | None = None, returns_end_lines: bool | None = None) -> None:
        self._path, self._zeros = path, 0
        self._file = open_unpacked(path, member)
        self._pending = self._file.read(1 << 20)
        encoding = _encoding(self._pending)
        errors = "taxafuse.byte-as-windows" if encoding == "utf-8-sig" else "replace"
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        if returns_end_lines is None:
            returns_end_lines = b"\r" in self._pending and b"\n" not in self._pending
        self._return = "\n" if returns_end_lines else ""
        self._clean = b""

    def readable(self) -> bool:
        """Return True: `io.BufferedReader` asks."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the start of a buffer with clean bytes; return how many, 0 at the end of the file."""
        at_end = False
        while not self._clean and not at_end:
            at_end = not self._pending
            text = self._decoder.decode(self._pending, final=at_end).replace("\0", "")
            self._clean = text.replace("\r", self._return).encode(errors="replace")
            self._zeros = 0 if self._clean else self._zeros + len(self._pending)
            if self._zeros > MAX_ZERO_BYTES:
                raise ValueError(f"file: got {self._path} with {self._zeros:,} zero bytes in a row, allowed: text")
            self._pending = self._file.read(1 << 20)
        size = min(len(buffer), len(self._clean))
        buffer[:size] = self._clean[:size]
        self._clean = self._clean[size:]
        return size

    def close(self) -> None:
        """Close the file, too."""
        self._file.close()
        super().close()


def bounded_lines(text: TextIO) -> Iterator[str]:
    """Yield the lines of a text; one of MAX_LINE_BYTES letters or more is passed over without being held."""
    is_too_long = False
    for line in iter(lambda: text.readline(MAX_LINE_BYTES), ""):
        ends = len(line) < MAX_LINE_BYTES or line.endswith("\n")
        if ends and not is_too_long:
            yield line
        is_too_long = not ends


def _encoding(start: bytes) -> str:
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    head = start[:400]
    zeros = head[1::2].count(0), head[::2].count(0)
    if len(head) >= 8 and max(zeros) > len(head) // 4:
        return "utf-16-le" if zeros[0] > zeros[1] else "utf-16-be"
    return "utf-8-sig"
