"""What stands before the routes: checks and counts of every request, headers and errors of every answer."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve.http.bodies import Refused
from serve.http.guard import HEADERS, check_host
from serve.http.openapi import JSON
from serve.http.service import Service
from serve.http.turns import CLIENT

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_AUDITED = {401, 403, 408, 413, 429, 503}


class Direct:
    """Count requests and their seconds, by route; call directly the endpoints that read the body themselves.

    FastAPI on the way to them takes a quarter of the time of an answer without a model.
    """

    def __init__(self, app: Any, service: Service, known: list[str], endpoints: Mapping[str, Endpoint]) -> None:
        """`known`: paths of all routes; `endpoints`: path -> what answers POST there."""
        self.app, self.service, self.known, self.endpoints = app, service, set(known), endpoints

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or pass it on to FastAPI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        route = path if path in self.known else "other"
        start, status = time.perf_counter(), 500

        async def watch(message: Any) -> None:
            """Note the status and add the security headers on the way out."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        request = Request(scope, receive)
        CLIENT.set(client_of(request, self.service.settings.client_header))
        length = request.headers.get("content-length", "unknown")
        try:
            with self.service.watchdog.watching(f"{scope['method']} {route} of {length[:20]} bytes"):
                await self._pass_on(request, path, watch)
        finally:
            self.service.metrics.answered(route, status, time.perf_counter() - start)
            if status in _AUDITED:  # neither the body nor who sent it
                log.warning("refused: %d %s %s", status, scope["method"], route)

    async def _pass_on(self, request: Request, path: str, send: Any) -> None:
        response: Any = self.app
        refused = self._refused(request, path)
        if refused is not None:
            response = await refuse(request, refused)
        elif request.method == "POST" and path in self.endpoints:
            response = await self._answer(self.endpoints[path], request)
        await response(request.scope, request.receive, send)

    def _refused(self, request: Request, path: str) -> Refused | None:
        try:
            if path != "/healthz":
                self.service.rate.check(CLIENT.get())
            if not self.service.token:  # a page of another site does not know the token
                check_host(request.headers, self.service.hosts)
        except Refused as error:
            return error
        return None

    @staticmethod
    async def _answer(endpoint: Endpoint, request: Request) -> Response:
        try:
            return await endpoint(request)
        except Refused as error:
            return await refuse(request, error)


def client_of(request: Request, header: str = "") -> str:
    """Return the address that a request comes from; with `header` the one that a proxy added to it last."""
    if header and (given := request.headers.getlist(header)):
        return given[-1].rpartition(",")[2].strip()[:100]
    return request.client.host if request.client else ""


async def refuse(request: Request, error: Exception) -> Response:
    """Answer every error with JSON of one shape."""
    if isinstance(error, RequestValidationError):
        places = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        error = Refused(422, places, "parameters as /openapi.json describes them")
    elif isinstance(error, HTTPException):
        error = Refused(
            error.status_code, str(error.detail), "paths and methods as /openapi.json describes them", error.headers
        )
    elif not isinstance(error, Refused):
        error = Refused(500, f"fault of the service: {type(error).__name__}", "please report it")
    value = {"error": {"what": error.what, "allowed": error.allowed}, "key": None}
    return Response(to_json(value), error.status, media_type=JSON, headers=error.headers)
