"""Keep every place where a sweep relies on something that Ray Tune does not promise: one function each.

Each says what it degrades to when an upgrade of Ray takes the thing away; `pytest -m ray_contract` fails then.
"""

import logging
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler

TUNE_LOGGER = "ray.tune"
JOB_ENVIRONMENT = {"env_vars": {"RAY_worker_niceness": "0"}}
"""Of a sweep's processes: a trial trains inside Tune's actor, which takes no environment of its own, and makes its
batches there too. Under another name trials run at nice 15 and starve beside ordinary processes."""


def hush() -> None:
    """Quieten Tune: feed and watch log what happens. Under another name Tune only says more."""
    logging.getLogger(TUNE_LOGGER).setLevel(logging.CRITICAL)


def judge(scheduler: Any, name: str, epoch: int, score: float) -> str:
    """Enter a score into ASHA's rung for a trial of this name; return CONTINUE or STOP.

    Where the scheduler has no brackets that take a result: CONTINUE, so that every trial runs to its end.
    """
    try:
        return scheduler._brackets[0].on_result(SimpleNamespace(trial_id=name), epoch, score)
    except (AttributeError, IndexError, TypeError):
        return TrialScheduler.CONTINUE


def error_of(trial: Any) -> Exception | None:
    """Return what a trial last broke off with; None where Tune does not say."""
    try:
        return trial.get_pickled_error()
    except AttributeError:
        return None
