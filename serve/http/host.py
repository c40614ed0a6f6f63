"""The models of one process: loaded by version, asked in batches, let go when nobody asks any more. No Ray, no HTTP."""

import asyncio
import gc
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from pydantic_core import to_json

from engine.signals.photo_cost import HEAVY, check_format, cost
from serve.answers.answer import Query, QueryError
from serve.answers.predictor import Options, Predictor
from serve.answers.query import MAX_IMAGES, PHOTO, Prepared
from serve.http.batching import Batcher
from serve.http.decoder import Decoder
from serve.http.turns import Turns
from serve.models.directory import Spec, library_of, located
from serve.models.settings import Settings

log = logging.getLogger(__name__)

DRAIN_S = 30.0  # a retired model stays so long for requests that are on their way
_DECODERS = 2  # threads that decode photos and check barcodes while a batch is computed
DECODE_S = 20.0  # for the costly photos of one specimen; the costliest that is let through takes some 5 s
_WAITING = 16  # specimens with photos of one client that wait for a decoder
COLLECT = (20_000, 20, 20)  # thresholds of Python's collector; with its own, 700, it took 5% of the time
_FEW = 4  # barcodes that are checked at once: 0.1 ms each

OK, UNUSABLE = 200, 422


@dataclass(frozen=True, slots=True)
class Reply:
    """One item's answer, ready to be sent."""

    status: int  # OK or UNUSABLE
    body: bytes  # JSON


class _Model:
    """One loaded version with its two queues."""

    def __init__(self, predictor: Predictor, compute: ThreadPoolExecutor, max_batch: int) -> None:
        self.predictor = predictor
        self.identify = Batcher(self._identify, compute, max_batch)
        self.embed = Batcher(self._embed, compute, max_batch)

    def _identify(self, items: list[tuple[Prepared | QueryError, Options]]) -> list[Reply]:
        return [_reply(answer) for answer in self.predictor.answer(items)]

    def _embed(self, items: list[Prepared | QueryError]) -> list[Reply]:
        return [_reply(found) for found in self.predictor.embed_prepared(items)]


def _reply(found: Any) -> Reply:
    return Reply(UNUSABLE if isinstance(found, QueryError) else OK, to_json(found.to_dict()))


class ModelHost:
    """Loads models and answers with them; belongs to one event loop.

    Each version is loaded once, by `load` or by the first request for it, in a thread: requests for other versions go
    on meanwhile.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._models: dict[str, asyncio.Task[_Model]] = {}
        self._retired: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._decode = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._decoder = Decoder(min(DECODE_S, settings.timeout_s))
        self._light, self._heavy = Turns(_DECODERS, settings.max_in_flight), Turns(1, _WAITING)
        self._formats = tuple(name.strip().upper() for name in settings.photo_formats.split(","))
        torch.set_num_threads(settings.threads)

    async def load(self, spec: Spec) -> dict[str, Any]:
        """Make a version ready; return its card. Raises ValueError as `Predictor.load`."""
        return dict((await self._model(spec)).predictor.card)

    async def card(self, spec: Spec) -> dict[str, Any]:
        """Return what a version says of itself, see `Predictor.load`."""
        return await self.load(spec)

    async def retire(self, id: str, wait_s: float = DRAIN_S) -> None:
        """Let go of a version after `wait_s`; requests that have it by then are answered."""
        self._retired.add(id)
        task = asyncio.create_task(self._let_go(id, wait_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def identify(self, spec: Spec, queries: list[Query], options: Options) -> list[Reply]:
        """Answer the queries of one request, in their order."""
        model = await self._model(spec)
        prepared = await self._prepare(model, queries)
        return await model.identify([(item, options) for item in prepared])

    async def embed(self, spec: Spec, queries: list[Query]) -> list[Reply]:
        """Return the features of the queries of one request, in their order."""
        model = await self._model(spec)
        return await model.embed(await self._prepare(model, queries))

    async def taxa(self, spec: Spec) -> list[dict[str, Any]]:
        """Return all taxa of a version, see `Predictor.taxa`."""
        return (await self._model(spec)).predictor.taxa()

    async def _prepare(self, model: _Model, queries: list[Query]) -> list[Prepared | QueryError]:
        """Decode and check before the queries wait for a batch; in a thread, but for what takes less than its start.

        A request waits for its photos one query after another, so that one of many photos delays others by one query,
        and a request that is given up leaves nothing behind in the queue. Clients decode in turn; costly photos wait
        for each other only, and are decoded in a process that can be ended.
        """
        loop, prepare = asyncio.get_running_loop(), model.predictor.prepare
        if not any(query.images for query in queries):
            if len(queries) <= _FEW:
                return [prepare(query) for query in queries]
            return await loop.run_in_executor(self._decode, lambda: [prepare(query) for query in queries])
        found: list[Prepared | QueryError] = []
        for query in queries:
            try:
                for photo in query.images:
                    check_format(photo, self._formats)
                heavy = len(query.images) <= MAX_IMAGES and sum(map(cost, query.images)) > HEAVY
                if heavy:
                    async with self._heavy.turn():
                        views = await self._decoder.views(query.images, model.predictor.data.image_size)
                    found.append(prepare(query, views))
                else:
                    async with self._light.turn():
                        found.append(await loop.run_in_executor(self._decode, prepare, query))
            except ValueError as error:
                found.append(QueryError(query.key, str(error), PHOTO))
        return found

    async def _model(self, spec: Spec) -> _Model:
        task = self._models.get(spec.id)
        if task is None or (task.done() and task.exception() is not None):
            task = self._models[spec.id] = asyncio.create_task(self._open(spec))
            self._retired.discard(spec.id)
        return await asyncio.shield(task)

    async def _open(self, spec: Spec) -> _Model:
        def work() -> Predictor:
            """Load in a thread: the event loop goes on."""
            log.info("loading %s from %s", spec.id, spec.path)
            path = located(spec, self.settings)
            return Predictor.load(
                path,
                library=library_of(path, self.settings) or None,
                device=self.settings.device,
                name=spec.name,
                version=spec.version,
                threads=self.settings.threads,
            )

        model = _Model(await asyncio.to_thread(work), self._compute, self.settings.max_batch)
        gc.set_threshold(*COLLECT)
        gc.freeze()  # taxa, names and weights stay: the collector need not walk over them between requests
        return model

    async def _let_go(self, id: str, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        if id in self._retired:
            self._retired.discard(id)
            self._models.pop(id, None)
            log.info("let go of %s", id)
