"""Numbered tasks through Ray Data, without what makes short tasks slow there."""

from typing import Any

POLL_S = 0.005  # Ray's executor waits 0.1 s for all running tasks before it starts another: a third of two cores idled
LIMITS_S = 0.1  # it believes in 0 CPUs, so runs one task at a time, until it asks again what the cluster has: after 1 s


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
    resource_manager.ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = LIMITS_S
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray.data.from_items(list(range(count)), override_num_blocks=count)
