"""Run a sweep in the driver: search with early stopping, finals with fresh seeds, a winner.

    propose -> trial ... stopped or finished -> choose -> finals -> standings -> report, pictures, registered model

Everything that is decided is written to the ledger before it is acted on, so `--resume` is this same program over a
ledger that holds something already.
"""

import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.batches.pipeline import load_index, select_split
from train.config import Config, RunConfig, absolute_paths, from_dict, override, to_dict
from train.run import resume
from train.run.simulated_shards import with_simulated
from train.run.tracking import describe_run, tracking_uri
from train.run.trainer import RECORD, make_folder, prepare, start_ray
from tune import finalists, ray_seams, records
from tune.ledger import DEFAULT, SWEEP, Entry, Ledger, write_json
from tune.outcome import Outcome, conclude
from tune.parallel_trials import Slots, living_nodes, slots
from tune.search import propose
from tune.settings import METRIC, Settings
from tune.spaces import Space, assignments, defaults, find, short

log = logging.getLogger(__name__)

EXPERIMENT = f"{RunConfig.experiment}-sweeps"  # where none is given: trainings and sweeps are looked at apart
RESTARTS = 3  # of one trial whose process dies


class Sweep:
    """Run one sweep, from its settings to its outcome."""

    def __init__(self, settings: Settings, config: Config, budget_s: float = 0.0) -> None:
        """Check everything that can be refused before anything runs.

        Args:
            settings: what is asked for.
            config: the recipe as it is, `run.name` the sweep's name, paths absolute.
            budget_s: seconds from now for search and finals; 0 = no limit.

        Raises ValueError with what the user can mend.
        """
        self.settings, self.config, self.budget_s = settings, config, budget_s
        self.space: Space = find(settings.space, config)
        self.folder = Path(config.run.storage) / config.run.name
        self.ledger = Ledger(self.folder)
        self.refusal = ""  # why the sweep cannot go on, raised after Tune has ended
        self.parent = ""
        self._slots: Slots | None = None
        self._halving: Any = None
        self._watch: Any = None
        self._started = time.monotonic()
        self._check()

    def _check(self) -> None:
        if not self.settings.metric.startswith("val/") or not self.settings.metric.endswith("top1"):
            raise ValueError(
                f"--metric is a pattern of accuracies on val, got {self.settings.metric!r}; allowed: val/...top1, e.g. "
                f"{METRIC} or 'val/fused/*/species/top1' - a loss changes its meaning with the temperature"
            )
        index = load_index(self.config.data.shards)
        for split in ("val", self.config.eval.split):
            select_split(index, split)
        prepare(self.config)

    @property
    def slots(self) -> Slots:
        """How many trials fit the cluster as it was at the start."""
        assert self._slots, "the cluster has not been looked at"
        return self._slots

    def start(self) -> None:
        """Look at the cluster, make the folder and the run. Raises ValueError when they do not do."""
        start_ray(runtime_env=ray_seams.JOB_ENVIRONMENT)
        nodes = living_nodes()
        self._slots = slots(nodes, self.config, self.settings.concurrent)
        uri = tracking_uri(self.config)
        if self.config.run.tracking == "mlflow" and uri.startswith("sqlite") and len(nodes) > 1:
            raise ValueError(
                f"trials on {len(nodes)} nodes cannot share {uri}: start `mlflow server --host 0.0.0.0 "
                f"--backend-store-uri {uri}` on this node and give --set run.tracking_uri=http://THIS-NODE:5000"
            )
        make_folder(self.folder)
        asked = dataclasses.asdict(self.settings) | {"seed": self.config.run.seed}
        self.parent = records.open_sweep(self.config, asked)
        write_json(
            self.folder / SWEEP,
            {"settings": dataclasses.asdict(self.settings), "config": to_dict(self.config), "run_id": self.parent},
        )

    def trial_config(self, entry: Entry) -> Config:
        """Return the configuration of the training that an entry stands for."""
        config = override(self.config, assignments(entry.values))
        run = dataclasses.replace(
            config.run,
            name=entry.name,
            storage=str(self.folder),
            seed=entry.seed,
            threads=self.slots.threads,
            tracking_uri=tracking_uri(self.config),
        )
        return dataclasses.replace(config, run=run, eval=dataclasses.replace(config.eval, validate_noisy=True))

    # --- what Tune calls, through the feed

    def task(self, entry: Entry) -> dict[str, Any]:
        """Note that an entry starts; return the task of its trial."""
        config = self.trial_config(entry)
        entry.run_id = entry.run_id or records.open_trial(config, self.config.run.name, self.parent, entry)
        entry.state = "running"
        write_json(self.folder / entry.name / RECORD, {"run_id": entry.run_id, "config": to_dict(config)})
        self.ledger.put(entry)
        return {
            "name": entry.name,
            "number": entry.number,
            "config": json.dumps(to_dict(config)),
            "run_id": entry.run_id,
            "metric": self.settings.metric,
            "final": entry.final,
            "distributed": self.slots.distributed,
            "budget": self.slots.budget,
            "threads": self.slots.threads,
        }

    def saw(self, entry: Entry, result: dict[str, Any]) -> None:
        """Note a result of a trial; the same one may come twice."""
        if "failed" in result:
            entry.reason = result["failed"]
        elif "epoch" in result and result["epoch"] > entry.epoch:
            if "score" in result:
                entry.saw(result["epoch"], result["score"])
                entry.seconds += result["took_s"]
                entry.start_s += result["start_s"]
            entry.test = result.get("test", entry.test)
            self._refuse_early(entry, result)
        self.ledger.put(entry)

    def ended(self, entry: Entry, died: bool) -> None:
        """Note the end of a trial, and log it."""
        if self.refusal:
            return
        if died:
            reason = self._watch.reasons.get(entry.name, "its process died")
            entry.reason = entry.reason or f"broke off {RESTARTS + 1} times: {reason}"
        whole = entry.epoch >= self.config.run.epochs
        entry.state = "failed" if entry.reason else "finished" if whole else "stopped"
        self.ledger.put(entry)
        records.close_trial(self.trial_config(entry), entry)
        self._announce(entry)

    def _announce(self, entry: Entry) -> None:
        done = [e for e in self.ledger.entries.values() if e.final == entry.final and e.done]
        total = len(self.ledger.finals()) if entry.final else self.settings.trials
        outcome = records.OUTCOMES[entry.state]
        if entry.state == "stopped":
            outcome += f" at epoch {entry.epoch} of {self.config.run.epochs}"
        score = f", val score {100 * entry.score:.1f}" if entry.score is not None else ""
        test = f", test score {100 * entry.test:.1f}" if entry.test is not None else ""
        log.info(
            "[%d/%d] %s %s%s%s (%s)%s",
            len(done),
            total,
            entry.name,
            outcome,
            score,
            test,
            short(entry.values),
            f": {entry.reason}" if entry.reason else "",
        )

    def _refuse_early(self, entry: Entry, result: dict[str, Any]) -> None:
        """Refuse at the first validation what would make the whole sweep useless."""
        if self.refusal:
            return
        if "score" not in result:
            there = [key for key in sorted(json.loads(result["measured"])) if key.startswith("val/")]
            given = ", ".join(there)[:600] or "nothing"
            self.refusal = f"no trial reports a metric like {self.settings.metric!r}; val gave: {given}"
        full = self.full_trial_s()
        if self.budget_s and full > self.budget_s and not any(e.state == "finished" for e in self.ledger.search()):
            self.refusal = (
                f"--budget of {self.budget_s:g} s is smaller than one trial, which takes about {full:.0f} s "
                f"({entry.epoch} of {self.config.run.epochs} epochs took {entry.seconds:.0f} s)"
            )
        if self.refusal and self._halving:
            self._halving.give_up = True

    # --- what to run

    def full_trial_s(self) -> float:
        """Return the seconds of a whole training, from the trials so far; 0 before the first validation."""
        epochs = self.config.run.epochs
        begun = [entry for entry in self.ledger.entries.values() if entry.epoch]
        return max((e.start_s + (e.seconds - e.start_s) / e.epoch * epochs for e in begun), default=0.0)

    def _in_time(self) -> bool:
        """Return whether another trial leaves enough of the budget for the finals."""
        if not self.budget_s:
            return True
        full = self.full_trial_s()
        finals = math.ceil((1 + finalists.BEST) * self.settings.seeds / self.slots.concurrent) * full
        return time.monotonic() - self._started + full + finals <= self.budget_s

    def next_trial(self) -> tuple[Entry, dict[str, Any]] | None:
        """Return the next trial of the search: an interrupted one, the recipe's own values, then a proposed one."""
        if self.refusal:
            return None
        waiting = [entry for entry in self.ledger.search() if entry.state == "waiting"]
        if waiting:
            return waiting[0], self.task(waiting[0])
        known = self.ledger.search()
        number = len(known)
        if number >= self.settings.trials or (number and not self._in_time()):
            return None
        seed = self.config.run.seed
        if number == DEFAULT:
            values = defaults(self.space, self.config)
        else:
            values = propose(self.space, self.settings.algorithm, seed, number, known)
        entry = Entry(number, values, seed)
        return entry, self.task(entry)

    def next_final(self) -> tuple[Entry, dict[str, Any]] | None:
        """Return the next training of the finals."""
        waiting = [entry for entry in self.ledger.finals() if entry.state == "waiting"]
        return (waiting[0], self.task(waiting[0])) if waiting and not self.refusal else None

    def _missing(self) -> str:
        """Return what keeps trials from starting on the cluster as it is now."""
        try:
            slots(living_nodes(), self.config)
        except ValueError as error:
            return str(error)
        return ""

    def stage(self, final: bool) -> None:
        """Run the search, or the finals, to its end. Raises ValueError when that was found to be useless."""
        from tune.halving import Feed, Halving, Steering, Watch, first_rung, run_stage
        from tune.trial import Trial, forget_checkpoints

        for entry in self.ledger.finals() if final else self.ledger.search():
            if not entry.done:
                entry.state = "waiting"  # an earlier driver may have left it running
                self.ledger.put(entry)
        run = self.config.run
        stopping = self.settings.early_stopping and not final
        self._halving = Halving(run.epochs, first_rung(run.epochs, run.validate_every) if stopping else run.epochs)
        self._halving.remember(self.ledger.search() if stopping else ())
        own = self.folder / ("tune-final" if final else "tune-search")
        shutil.rmtree(own, ignore_errors=True)
        take = self.next_final if final else self.next_trial
        self._watch = Watch(self._missing)
        feed = Feed(take, self.slots.concurrent, self.saw, self.ended)
        steering = Steering(feed=feed, halving=self._halving, watch=self._watch)
        run_stage(Trial, steering, folder=own, resources=dict(self.slots.resources), max_failures=RESTARTS)
        shutil.rmtree(own, ignore_errors=True)
        if self.refusal:
            raise ValueError(self.refusal)
        for entry in self.ledger.entries.values():
            if entry.done:
                forget_checkpoints(self.trial_config(entry))

    def run(self) -> Outcome:
        """Run search and finals; return the outcome. Raises ValueError when no trial gave a score."""
        status = "KILLED"  # what a sweep that is interrupted is in MLflow until it goes on
        try:
            self.stage(final=False)
            search = self.ledger.search()
            chosen = finalists.choose(search)
            if not chosen:
                reasons = "; ".join(sorted({e.reason for e in search if e.reason}))
                raise ValueError(f"no trial of {len(search)} gave a score: {reasons}")
            for entry in chosen:
                for seed in range(self.config.run.seed + 1, self.config.run.seed + 1 + self.settings.seeds):
                    final = Entry(entry.number, entry.values, seed, final=True)
                    if final.name not in self.ledger.entries:
                        self.ledger.put(final)
            left = sum(not entry.done for entry in self.ledger.finals())
            if left:
                log.info("finals: %d trainings", left)
                self.stage(final=True)
            heading = (
                f"Search ({self.settings.space}, {self.settings.algorithm}); the score is the mean of "
                f"{self.settings.metric}"
            )
            outcome = conclude(self.ledger, self.config, self.space, heading, self.parent)
            status = ""
            return outcome
        except ValueError:
            status = "FAILED"
            raise
        finally:
            if status:
                begun = [entry.run_id for entry in self.ledger.entries.values() if not entry.done]
                for run_id in (*begun, self.parent):
                    describe_run(self.config, run_id, {}, status)


def settled(config: Config) -> Config:
    """Make a recipe ready for a sweep: paths absolute, simulated specimens made, its experiment named."""
    make_folder(Path(config.run.storage))
    config = absolute_paths(with_simulated(config))
    if config.run.experiment != RunConfig.experiment:
        return config
    return dataclasses.replace(config, run=dataclasses.replace(config.run, experiment=EXPERIMENT))


def resumed(folder: Path, overrides: Sequence[str], trials: int | None) -> tuple[Settings, Config]:
    """Return settings and configuration of the sweep in a folder: its name and storage are those of the folder.

    Args:
        folder: of the sweep, wherever it lies now.
        overrides: run.storage (where it was looked for), data.shards (moved), and values that the sweep has anyway.
        trials: of the search; None = as before.

    Raises ValueError for an override that could not be used: its trials would not be comparable.
    """
    from train.models.checkpoint import read_json

    tree = read_json(folder / SWEEP)
    config = resume.at_place(from_dict(tree["config"]), folder)
    for one in overrides:
        key, changed = one.partition("=")[0], override(config, [one])
        if key == "data.shards":
            config = changed
        elif key != "run.storage" and changed != config:
            raise ValueError(f"--resume {folder.name}: --set {key}: allowed: another sweep for another value")
    settings = Settings(**tree["settings"])
    return dataclasses.replace(settings, trials=trials or settings.trials), absolute_paths(config)
