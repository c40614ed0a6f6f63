"""Keep every place where training relies on something that Ray does not promise: one function each.

Each says what it degrades to when an upgrade of Ray takes the thing away; `pytest -m ray_contract` fails then.
"""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SWITCHES = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of 2 s is added to every report
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of a worker appears twice
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keep CUDA visible to zero-GPU drivers; no warning
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "300",  # 30 minutes of silence help nobody
    "RAY_AIR_NEW_OUTPUT": "0",  # a sweep reports itself how far it is
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a sweep writes its own record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ctrl-C ends a sweep as it ends a training
}
# Ray starts its processes at nice 15: beside five ordinary processes a training made 17 specimens/s instead of 400.
# A train worker's own environment says 0; the node's says 1, so that its data tasks stay below it and do not starve.
TRAIN_NICENESS, NODE_NICENESS = {"RAY_worker_niceness": "0"}, {"RAY_worker_niceness": "1"}


def set_switches() -> None:
    """Set Ray's environment switches, never over the user's. Without them Ray is slower and says more."""
    for name, value in (SWITCHES | NODE_NICENESS).items():
        os.environ.setdefault(name, value)


def torch_setup(on_start: Callable[[], None]) -> Any:
    """Return a TorchConfig that calls `on_start` in the main thread of each worker, where signals are heard.

    Without Ray's backend class: a plain TorchConfig, whose workers do not hear SIGTERM; the driver's request to stop
    reaches them all the same.
    """
    from ray.train.torch import TorchConfig

    try:
        from ray.train.torch.config import _TorchBackend
    except ImportError:
        return TorchConfig()

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(on_start)

    class Setup(TorchConfig):
        @property
        def backend_cls(self) -> type[_TorchBackend]:
            return Backend

    return Setup()


def failures_of(error: BaseException) -> dict[int, Exception]:
    """Return rank -> exception of a failed training; {} where Ray does not say, and the run is then tried again."""
    return dict(getattr(error, "worker_failures", None) or {})


@contextlib.contextmanager
def started_apart() -> Iterator[None]:
    """Let Ray, while the block starts it, keep the driver's signal handlers and put its processes into own sessions.

    A signal to the driver's group (`timeout`, supervisors, Ctrl-C) then reaches the driver alone, which lets the
    workers commit. Without these names in Ray: a signal to the group loses the steps since the last commit.
    """
    import ray._private.services as services
    import ray._private.utils as utils

    if not hasattr(services, "ConsolePopen") or not hasattr(utils, "set_sigterm_handler"):
        yield
        return
    popen, handler = services.ConsolePopen, utils.set_sigterm_handler
    services.ConsolePopen = functools.partial(popen, start_new_session=True)  # type: ignore[misc, assignment]
    utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        services.ConsolePopen, utils.set_sigterm_handler = popen, handler  # type: ignore[misc]


def counted_cpus() -> float:
    """Return how many CPUs Ray would count here; the cores of the process where Ray does not say."""
    try:
        from ray._private.utils import get_num_cpus

        return float(get_num_cpus(override_docker_cpu_warning=True))
    except (ImportError, TypeError):
        return float(os.cpu_count() or 1)


def owner_of_noted_cluster() -> int | None:
    """Return the user id that started the Ray noted on this machine; None for no note, and where Ray keeps none."""
    try:
        from ray._private.utils import get_ray_address_file

        return Path(get_ray_address_file(None)).stat().st_uid
    except (ImportError, OSError):
        return None


def in_working_copy() -> bool:
    """Return whether this process is a job's driver in Ray's copy of the submitted folder, which goes with the session.

    Without Ray's variable: False, and results of a relative `run.storage` lie in that copy.
    """
    try:
        tree = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(tree.get("runtime_env", {}).get("working_dir", "")).startswith("gcs://")
    except ValueError:
        return False
