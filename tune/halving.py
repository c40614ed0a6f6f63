"""Search with Ray Tune: a feed of tasks from the ledger, and ASHA (Li et al., 2020) over its scores."""

import logging
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from tune import ray_seams
from tune.ledger import DEFAULT, Entry

log = logging.getLogger(__name__)

REDUCTION = 4  # of the trials that reach a rung the best quarter goes on; with 3 some sweeps stopped less than half
EARLIEST = 8  # no trial is judged before this part of its training
WARN_SECONDS = 60.0  # between two lines about a cluster that is too small


def first_rung(epochs: int, validate_every: int) -> int:
    """Return the first epoch at which a trial may be stopped: the first validation after an eighth of the training.

    The rungs are then there and at four times as many epochs.
    """
    return min(epochs, -(-epochs // (EARLIEST * validate_every)) * validate_every)


class Halving(ASHAScheduler):
    """ASHA that never stops the recipe's own values, and knows the scores of trials from before an interruption."""

    def __init__(self, epochs: int, first: int) -> None:
        """`first`: the first epoch at which a trial may be stopped; none is where that is the last."""
        super().__init__(
            time_attr="epoch",
            metric="score",
            mode="max",
            max_t=epochs,
            grace_period=first,
            reduction_factor=REDUCTION,
        )
        self.give_up = False  # set, every trial stops at its next validation

    @property
    def metric(self) -> None:
        """Name no metric: Tune would refuse a result without it, and `Sweep` reports that itself."""
        return None

    def judge(self, name: str, epoch: int, score: float) -> str:
        """Enter a score into its rung: CONTINUE or STOP. A rung takes one score of a trial, its first."""
        return ray_seams.judge(self, name, epoch, score)

    def remember(self, entries: Iterable[Entry]) -> None:
        """Fill the rungs as they were."""
        for entry in entries:
            for epoch, score in entry.history:
                self.judge(entry.name, epoch, score)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on."""
        if self.give_up:
            return TrialScheduler.STOP
        if "score" not in result:
            return TrialScheduler.CONTINUE
        action = self.judge(trial.config["name"], result["epoch"], result["score"])
        return TrialScheduler.CONTINUE if trial.config["number"] == DEFAULT else action

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: its scores are in the rungs."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Do nothing: its scores are in the rungs."""


class Feed(Searcher):
    """Hands tasks to Tune as there is room for them, and notes what comes of them. All state is in the ledger."""

    def __init__(
        self,
        take: Callable[[], tuple[Entry, dict[str, Any]] | None],
        concurrent: int,
        saw: Callable[[Entry, dict[str, Any]], None],
        ended: Callable[[Entry, bool], None],
    ) -> None:
        """Prepare to hand out tasks.

        Args:
            take: returns the next entry with its task, None when there is nothing left to start.
            concurrent: trials at once, at most.
            saw: called with each result.
            ended: called when a trial is over; True = its processes died more often than they are restarted.
        """
        super().__init__()
        self._take, self._saw, self._ended, self._concurrent = take, saw, ended, concurrent
        self._running: dict[str, Entry] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Feed":
        return self  # Tune copies what it is given, to write it down

    def __getstate__(self) -> dict[str, Any]:
        return {}  # and this is not for writing down

    def suggest(self, trial_id: str) -> Any:
        """Return the next task; None while there is no room."""
        if len(self._running) >= self._concurrent:
            return None
        taken = self._take()
        if taken is None:
            return Searcher.FINISHED
        self._running[trial_id], task = taken
        return task

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note a validation."""
        self._saw(self._running[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note the end of a trial, its last result included."""
        entry = self._running.pop(trial_id, None)
        if entry is None:
            return
        if result and not error:
            self._saw(entry, result)
        self._ended(entry, error)

    def save(self, checkpoint_path: str) -> None:
        """Write the file that Tune expects."""
        Path(checkpoint_path).write_bytes(pickle.dumps({}))

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class Watch(Callback):
    """Warn when a trial's process died, and when the cluster has become too small for one."""

    def __init__(self, fits: Callable[[], str]) -> None:
        """`fits`: "" while a trial fits, else what is missing."""
        self._fits = fits
        self.reasons: dict[str, str] = {}  # name of a trial -> what its process last died of
        self._next = time.monotonic() + WARN_SECONDS

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Warn, at most once a minute, about what is missing."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + WARN_SECONDS
        missing = self._fits()
        if missing:
            log.warning("waiting: %s", missing)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Warn that its process died, or raised an unknown error, and is started again."""
        self._note(trial)
        name = trial.config["name"]
        log.warning("%s broke off (%s); it goes on from its last checkpoint", name, self.reasons[name])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a trial that broke off too often."""
        self._note(trial)

    def _note(self, trial: Any) -> None:
        error = ray_seams.error_of(trial)
        lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
        died = isinstance(error, ray.exceptions.RayActorError)
        self.reasons[trial.config["name"]] = "its process died" if died or not lines else lines[-1][:200]


@dataclass(frozen=True, kw_only=True)
class Steering:
    """Hold what decides in a stage and what reports of it."""

    feed: Feed  # what runs next
    halving: Halving  # what ends early
    watch: Watch  # what warns of processes that die and of a cluster that shrinks


def run_stage(
    trainable: type, steering: Steering, *, folder: Path, resources: dict[str, float], max_failures: int
) -> None:
    """Let Tune run everything that the feed gives.

    Args:
        trainable: a class of `ray.tune.Trainable`.
        steering: what runs next, and what ends early.
        resources: of one trial, as Ray counts them: {"CPU": 1.0, ...}.
        folder: for Tune's own files, of which nothing is needed afterwards.
        max_failures: restarts of one trial before it counts as failed.
    """
    ray_seams.hush()
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            search_alg=steering.feed,
            scheduler=steering.halving,
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config['name']}-{trial.trial_id}",
        ),
        run_config=ray.tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            verbose=0,
            callbacks=[steering.watch],
            failure_config=ray.tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),  # a trial keeps its own
        ),
    )
    tuner.fit()
