"""What happens to a request beside HTTP: admission, names of models, the model's time, reload. No Ray."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from serve.answers.answer import Query
from serve.answers.predictor import Options
from serve.http.bodies import Admission, Refused, overloaded
from serve.http.counters import Metrics, summed
from serve.http.examples import examples_of
from serve.http.guard import MemoryWatch, Rate
from serve.http.host import ModelHost, Reply
from serve.http.watchdog import Watchdog
from serve.models.directory import Directory, Spec, library_of, read_directory
from serve.models.settings import Settings

log = logging.getLogger(__name__)

HELD = 4  # times max_body_mib: what requests in flight may hold together
PROBE = (
    "AACATTATATTTTATTTTTGGAATTTGAGCAGGAATAGTAGGAACTTCTTTAAGATTATTAATTCGAGCTGAATTAGGAAATCCAGGATC"
    "TTTAATTGGAGATGATCAAATTTATAATACT"
)
"""A barcode that the health check asks about: the beginning of COI as it is in many moths."""
DRAIN_POLL_S = 0.5
Value = TypeVar("Value")


class Service:
    """One process of a service.

    Args:
        directory: resolved when the process starts; replaced by `reload`.
        everyone: asks all processes of the service, this one among them: name of a method, arguments -> their answers;
            None = there is only this one.
    """

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        host: ModelHost,
        token: str = "",
        everyone: Callable[..., Awaitable[list[Any]]] | None = None,
    ) -> None:
        self.settings, self.directory, self.host, self.token = settings, directory, host, token
        self._everyone = everyone or self._alone
        self.max_body = settings.max_body_mib << 20
        self.memory, self.rate = MemoryWatch(), Rate(settings.max_per_minute)
        self.watchdog = Watchdog(self.memory)
        self.hosts = tuple(name.strip().lower() for name in settings.allowed_hosts.split(",") if name.strip())
        self.admission = Admission(settings.max_in_flight, HELD * self.max_body)
        self.metrics = Metrics(self.admission)
        self.in_flight: Counter[str] = Counter()  # by version
        self._taxa: dict[str, list[dict[str, Any]]] = {}
        self._reloading = asyncio.Lock()
        self._draining: set[asyncio.Task[None]] = set()

    def spec(self, asked: str) -> Spec:
        """Return the version that a request means. Raises Refused (404) naming what there is."""
        spec = self.directory.find(asked)
        if spec is None:
            raise Refused(404, f"model: got {asked[:100]!r}", ", ".join(self.directory.names()))
        return spec

    async def identify(self, asked: str, queries: list[Query], options: Options) -> list[Reply]:
        """Answer the queries of one request. Raises Refused: 404 for the model, 503 when it cannot answer now."""
        return await self._ask(asked, lambda spec: self.host.identify(spec, queries, options))

    async def embed(self, asked: str, queries: list[Query]) -> tuple[Spec, list[Reply]]:
        """Return the features of one request's queries, and by which version. Raises as `identify`."""
        spec = self.spec(asked)
        return spec, await self._ask(spec.id, lambda one: self.host.embed(one, queries))

    async def card(self, asked: str) -> dict[str, Any]:
        """Return what a model says of itself."""
        return await self._ask(asked, self.host.card)

    async def taxa(self, asked: str) -> tuple[Spec, list[dict[str, Any]]]:
        """Return all taxa of a model, asked of it once per version."""
        spec = self.spec(asked)
        if spec.id not in self._taxa:
            self._taxa[spec.id] = await self._ask(spec.id, self.host.taxa)
        return spec, self._taxa[spec.id]

    async def examples(self) -> list[dict[str, Any]]:
        """Return specimens to try with the default model; none where they cannot be made."""
        spec = self.spec("")
        try:
            library = library_of(Path(spec.path), self.settings)
            return list(await asyncio.to_thread(examples_of, spec.path, library))
        except (OSError, ValueError, KeyError) as error:
            log.warning("no examples for %s: %r", spec.id, error)
            return []

    async def health(self) -> Spec:
        """Ask the default model a question. Raises Refused (503) when it does not answer."""
        spec = self.spec("")
        replies = await self._ask("", lambda one: self.host.identify(one, [Query("health", (), PROBE)], Options()))
        if replies[0].status != 200:
            raise overloaded(f"the model does not answer: {replies[0].body.decode()[:200]}")
        return spec

    async def reload(self) -> list[str]:
        """Resolve every address anew, load what is new, swap, and let go of what nobody asks any more.

        Requests go on meanwhile, with the old versions until the new ones are loaded. Returns the new versions' ids.
        Raises Refused (409) when an address leads nowhere or a model cannot be loaded: then nothing changes.
        """
        async with self._reloading:
            before = self.directory.names()
            try:
                directory = await asyncio.to_thread(read_directory, self.settings)
                await self.share(directory)
            except Exception as error:
                raise Refused(
                    409,
                    f"reload: {str(error).strip()[:500]}; nothing was changed",
                    "addresses of models that can be loaded",
                ) from None
        return [spec.id for spec in directory.specs if spec.id not in before]

    async def share(self, directory: Directory) -> None:
        """Make every process of the service load what is new, then make every process swap."""
        await self._everyone("prepare", directory)
        await self._everyone("adopt", directory)

    async def prepare(self, directory: Directory) -> None:
        """Load what is not loaded yet. Raises ValueError as `Predictor.load`."""
        for spec in directory.specs:
            await self.host.load(spec)

    async def adopt(self, directory: Directory) -> None:
        """Swap: requests from now on mean these versions; the others are retired when the last answer is out."""
        before, self.directory = self.directory, directory
        kept = {spec.id for spec in directory.specs}
        for id in sorted({spec.id for spec in before.specs} - kept):
            self._taxa.pop(id, None)
            task = asyncio.create_task(self._drain(id))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)

    async def exposition(self) -> str:
        """Return the numbers of this process, as Prometheus reads them."""
        return self.metrics.text()

    async def numbers(self) -> str:
        """Return the numbers of the whole service: of all processes, summed, whichever was asked."""
        return summed(await self._everyone("exposition"))

    def served(self) -> list[dict[str, Any]]:
        """Return the models and what requests may call them."""
        names = self.directory.names()
        ids = dict.fromkeys(spec.id for spec in self.directory.specs)
        return [{"id": id, "called": [name for name, spec in names.items() if spec.id == id]} for id in ids]

    async def _alone(self, method: str, *arguments: Any) -> list[Any]:
        return [await getattr(self, method)(*arguments)]

    async def _drain(self, id: str) -> None:
        while self.in_flight[id]:
            await asyncio.sleep(DRAIN_POLL_S)
        if self.directory.names().get(id) is None:
            await self.host.retire(id)

    async def _ask(self, asked: str, call: Callable[[Spec], Awaitable[Value]]) -> Value:
        spec = self.spec(asked)
        self.in_flight[spec.id] += 1
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await call(spec)
        except TimeoutError:
            raise overloaded(f"the model did not answer within {self.settings.timeout_s:g} seconds") from None
        finally:
            self.in_flight[spec.id] -= 1
