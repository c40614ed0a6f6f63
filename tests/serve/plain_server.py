"""The service in one plain process, without Ray: uvicorn, the HTTP interface, the models.

    python -m tests.serve.plain_server --set checkpoint=runs/NAME [--set library=DIR] [--port 8001] [--audit]

Prints its address when it listens. With --audit it counts, from then on, files that are opened for writing and
classes that are unpickled, and prints them as JSON when it ends (SIGTERM). Benchmarks compare with it, attacks hit it.
"""

import argparse
import json
import os
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

from serve.http.api import make_app
from serve.http.host import ModelHost
from serve.http.service import Service
from serve.models.directory import read_directory
from serve.models.settings import read_settings

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


class Server(uvicorn.Server):
    """Tells its address once it listens."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"http://{host}:{port}", flush=True)

    async def shutdown(self, sockets: Any = None) -> None:
        await super().shutdown(sockets)
        print(json.dumps(self.config.app.state.events), flush=True)  # uvicorn ends by the signal that it got


def audited() -> list[str]:
    """Events of this process from now on; sockets and pipes are no files."""
    events: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            mode, flags = arguments[1], arguments[2]
            if (mode and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITES):
                events.append(f"open {arguments[0]!r} {mode}")
        elif event in ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "os.remove", "os.rename"):
            events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hook)
    return events


def add_noop(app: FastAPI) -> None:
    """An endpoint that reads a body and answers with as many bytes as a small answer: what the server itself can do."""
    from starlette.responses import Response

    async def noop(request: Request) -> Response:
        await request.body()
        return Response(b'{"nothing":"' + b"x" * 3000 + b'"}', media_type="application/json")

    app.add_api_route("/noop", noop, methods=["POST"], include_in_schema=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of serve.models.settings"
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--audit", action="store_true")
    options = parser.parse_args()
    settings = read_settings(dict(pair.split("=", 1) for pair in options.set))
    service = Service(settings, read_directory(settings), ModelHost(settings))
    app = make_app(service)
    add_noop(app)

    async def ready() -> None:
        await service.health()
        if options.audit:
            app.state.events = audited()

    app.state.events = []
    app.router.on_startup.append(ready)
    Server(uvicorn.Config(app, port=options.port, log_level="error", access_log=False)).run()


if __name__ == "__main__":
    main()
