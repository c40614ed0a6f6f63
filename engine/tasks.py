"""Numbered tasks through Ray Data, without what makes short tasks slow there."""

from typing import Any

POLL_S = 0.005  # Ray's executor waits 0.1 s for all running tasks before it starts another: a third of two cores idled


def numbered_tasks(count: int) -> Any:
    """A Ray dataset of `count` rows {"item": 0 .. count - 1}, each a task of its own in whatever is mapped over it.

    `ray.data.range` would run two tasks for each: it is not fused with a map that follows.
    """
    import ray
    from ray.data import DataContext
    from ray.data._internal.execution import streaming_executor_state

    streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = POLL_S
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray.data.from_items(list(range(count)), override_num_blocks=count)
