"""The service on Ray Serve: replicas that each speak HTTP and hold the models.

    serve run serve.app:app                                     # the newest run, http://127.0.0.1:8000
    serve run serve.app:app checkpoint=runs/NAME library=library
    serve run serve.app:app checkpoint=models:/taxafuse@champion

One process does all of a request: each further hop through Ray Serve costs about 4 ms, more than a barcode's answer
(tests/benchmarks/results/service.md).
"""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.schema import LoggingConfig

from serve.http.api import make_app
from serve.http.host import ModelHost
from serve.http.service import Service
from serve.models.directory import Directory, addresses, read_directory
from serve.models.registry import SCHEME, default_registry
from serve.models.settings import Settings, read_settings, read_token

log = logging.getLogger(__name__)

DEPLOYMENT = "Identifier"
DRAIN_S = 30.0  # a replica that is taken away may finish its requests for so long
BEYOND = 16  # times max_in_flight: what Serve lets through to a replica, so that the replica itself turns away
_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")  # a line per request costs 6% of an empty one


class Identifier:
    """A replica: a `Service` with its models, which knows the other replicas."""

    Host = ModelHost

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        self.service = Service(
            settings, read_directory(settings), self.Host(settings), read_token(settings), self._everyone
        )
        await self.service.prepare(self.service.directory)
        self._joining = asyncio.create_task(self._join())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the ASGI application; Serve calls this when the replica starts."""
        return make_app(self.service)

    async def prepare(self, directory: Directory) -> None:
        """Answer a replica's call, see `Service.prepare`."""
        await self.service.prepare(directory)

    async def adopt(self, directory: Directory) -> None:
        """Answer a replica's call, see `Service.adopt`."""
        await self.service.adopt(directory)

    async def exposition(self) -> str:
        """Answer a replica's call, see `Service.exposition`."""
        return await self.service.exposition()

    async def _everyone(self, method: str, *arguments: Any) -> list[Any]:
        here = serve.get_replica_context()
        everyone = serve.get_deployment_handle(here.deployment, here.app_name)
        return list(await everyone.broadcast(method, *arguments).results_async())

    async def _join(self) -> None:
        """Share this replica's models: a new one resolves aliases anew, and all must have the same versions."""
        try:
            await self.service.share(self.service.directory)
        except DeploymentUnavailableError:
            pass  # it is the first
        except Exception as error:  # they go on as they are, until a reload
            log.warning("other replicas did not take over this one's models: %r", error)


def app(arguments: dict[str, Any]) -> serve.Application:
    """Return the application; arguments are `Settings`. Raises ValueError for a user's mistake before it starts."""
    settings = _located(read_settings(arguments))
    read_directory(settings)
    read_token(settings)
    return bind(settings)


def bind(settings: Settings, replica: type[Identifier] = Identifier) -> serve.Application:
    """Return the deployment of settings with absolute paths; measurements give another kind of `replica`."""
    if settings.max_replicas > settings.min_replicas:
        scaling: dict[str, Any] = {
            "autoscaling_config": {
                "min_replicas": settings.min_replicas,
                "max_replicas": settings.max_replicas,
                "target_ongoing_requests": settings.replica_load,
                "upscale_delay_s": 5,
                "downscale_delay_s": 120,
            }
        }
    else:
        scaling = {"num_replicas": settings.min_replicas}
    most = BEYOND * settings.max_in_flight
    deployment = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=most,
        max_queued_requests=most,
        graceful_shutdown_timeout_s=DRAIN_S,
        health_check_period_s=5,
        logging_config=_QUIET,
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": int(settings.device.startswith("cuda"))},
        **scaling,
    )(serve.ingress()(replica))
    return deployment.bind(settings)


def _located(settings: Settings) -> Settings:
    """Make the paths of settings absolute: replicas run in other folders."""
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
