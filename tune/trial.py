"""Run one trial: a training that pauses at every validation, so that the search may stop it there.

A task is plain data. A trial's folder is that of a normal run, with the normal checkpoints, so a trial that is
killed goes on from its last commit wherever Tune starts it again. An actor outlives its trial and takes the next one:
imports, the index and the taxonomy are then there already.
"""

import contextlib
import ctypes
import fnmatch
import functools
import json
import logging
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.tune
import torch

from engine.batches.pipeline import CpuBudget, label_columns, load_index, select_split
from engine.specimens.taxonomy import Taxonomy
from train.config import Config, from_dict, to_dict
from train.run import commits, progress, trainer
from train.run.job import Job, run_folder
from train.run.worker import Worker

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
POLL_SECONDS = 0.2  # a coordinator asks for the epochs of its workers
STOP_SECONDS = 300.0  # for the workers of a stopped trial to reach the end of their step and commit


@dataclass(frozen=True)
class Task:
    """Hold the task of a trial. `metric` is a pattern of metric keys, whose mean is the score."""

    name: str
    number: int
    config: str  # JSON: Tune flattens what is nested, again with every result
    run_id: str
    metric: str
    final: bool
    distributed: bool
    budget: CpuBudget | None
    threads: int


def score_of(metrics: dict[str, float], pattern: str) -> float | None:
    """Return the mean of the metrics whose keys match; None when none does."""
    found = [value for key, value in metrics.items() if fnmatch.fnmatchcase(key, pattern)]
    return sum(found) / len(found) if found else None


def on_split(pattern: str, split: str) -> str:
    """Return the pattern of the same metrics on the split that finals are scored on."""
    return f"{split}/" + pattern.removeprefix("val/")


@functools.lru_cache(maxsize=1)
def opened(shards: tuple[str, ...]) -> tuple[pa.Table, Taxonomy]:
    """Read index and taxonomy, which all trials of a sweep share, once in an actor's life."""
    index = load_index(shards)
    return index, Taxonomy.build(label_columns(select_split(index, "train")))


class SharedJob(Job):
    """Hold a Job whose index and taxonomy are those of the actor."""

    def open(self) -> tuple[Config, Taxonomy, pa.Table]:
        """Return configuration, taxonomy and index as objects."""
        config = from_dict(self.config)
        index, taxonomy = opened(config.data.shards)
        return config, taxonomy, index


def keep_memory() -> None:
    """Do for a running process what `trainer.KEEP_MEMORY` does for a new one (glibc only)."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            mallopt(option, value)


class InProcess:
    """Iterate over the epochs of a training in this process."""

    def __init__(self, task: Task, config: Config) -> None:
        torch.set_num_threads(task.threads)
        last = config.eval.split if task.final else ""
        job = SharedJob(to_dict(config), {}, task.run_id, task.budget, task.threads, None, last, config.run.storage)
        self._worker = Worker(job, torch.device("cuda" if config.run.use_gpu else "cpu"))
        self._epochs = self._run()

    def _run(self) -> Iterator[dict[str, float]]:
        """Yield the epochs from before a restart first: the judge may not know them."""
        yield from list(self._worker.session.history)
        yield from self._worker.epochs()

    def next(self) -> dict[str, float] | None:
        """Return the metrics of the next epoch; None after the last."""
        return next(self._epochs, None)

    def close(self) -> None:
        """Stop where it is."""
        self._epochs.close()  # type: ignore[attr-defined]
        self._worker.close()


class Distributed:
    """Iterate over the epochs of a TorchTrainer, which runs beside this actor in a thread."""

    def __init__(self, task: Task, config: Config) -> None:
        assert task.budget, "workers need a budget for their data tasks"
        self._board, self._stop = progress.new_board(), threading.Event()
        self._shown, self._ended = 0, queue.Queue[BaseException | None]()
        last = config.eval.split if task.final else ""
        share = trainer.Share(task.budget, self._board, self._stop, last, config.run.storage)
        self._thread = threading.Thread(target=self._fit, args=(config, share), name=task.name, daemon=True)
        self._thread.start()

    def _fit(self, config: Config, share: trainer.Share) -> None:
        try:
            trainer.train(config, share)
            self._ended.put(None)
        except (Exception, SystemExit) as error:  # SystemExit: stopped by `close`
            self._ended.put(error)

    def next(self) -> dict[str, float] | None:
        """Return the metrics of the next epoch; None after the last. Raises what the training raised."""
        while True:
            alive = self._thread.is_alive()
            epochs = ray.get(self._board.epochs.remote())
            if self._shown < len(epochs):
                self._shown += 1
                return epochs[self._shown - 1]
            if not alive:
                error = self._ended.get()
                if error:
                    raise error
                return None
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Let the workers end after their step: whoever is killed instead leaves a placement group behind."""
        self._stop.set()
        self._thread.join(STOP_SECONDS)
        ray.kill(self._board)


class Trial(ray.tune.Trainable):
    """What Ray Tune runs: one call of `step` for each validation."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the trial that `config` describes, or go on with it."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        keep_memory()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the trial, begin another one."""
        self.cleanup()
        forget_checkpoints(self._config)  # an actor is given another trial when this one is over for good
        self._begin(new_config)
        return True

    def _begin(self, given: dict[str, Any]) -> None:
        self._task = Task(**given)
        self._config = from_dict(json.loads(self._task.config))
        self._running: InProcess | Distributed | None = None

    def step(self) -> dict[str, Any]:
        """Train to the next validation. What would only fail again is a result, not an error that Tune retries."""
        started, start_s = time.monotonic(), 0.0
        try:
            if self._running is None:  # here and not in setup, whose exceptions Tune would retry
                kind = Distributed if self._task.distributed else InProcess
                self._running = kind(self._task, self._config)
                start_s = time.monotonic() - started
            metrics = self._next_validated()
        except (FloatingPointError, ValueError) as error:
            return {"failed": " ".join(str(error).split())[:300], "done": True}
        if metrics is None:
            return {"failed": "the training ended without a validation", "done": True}
        task, last = self._task, metrics["epoch"] >= self._config.run.epochs
        kept = {key: value for key, value in metrics.items() if key.startswith(("val/", f"{self._config.eval.split}/"))}
        result = {"epoch": int(metrics["epoch"]), "done": last, "measured": json.dumps(kept)}
        score = score_of(metrics, task.metric)
        if score is not None:
            result["score"] = score
        if task.final and last:
            result["test"] = score_of(metrics, on_split(task.metric, self._config.eval.split))
            self._export()
        return result | {"took_s": time.monotonic() - started, "start_s": start_s}

    def _next_validated(self) -> dict[str, float] | None:
        assert self._running, "the trial has not begun"
        while (metrics := self._running.next()) is not None:
            if metrics["epoch"] >= self._config.run.epochs:
                self._running.next()  # to the end: the commit of the last step is then on disk
            if any(key.startswith("val/") for key in metrics):
                return metrics
        return None

    def _export(self) -> None:
        """Export the trained model of a final, without optimizer state, as a normal run does."""
        folder = run_folder(self._config)
        trainer.export(commits.path_of(folder, commits.steps(folder)[-1]), folder / "model")

    def cleanup(self) -> None:
        """End the trial where it is."""
        if self._running is not None:
            with contextlib.suppress(FloatingPointError, ValueError):  # raised in `step` already
                self._running.close()
            self._running = None


def forget_checkpoints(config: Config) -> None:
    """Remove what only a trial that goes on would need."""
    shutil.rmtree(run_folder(config) / commits.FOLDER, ignore_errors=True)
