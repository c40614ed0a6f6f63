"""Run one Ray Train worker: from the last committed checkpoint to the end of the run, or to a request to stop.

    restore -> train_step ... -> (epoch: compare replicas, validate, report) -> commit -> train_step ...

All state that decides what comes next is the step: a worker that starts at a committed step does what an uninterrupted
one would have done from there.
"""

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import torch

from engine.batches.collate import Batch
from engine.batches.pipeline import evaluation_batches, select_split
from train import dist
from train.evaluation.predict import accuracy_of
from train.inference.scoring import Scorer
from train.learning import flops
from train.learning.loop import Meter, Session, timed
from train.models import checkpoint
from train.run import commits, progress, resume
from train.run.gauges import Gauges
from train.run.job import Job, asked_to_end, run_folder
from train.run.tracking import open_tracker

log = logging.getLogger(__name__)

SHOWN_RANKS = ("family", "species")  # of the validation, in the line of an epoch
SCORED = "/clean/species/top1"  # the mean of these, over the queries, decides which checkpoint is the best


class Preempted(RuntimeError):
    """Say that a worker was asked to end; everything is committed, and the run can go on elsewhere."""


class Worker:
    """Drive one worker's session with its metrics, checkpoints and the board."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.budget, self.reporter = job.budget, progress.Reporter(job.board)
        self.job = job
        self.config, taxonomy, self.index = job.open()
        self.rank0 = dist.rank() == 0
        self.tracker = open_tracker(self.config, job.run_id if self.rank0 else "")
        self.gauges = Gauges(self.config.run.name, dist.rank())
        self.folder = run_folder(self.config)
        self.session = Session(self.config, self.index, taxonomy, device)
        self.commits = commits.Commits(self.folder, self.config.run.keep_checkpoints) if self.rank0 else None
        self.interval, self.epoch, self.beside = Meter(), Meter(), ""
        self.flops = 0.0  # of a step of this worker
        self.peak = 0.0  # operations a second of its device
        self._restore()
        self._share_texts()

    def _share_texts(self) -> None:
        """Take the features of a frozen text tower that another run of the same weights has written."""
        text = self.session.model.text_encoder
        self.texts = Path(self.job.frozen_texts) if self.job.frozen_texts and text.frozen else None
        if self.texts:
            text.recall(self.texts)

    def _restore(self) -> None:
        # Rank 0 chooses: a worker could see a checkpoint that the others do not see yet.
        there = commits.steps(self.folder) if self.rank0 else []
        chosen = int(dist.all_reduce_sum(torch.tensor([there[-1] if there else 0], device=self.session.device)).item())
        if chosen:
            folder = commits.path_of(self.folder, chosen)
            saved = checkpoint.load(folder)
            state = checkpoint.load_training_state(folder)
            resume.restore(self.session, saved.model.state_dict(), state, saved.config)
            log.info("resumed at step %d of %d", chosen, self.session.total_steps)
            for metrics in self.session.history if self.rank0 else []:
                self.reporter.epoch(metrics)

    def epochs(self) -> Iterator[dict[str, float]]:
        """Do all steps that are left; yield the metrics of each epoch at its end.

        Raises Preempted when any worker was asked to end, after a checkpoint.
        """
        session, every = self.session, self.session.plan.steps_per_epoch
        with contextlib.closing(session.batches(self.budget)) as batches:  # type: ignore[type-var]
            for batch, wait in timed(batches):
                self._step(batch, wait)
                stop = any(session.asked)
                if session.step % every == 0:
                    yield self._end_epoch(stop)
                elif stop or self._due(session.step, self.config.run.checkpoint_steps):
                    self._commit()
                if stop and session.step < session.total_steps:
                    return self._stop()
        self._committed()

    @staticmethod
    def _due(count: int, every: int) -> bool:
        return every > 0 and count % every == 0

    def _step(self, batch: Batch, wait: float) -> None:
        """Do one step, timed and counted."""
        session, first = self.session, not self.peak
        asked = (self.reporter.stop, asked_to_end.is_set())
        started = time.perf_counter()
        if first and not self.config.run.compile:  # what is compiled cannot be counted
            terms, self.flops = flops.counted(lambda: session.train_step(batch, asked))
        else:
            terms = session.train_step(batch, asked)
        busy = time.perf_counter() - started
        if first:
            given = self.config.run.peak_tflops * 1e12
            self.peak = given or flops.matmul_rate(session.device, self.config.run.precision)
            self.tracker.metrics({"data/first_batch_s": wait}, session.step - 1)
            log.info("first batch after %.1f s", wait)
        if self.config.run.record_keys:
            record_keys(self.folder, dist.rank(), session.step - 1, batch["keys"])
        for meter in (self.interval, self.epoch):
            meter.add(terms, int(batch["valid"].sum()), wait, busy, self.flops)
        if self._due(session.step, self.config.run.log_every):
            summary = self.interval.summary(self.peak)
            self.tracker.metrics(summary | {"optim/lr": float(session.schedule.get_last_lr()[0])}, session.step)
            self.gauges.set(summary | {"step": float(session.step)})
            self.beside = f"loss {summary['loss/total']:.3f}, {summary['perf/samples_per_s']:.0f} specimens/s"
            self.interval = Meter()
        if self.rank0:
            self.reporter.step(session.step, self.beside)

    def _end_epoch(self, stop: bool) -> dict[str, float]:
        """Compare the replicas, validate and commit when due; return the epoch's metrics."""
        session, run = self.session, self.config.run
        epoch, last = session.step // session.plan.steps_per_epoch, session.step == session.total_steps
        dist.check_replicas(session.model)
        metrics = self.epoch.summary(self.peak) | {"epoch": float(epoch), "step": float(session.step)}
        self.epoch = Meter()
        found = validate(session, self.index) if last or self._due(epoch, run.validate_every) else {}
        metrics |= found
        if last and self.job.measured_last:
            metrics |= validate(session, self.index, self.job.measured_last)
        metrics["data/left_out"] = float(session.plan.num_left_out)
        self.tracker.metrics({key: value for key, value in metrics.items() if key != "step"}, session.step)
        tops = [(k.split("/"), v) for k, v in found.items() if k.endswith("/top1")]
        shown = [(query, rank, v) for (_, query, kind, rank, _), v in tops if kind == "clean" and rank in SHOWN_RANKS]
        accuracies = [f"{query} {rank} {100 * v:.1f}" for query, rank, v in shown]
        text = f"; val top-1 %: {', '.join(accuracies)}" if accuracies else ""
        if self.rank0:
            log.info("epoch %d/%d: loss %.3f%s", epoch, run.epochs, metrics["loss/total"], text)
        session.history.append(metrics)
        if stop or last or found or self._due(epoch, run.checkpoint_every):
            scores = [value for key, value in found.items() if key.endswith(SCORED)]
            self._commit(sum(scores) / len(scores) if scores else None)
        if self.rank0:
            self.reporter.epoch(metrics)
            if self.texts and epoch == 1:  # by now every caption has been met
                session.model.text_encoder.leave(self.texts)
        return metrics

    def _commit(self, score: float | None = None) -> None:
        """Hand a copy of everything to the thread that writes it (rank 0); training goes on meanwhile."""
        if not self.commits:
            return
        session, started = self.session, time.perf_counter()
        state, weights = (checkpoint.snapshot(tree) for tree in (session.state(), session.model.state_dict()))
        write = functools.partial(
            checkpoint.save,
            model=session.model,
            config=session.config,
            taxonomy=session.taxonomy,
            step=session.step,
            state=checkpoint.TrainingState(state, weights, score),
        )
        self.commits.submit(session.step, write)
        times = {"perf/checkpoint_s": time.perf_counter() - started}  # that training waited
        if self.commits.seconds:
            times["perf/commit_s"] = self.commits.seconds  # that the thread took for the one before
        self.tracker.metrics(times, session.step)

    def _committed(self) -> None:
        """Wait for rank 0's checkpoints: a rank that ended before would take the others with it."""
        if self.commits:
            self.commits.wait()
        dist.all_reduce_sum(torch.zeros(1, device=self.session.device))

    def _stop(self) -> None:
        """Stop after the step of a commit: return when the driver asked for it, raise Preempted otherwise."""
        self._committed()
        driver, _ = self.session.asked
        log.info("stopped at step %d of %d, committed", self.session.step, self.session.total_steps)
        if not driver:
            raise Preempted(f"a train worker was asked to end (SIGTERM) at step {self.session.step}")

    def close(self) -> None:
        """Finish writing what was handed over, whatever ended the run."""
        if self.commits:
            self.commits.join()
        self.tracker.close()


def validate(session: Session, index: pa.Table, split: str = "val") -> dict[str, float]:
    """Return the roll-up accuracy per rank on a split, shared by all workers; {} without specimens or names."""
    if session.phase.part == "dna" or not bool((index["split"].to_numpy(zero_copy_only=False) == split).any()):
        return {}
    rows = select_split(index, split)
    first, last = (len(rows) * (dist.rank() + end) // dist.world_size() for end in (0, 1))
    own: dict[str, float] = {}
    if first < last:
        batches = evaluation_batches(
            rows.slice(first, last - first), session.taxonomy, session.config.data, session.config.eval.batch_size
        )
        own = accuracy_of(
            Scorer(session.model, session.taxonomy, session.tokenizer, session.device),
            batches,
            split,
            session.config.eval.validate_noisy,
        )
    return pooled(dist.gather_objects(own))


def pooled(parts: list[dict[str, float]]) -> dict[str, float]:
    """Combine the accuracies of disjoint shares: `.../top1` weighted by `.../rows`."""
    result: dict[str, float] = {}
    for top1 in dict.fromkeys(key for part in parts for key in part if key.endswith("/top1")):
        rows = top1.removesuffix("top1") + "rows"
        right = sum(round(part[top1] * part[rows]) for part in parts if top1 in part)
        total = sum(part[rows] for part in parts if top1 in part)
        result |= {top1: right / total, rows: total}
    return result


def record_keys(folder: Path, rank: int, step: int, keys: list[str]) -> None:
    """Append the keys of one worker's step.

    A step that was repeated after a restart has several records; the weights come from the last one.
    """
    line = json.dumps({"step": step, "keys": [key for key in keys if key]}) + "\n"
    descriptor = os.open(folder / f"keys-{rank}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())  # in one piece: a killed process leaves no half line
    finally:
        os.close(descriptor)
