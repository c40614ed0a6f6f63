"""Ray for those who need it: a cluster to run on, and numbered tasks without what makes short ones slow in Ray Data."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

POLL_S = 0.005  # Ray's executor waits 0.1 s for all running tasks before it starts another: a third of two cores idled
IDLE_S = 0.05  # between two looks while nobody waits for a task
LIMITS_S = 0.1  # it believes in 0 CPUs, so runs one task at a time, until it asks again what the cluster has: after 1 s

NODE = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
"""Environment of every node, before its Ray starts. Ray ends processes beyond one a CPU that had no task for a second;
where train workers outnumber the CPUs, many a task then starts a process, which costs 2 s of CPU: four workers on two
CPUs took 170 s for what takes them 80 (two took 54 and 51; tests/benchmarks/results/killed_runs.md)."""


def start_ray(level: int = logging.ERROR, **options: Any) -> None:
    """Join the cluster of the environment (a submitted job's) or the one that stands here, or start one.

    Ray keeps a note of the last cluster that was started here. Where that one was killed, Ray would look for it for
    minutes and then give up.

    Args:
        level: of Ray's own messages.
        options: of `ray.init`.
    """
    import ray
    from ray._private.utils import read_ray_address

    if ray.is_initialized():
        return
    noted = None if os.environ.get("RAY_ADDRESS") else read_ray_address()
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


class Pace:
    """Callback of Ray Data's executor: it rests while nobody waits for a task and none is running.

    Its loop sleeps only in waiting for running tasks: when all room was full of what was made ahead, it took the
    interpreter from the training step half of the time. One for all executions of this process.
    """

    wanted = threading.Event()
    wanted.set()

    def before_execution_starts(self, executor: Any) -> None: ...

    def on_execution_step(self, executor: Any) -> None:
        """Called after each turn of the loop."""
        if not self.wanted.is_set() and not any(operator.num_active_tasks() for operator in executor._topology):
            self.wanted.wait(IDLE_S)

    def after_execution_succeeds(self, executor: Any) -> None: ...

    def after_execution_fails(self, executor: Any, error: Exception) -> None: ...


@contextmanager
def unhurried() -> Iterator[None]:
    """Nobody waits for a task meanwhile."""
    Pace.wanted.clear()
    try:
        yield
    finally:
        Pace.wanted.set()


def numbered_tasks(count: int, poll_s: float = POLL_S) -> Any:
    """A Ray dataset of `count` rows {"item": 0 .. count - 1}, each a task of its own in whatever is mapped over it.

    `ray.data.range` would run two tasks for each: it is not fused with a map that follows.

    Args:
        poll_s: how often the executor looks for finished tasks. 5 ms suits tasks of some 50 ms and costs the driver an
            eighth of a core; where they last a second, 30 ms costs half of that.
    """
    import ray
    from ray.data import DataContext
    from ray.data._internal.execution import resource_manager, streaming_executor_state

    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = poll_s
    resource_manager.ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = LIMITS_S  # type: ignore[assignment]
    context = DataContext.get_current()
    context.custom_execution_callback_classes = [Pace]  # type: ignore[list-item]  # by its methods
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray.data.from_items(list(range(count)), override_num_blocks=count)
