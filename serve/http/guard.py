"""What is refused before a body is read: foreign host names and origins, and work when memory runs out.

A page of another site can make a browser send requests to a service on the reader's machine. Its Origin gives it away;
a name that it bound to 127.0.0.1 stands in Host. So without a token only names that nobody can register are served:
addresses, single labels, and reserved suffixes (RFC 6761, RFC 8375, ICANN's .internal), and those of `allowed_hosts`.
"""

import ipaddress
import math
import os
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve.http.bodies import Refused, overloaded

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SPARE_BYTES = 512 << 20  # of memory that stays free: what photos in work and one batch of the model take together
_RESERVED = (".localhost", ".local", ".internal", ".svc", ".test", ".home.arpa")
_LOOK_S = 0.2  # between two looks at the memory
_CLIENTS = 10_000  # addresses whose requests are counted; the one that was longest away is forgotten first
_CGROUP = Path("/sys/fs/cgroup")


def check_host(headers: Mapping[str, str], allowed: Sequence[str]) -> None:
    """Raise Refused (403) for a Host that is none of this service's."""
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if not (_is_private_name(name.strip("[]").lower().rstrip(".")) or name.lower() in allowed):
        raise Refused(403, f"Host: got {name[:100]!r}", "an address, a local name, or one of the setting allowed_hosts")


def _is_private_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or name.endswith(_RESERVED)
    return True


def check_origin(headers: Mapping[str, str]) -> None:
    """Raise Refused (403) for a request that a page of another site makes a browser send."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host", ""):
        raise Refused(403, f"Origin: got {origin[:100]!r}", "the page of this service, or a program")
    if headers.get("sec-fetch-site") == "cross-site":
        raise Refused(403, "Sec-Fetch-Site: got 'cross-site'", "the page of this service, or a program")


class Rate:
    """Counts the requests of each address: `per_minute` at once, and as many again in each minute; 0 = any."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when

    def check(self, client: str) -> None:
        """Count a request. Raises Refused (429) where an address has none left."""
        if not self.per_minute:
            return
        now = time.monotonic()
        left, then = self._left.pop(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - then) * self.per_minute / 60)
        self._left[client] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if len(self._left) > _CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            wait = math.ceil((1 - left) * 60 / self.per_minute)
            raise Refused(429, "too many requests", f"{self.per_minute} a minute", {"Retry-After": str(wait)})


class MemoryWatch:
    """Turn requests away before the machine's or the container's memory runs out."""

    def __init__(self, spare: int = SPARE_BYTES) -> None:
        self.spare = spare
        self._looked, self._free = -1.0, spare

    def is_short(self, wanted: int = 0) -> bool:
        """Return whether `wanted` bytes would leave less than the spare ones."""
        now = time.monotonic()
        if now - self._looked > _LOOK_S:
            self._looked, self._free = now, free_bytes()
        return self._free - wanted < self.spare

    def check(self, wanted: int = 0) -> None:
        """Raise Refused (503) where `wanted` bytes would leave less than the spare ones."""
        if self.is_short(wanted):
            raise overloaded(f"memory is short: {max(self._free, 0) >> 20:,} MiB are free")


def free_bytes() -> int:
    """Return the bytes that this process may still take: of the machine, or of its cgroup where that has less."""
    page, free = os.sysconf("SC_PAGE_SIZE"), 1 << 62
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_AVPHYS_PAGES") * page
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = (_CGROUP / limit).read_text().strip()
            if most.isdigit():
                inactive = _file_cache(_CGROUP / Path(limit).parent / "memory.stat")
                return min(free, int(most) - int((_CGROUP / used).read_text()) + inactive)
        except (OSError, ValueError):
            continue
    return free


def _file_cache(path: Path) -> int:
    """Return the bytes of a cgroup's file cache that the kernel gives up for others."""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0
