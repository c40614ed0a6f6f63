"""Ray for those who need it: a cluster to run on, and everything in engine that touches what Ray does not promise.

Each such place is one function or class here and names the public way that remains where a Ray has changed. What is
lost then is time or quiet, never a result, so nobody would notice: `pytest -m ray_contract` does, in seconds.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

POLL_S = 0.005  # Ray's executor waits 0.1 s for all running tasks before it starts another: a third of two cores idled
IDLE_S = 0.05  # between two looks while nobody waits for a task
LIMITS_S = 0.1  # it believes in 0 CPUs, so runs one task at a time, until it asks again what the cluster has: after 1 s

# A data task would take over its train worker's environment, nice 0: it stays below, and far above Ray's own 15.
DATA_TASK = {"env_vars": {"RAY_worker_niceness": "1"}}

NODE = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
"""Environment of every node, before its Ray starts. A Ray that does not know it goes back to its default.

Ray ends processes beyond one a CPU that had no task for a second. Where train workers outnumber the CPUs, many a task
then starts a process, which costs 2 s of CPU: four workers on two CPUs took 170 s for what takes them 80 (two took 54
and 51; tests/benchmarks/results/killed_runs.md).
"""

PROGRESS_LOGGER = "ray.data._internal.progress"  # it warns that its bars are off


def noted_cluster(folder: str | None = None) -> str | None:
    """Return the address of the last cluster that was started on this machine, None where Ray keeps no such note.

    Without it `ray.init` looks for that cluster by itself: for minutes where it was killed.

    Args:
        folder: Ray's temporary folder; None = its default.
    """
    try:
        from ray._private.utils import read_ray_address

        return read_ray_address(folder) or None
    except (ImportError, TypeError):
        return None


def start_ray(level: int = logging.ERROR, **options: Any) -> None:
    """Join the cluster of the environment (a submitted job's) or the one that stands here, or start one.

    A noted cluster at which nobody answers is not looked for.

    Args:
        level: of Ray's own messages.
        options: of `ray.init`.
    """
    import ray

    if ray.is_initialized():
        return
    noted = None if os.environ.get("RAY_ADDRESS") else noted_cluster()
    if noted and not _answers(noted):
        log.warning("no Ray answers at %s, where the last one on this machine was: starting another", noted)
        options["address"] = "local"
    for name, value in NODE.items():
        os.environ.setdefault(name, value)
    ray.init(log_to_driver=False, logging_level=level, **options)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True


def quiet_data(level: int = logging.WARNING) -> None:
    """Keep Ray Data from reporting every execution. Under other names its loggers talk, nothing else happens."""
    logging.getLogger("ray.data").setLevel(level)
    logging.getLogger(PROGRESS_LOGGER).setLevel(max(level, logging.ERROR))


class ExecutorRest:
    """Callback of Ray Data's executor that rests while nobody waits for a task and none is running.

    The executor's loop sleeps only in waiting for running tasks: when all room was full of what was made ahead, it took
    the interpreter from the training step half of the time. One for all executions of this process. Where Ray hides
    its operators, it never rests.
    """

    wanted = threading.Event()
    wanted.set()

    def before_execution_starts(self, executor: Any) -> None:
        """Do nothing."""

    def on_execution_step(self, executor: Any) -> None:
        """Rest after a turn of the loop, when it may."""
        if not self.wanted.is_set() and running_tasks(executor) == 0:
            self.wanted.wait(IDLE_S)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Do nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Do nothing."""


def running_tasks(executor: Any) -> int | None:
    """Return how many tasks of an execution are running, None where Ray does not show it."""
    try:
        return sum(operator.num_active_tasks() for operator in executor._topology)
    except AttributeError:
        return None


@contextmanager
def unhurried() -> Iterator[None]:
    """Let the executor rest meanwhile: nobody waits for a task."""
    ExecutorRest.wanted.clear()
    try:
        yield
    finally:
        ExecutorRest.wanted.set()


def poll_every(seconds: float) -> bool:
    """Let Ray Data's executor look for finished tasks this often; return whether it still has these constants.

    Without them it waits 0.1 s, and a second for the cluster's resources.
    """
    try:
        from ray.data._internal.execution import resource_manager, streaming_executor_state

        manager: Any = resource_manager.ResourceManager
        there = hasattr(streaming_executor_state, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S") and hasattr(
            manager, "GLOBAL_LIMITS_UPDATE_INTERVAL_S"
        )
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = seconds
        manager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = LIMITS_S
    except (ImportError, AttributeError):
        return False
    return there


def numbered_tasks(count: int, poll_s: float = POLL_S) -> Any:
    """Return a Ray dataset of rows {"item": 0 .. count - 1}, each a task of its own in whatever is mapped over it.

    `ray.data.range` would run two tasks for each: it is not fused with a map that follows.

    Args:
        count: number of tasks.
        poll_s: how often the executor looks for finished tasks. 5 ms suits tasks of some 50 ms and costs the driver an
            eighth of a core; where they last a second, 30 ms costs half of that.
    """
    import ray
    from ray.data import DataContext

    poll_every(poll_s)
    context = DataContext.get_current()
    context.custom_execution_callback_classes = [ExecutorRest]  # type: ignore[list-item]  # by its methods
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray.data.from_items(list(range(count)), override_num_blocks=count)


def started_blocks(dataset: Any) -> Iterator[dict[str, np.ndarray]]:
    """Start a dataset's execution and return its blocks in order as numpy columns, views of the object store.

    Where Ray hides its blocks, its public batches stand in: the execution then starts with the first of them.
    """
    import ray

    try:
        from ray.data.block import BlockAccessor

        bundles = dataset.iter_internal_ref_bundles()
    except (ImportError, AttributeError):
        return iter(dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0))
    return (
        BlockAccessor.for_block(ray.get(reference)).to_numpy()  # type: ignore[misc]
        for bundle in bundles
        for reference in bundle.block_refs
    )
