"""The HTTP interface of a `Service`: routes, checks, errors, metrics, OpenAPI. Runs in any ASGI server.

python -m serve.http.api > serve/openapi.json     # after a change of routes or schemas
"""

import asyncio
import hmac
import json
import mimetypes
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from serve.answers.candidates import MAX_NAMES
from serve.answers.query import MAX_IMAGES, MAX_LETTERS
from serve.http import schemas
from serve.http.bodies import Refused, check_json, read_body, read_form
from serve.http.direct import Direct, Endpoint, refuse
from serve.http.guard import PAGE_POLICY, check_origin
from serve.http.openapi import FORM, JSON, describe
from serve.http.service import Service

PAGE = Path(__file__).parent / "page"
TAXA_AT_ONCE = 1000
HELD_PER_BYTE = 4  # of a body: read, as text, decoded, and one for its photos
_TITLE, _VERSION = "taxafuse", "1"
_ABOUT = (
    "Names insects from photos, COI barcodes, or both, at the rank the evidence supports. Errors are JSON: what was "
    "wrong, and what is allowed."
)
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorBody, "description": text}
    for status, text in {
        401: "the bearer token is missing or wrong",
        404: "no such model",
        408: "the body did not come in time",
        413: "the body is too large",
        415: "another content type than the documented ones",
        422: "what was sent cannot be used",
        429: "too many requests of one address; come back after Retry-After seconds",
        503: "busy or not able to answer now; come back after Retry-After seconds",
    }.items()
}
_READS: dict[int | str, dict[str, Any]] = {status: _REFUSALS[status] for status in (401, 404, 422, 503)}


class _Routes:
    """Hold the endpoints of one service."""

    def __init__(self, service: Service) -> None:
        self.service, self.metrics = service, service.metrics

    def check_token(self, request: Request) -> None:
        """Raise Refused (401) for a request without the token."""
        if not self.service.token:
            return
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {self.service.token}".encode()):
            raise Refused(
                401,
                "the bearer token is missing or wrong",
                "Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )

    @asynccontextmanager
    async def admitted(self, request: Request, kinds: tuple[str, ...]) -> Any:
        """Yield the kind and the body of a request that there is room for; count it until it is answered."""
        self.check_token(request)
        header = request.headers.get("content-type", "")
        kind = header.partition(";")[0].strip().lower()
        if kind not in kinds:
            raise Refused(415, f"content type: got {header[:100]!r}", " or ".join(kinds))
        if not self.service.token:
            check_origin(request.headers)
        admission = self.service.admission
        self.service.memory.check(HELD_PER_BYTE * self._length(request))
        admission.enter()
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            admission.hold(count)
            held += count

        try:
            length = request.headers.get("content-length")
            body = await self._whole(read_body(request.stream(), length, self.service.max_body, hold))
            if kind == JSON:
                most = self.service.settings.max_queries
                check_json(body, 3 * most + 64, MAX_NAMES + (MAX_IMAGES + 8) * most)
            yield kind, body
        finally:
            admission.leave(held)

    def _length(self, request: Request) -> int:
        length = request.headers.get("content-length", "")
        return min(int(length) if length.isdigit() and len(length) < 20 else 0, self.service.max_body)

    async def _whole(self, reading: Awaitable[bytes]) -> bytes:
        """Return the body. Raises Refused (408) when it does not come: it would keep others out."""
        patience = self.service.settings.timeout_s
        try:
            async with asyncio.timeout(patience):
                return await reading
        except TimeoutError:
            raise Refused(
                408,
                f"body: not all of it came within {patience:g} seconds",
                "a body that is sent at once",
                {"Connection": "close"},
            ) from None

    async def identify(self, request: Request) -> Response:
        """Name one specimen."""
        async with self.admitted(request, (JSON, FORM)) as (kind, body):
            if kind == FORM:
                query, asked = schemas.read_form_query(read_form(body, request.headers["content-type"]))
            else:
                asked = schemas.read_json(schemas.IdentifyBody, body)
                query = schemas.query_of(asked)
            (reply,) = await self.service.identify(asked.model, [query], asked.options())
        self.metrics.count([reply])
        return Response(reply.body, reply.status, media_type=JSON)

    async def identify_batch(self, request: Request) -> Response:
        """Name many specimens; what is wrong with one is said in its place."""
        async with self.admitted(request, (JSON,)) as (_, body):
            asked = schemas.read_json(schemas.BatchBody, body)
            queries = self._queries(asked.queries)
            replies = await self.service.identify(asked.model, queries, asked.options())
        self.metrics.count(replies)
        return Response(b'{"answers":[' + b",".join(reply.body for reply in replies) + b"]}", media_type=JSON)

    async def embed(self, request: Request) -> Response:
        """Features of specimens."""
        async with self.admitted(request, (JSON,)) as (_, body):
            asked = schemas.read_json(schemas.EmbedBody, body)
            spec, replies = await self.service.embed(asked.model, self._queries(asked.queries))
        self.metrics.count(replies)
        found = b",".join(reply.body for reply in replies)
        return Response(b'{"model":' + to_json(spec.id) + b',"embeddings":[' + found + b"]}", media_type=JSON)

    def _queries(self, given: list[schemas.QueryBody]) -> list[Any]:
        most = self.service.settings.max_queries
        if len(given) > most:
            raise Refused(413, f"queries: got {len(given)}", f"up to {most} in one request")
        return [schemas.query_of(one) for one in given]

    async def taxa(
        self,
        request: Request,
        rank: schemas.Rank | None = None,
        name: Annotated[str, Query(max_length=200, description="beginning of the name")] = "",
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        limit: Annotated[int, Query(ge=1, le=TAXA_AT_ONCE)] = 100,
        model: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        """Taxa that answers may name."""
        self.check_token(request)
        spec, taxa = await self.service.taxa(model)
        start = name.lower()
        found = [
            taxon
            for taxon in taxa
            if (rank is None or taxon["rank"] == rank) and taxon["name"].lower().startswith(start)
        ]
        value = {"model": spec.id, "total": len(found), "taxa": found[offset : offset + limit]}
        return Response(to_json(value), media_type=JSON)

    async def model(self, request: Request, model: Annotated[str, Query(max_length=200)] = "") -> Response:
        """The models, their checksums, the limits."""  # noqa: D401  # a text of openapi.json
        self.check_token(request)
        settings = self.service.settings
        limits = {
            "max_body_bytes": self.service.max_body,
            "max_queries": settings.max_queries,
            "max_images": MAX_IMAGES,
            "max_letters": MAX_LETTERS,
            "max_in_flight": settings.max_in_flight,
        }
        value = {"card": await self.service.card(model), "models": self.service.served(), "limits": limits}
        return Response(to_json(value), media_type=JSON)

    async def examples(self, request: Request) -> Response:
        """Specimens to try, of the default model; may be none."""
        self.check_token(request)
        return Response(to_json({"examples": await self.service.examples()}), media_type=JSON)

    async def reload(self, request: Request) -> Response:
        """Resolve aliases anew, load what is new, swap without dropping a request."""
        async with self.admitted(request, (JSON,)) as (_, body):
            schemas.read_json(schemas.ReloadBody, body)
            loaded = await self.service.reload()
        return Response(to_json({"loaded": loaded, "models": self.service.served()}), media_type=JSON)

    async def health(self) -> Response:
        """Does the model answer?"""  # noqa: D401  # a text of openapi.json
        spec = await self.service.health()
        return Response(to_json({"status": "ok", "model": spec.id}), media_type=JSON)

    async def prometheus(self, request: Request) -> Response:
        """Numbers for Prometheus."""
        self.check_token(request)
        return Response(await self.service.numbers(), media_type=CONTENT_TYPE_LATEST)


def make_app(service: Service, page: Path = PAGE) -> FastAPI:
    """Return the ASGI application of a service; `page` is the folder whose files are shown, index.html at /."""
    routes = _Routes(service)
    app = FastAPI(title=_TITLE, version=_VERSION, description=_ABOUT, docs_url=None, redoc_url=None)
    direct: dict[str, tuple[Endpoint, type[BaseModel]]] = {
        "/v1/identify": (routes.identify, schemas.AnswerBody),
        "/v1/identify:batch": (routes.identify_batch, schemas.AnswersBody),
        "/v1/embed": (routes.embed, schemas.EmbeddingsBody),
    }
    for path, (route, shape) in direct.items():
        _add(app, "POST", path, route, shape, _REFUSALS)
    _add(app, "GET", "/v1/taxa", routes.taxa, schemas.TaxaBody, _READS)
    _add(app, "GET", "/v1/model", routes.model, schemas.ModelBody, _READS)
    _add(app, "GET", "/v1/examples", routes.examples, schemas.ExamplesBody, {401: _REFUSALS[401]})
    conflict: dict[int | str, dict[str, Any]] = {
        409: {"model": schemas.ErrorBody, "description": "it cannot be loaded; nothing was changed"}
    }
    _add(app, "POST", "/v1/model:reload", routes.reload, schemas.ReloadedBody, _REFUSALS | conflict)
    _add(app, "GET", "/healthz", routes.health, schemas.HealthBody, {503: _REFUSALS[503]})
    plain: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}, 401: _REFUSALS[401]}
    app.add_api_route("/metrics", routes.prometheus, methods=["GET"], response_class=Response, responses=plain)
    for file in sorted(page.glob("*.*")):
        _show(app, "/" if file.name == "index.html" else f"/{file.name}", file)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    for kind in (Refused, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, refuse)
    known = [route.path for route in app.routes]  # type: ignore[attr-defined]
    endpoints = {path: route for path, (route, _) in direct.items()}
    app.add_middleware(Direct, service=service, known=known, endpoints=endpoints)
    return app


def _add(
    app: FastAPI,
    method: str,
    path: str,
    route: Callable[..., Awaitable[Response]],
    shape: type[BaseModel],
    refusals: dict[int | str, dict[str, Any]],
) -> None:
    """Add a route; its docstring goes into the document."""
    responses = {200: {"model": shape, "description": "the answer"}, **refusals}
    app.add_api_route(
        path, route, methods=[method], responses=responses, response_class=JSONResponse, response_model=None
    )


def _show(app: FastAPI, path: str, file: Path) -> None:
    """Show a file of the page at a path, read now: requests never choose what is read."""
    body, kind = file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    headers = {"Content-Security-Policy": PAGE_POLICY}

    async def show() -> Response:
        return Response(body, media_type=kind, headers=headers)

    app.add_api_route(path, show, methods=["GET"], include_in_schema=False)


def document() -> str:
    """Return the OpenAPI document as it is kept in serve/openapi.json; needs no model."""
    from serve.models.directory import Directory
    from serve.models.settings import Settings

    nobody: Any = None
    app = make_app(Service(Settings(), Directory(()), nobody))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(document(), end="")
