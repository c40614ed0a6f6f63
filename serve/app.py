"""The service on Ray Serve: an ingress that speaks HTTP, and replicas that hold the models.

    serve run serve.app:app                                     # the newest run, http://127.0.0.1:8000
    serve run serve.app:app checkpoint=runs/NAME library=library
    serve run serve.app:app checkpoint=models:/taxafuse@champion

An ingress resolves aliases, turns away what is too much (`serve.service`) and passes queries on; a replica decodes,
batches and answers (`serve.host`). Requests name versions, so a batch never mixes two models and every answer can say
which one it is from.
"""

from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from serve.answer import Query
from serve.api import make_app
from serve.bodies import overloaded
from serve.directory import Directory, Spec, addresses, read_directory
from serve.host import ModelHost, Reply
from serve.predictor import Options
from serve.registry import SCHEME, default_registry
from serve.service import Service
from serve.settings import Settings, read_settings, read_token

INGRESS, MODELS = "Ingress", "Models"
DRAIN_S = 30.0  # a replica that is taken away may finish its requests for so long
BEYOND = 16  # times max_in_flight: what Serve lets through to an ingress, so that the ingress itself turns away
_QUIET = LoggingConfig(enable_access_log=False)  # a line per request costs as much as a small answer


class Models:
    """A replica: the models of one process; methods as those of `ModelHost`."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        self.host = ModelHost(settings)
        for spec in read_directory(settings).specs:
            await self.host.load(spec)

    async def load(self, spec: Spec) -> dict[str, Any]:
        return await self.host.load(spec)

    async def retire(self, id: str) -> None:
        await self.host.retire(id)

    async def identify(self, spec: Spec, queries: list[Query], options: Options) -> list[Reply]:
        return await self.host.identify(spec, queries, options)

    async def embed(self, spec: Spec, queries: list[Query]) -> list[Reply]:
        return await self.host.embed(spec, queries)

    async def taxa(self, spec: Spec) -> list[dict[str, Any]]:
        return await self.host.taxa(spec)


class Replicas:
    """All replicas of the models as one `serve.service.Host`; methods as those of `ModelHost`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.handle = handle

    async def load(self, spec: Spec) -> dict[str, Any]:
        """Every replica loads it."""
        return (await self.handle.broadcast("load", spec).results_async())[0]

    async def retire(self, id: str) -> None:
        await self.handle.broadcast("retire", id).results_async()

    async def card(self, spec: Spec) -> dict[str, Any]:
        return await _of_one(self.handle.load.remote(spec))

    async def identify(self, spec: Spec, queries: list[Query], options: Options) -> list[Reply]:
        return await _of_one(self.handle.identify.remote(spec, queries, options))

    async def embed(self, spec: Spec, queries: list[Query]) -> list[Reply]:
        return await _of_one(self.handle.embed.remote(spec, queries))

    async def taxa(self, spec: Spec) -> list[dict[str, Any]]:
        return await _of_one(self.handle.taxa.remote(spec))


async def _of_one(response: Awaitable[Any]) -> Any:
    """What one replica answers. Raises Refused (503) when it dies meanwhile, and where there is none to ask."""
    try:
        return await response
    except (RayActorError, BackPressureError, DeploymentUnavailableError) as error:
        # asked once only: a query that kills a process must not kill the next one, too
        raise overloaded(f"the model's process is not there ({type(error).__name__}); it is started again") from None


class Ingress:
    """An ingress: the HTTP interface of a service whose models are behind a handle."""

    def __init__(self, settings: Settings, models: DeploymentHandle) -> None:
        self.service = Service(
            settings, read_directory(settings), Replicas(models), read_token(settings), self._announce
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve when the replica starts."""
        return make_app(self.service)

    async def adopt(self, directory: Directory) -> None:
        """Take over what another ingress has reloaded."""
        self.service.adopt(directory)

    async def _announce(self, directory: Directory) -> None:
        here = serve.get_replica_context()
        everyone = serve.get_deployment_handle(here.deployment, here.app_name)
        await everyone.broadcast("adopt", directory).results_async()


def app(arguments: dict[str, Any]) -> serve.Application:
    """The application; arguments are `Settings`. Raises ValueError for what a user can mend, before anything starts."""
    settings = _located(read_settings(arguments))
    read_directory(settings)
    read_token(settings)
    return bind(settings)


def bind(settings: Settings, models: type[Models] = Models) -> serve.Application:
    """The deployments of settings whose paths are absolute; `models`: another kind of replica, for measurements."""
    if settings.max_replicas > settings.min_replicas:
        scaling: dict[str, Any] = {"autoscaling_config": {
            "min_replicas": settings.min_replicas, "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.replica_load, "upscale_delay_s": 5, "downscale_delay_s": 120,
        }}  # fmt: skip
    else:
        scaling = {"num_replicas": settings.min_replicas}
    replicas = serve.deployment(
        name=MODELS, max_ongoing_requests=2 * settings.max_in_flight, max_queued_requests=-1,
        graceful_shutdown_timeout_s=DRAIN_S, health_check_period_s=5, logging_config=_QUIET,
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": int(settings.device.startswith("cuda"))},
        **scaling,
    )(models)  # fmt: skip
    most = BEYOND * settings.max_in_flight
    ingress = serve.deployment(
        name=INGRESS, max_ongoing_requests=most, max_queued_requests=most, graceful_shutdown_timeout_s=DRAIN_S,
        health_check_period_s=5, logging_config=_QUIET, ray_actor_options={"num_cpus": 0.1},
    )(serve.ingress()(Ingress))  # fmt: skip
    return ingress.bind(settings, replicas.bind(settings))


def _located(settings: Settings) -> Settings:
    """With absolute paths: replicas run in other folders."""
    places = [
        address if address.startswith(SCHEME) else str(Path(address).resolve()) for address in addresses(settings)
    ]
    registry = settings.registry or default_registry()
    file = registry.removeprefix("sqlite:///")
    return replace(
        settings,
        checkpoint=",".join(places),
        library=str(Path(settings.library).resolve()) if settings.library else "",
        token_file=str(Path(settings.token_file).resolve()) if settings.token_file else "",
        registry=f"sqlite:///{Path(file).resolve()}" if file != registry else registry,
    )
