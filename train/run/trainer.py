"""Train in the driver: configuration -> TorchTrainer -> a finished run. Its workers run `train.run.entry`.

Ray's own switches that are environment variables are set here, before Ray is imported, and never over the user's.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.batches.pipeline import CpuBudget, cpu_budget, label_columns, load_index, select_split
from engine.batches.sampling import EpochPlan
from engine.specimens.taxonomy import Taxonomy
from train.config import Config, absolute_paths, to_dict
from train.learning.loop import phases
from train.models import checkpoint
from train.run import commits, interrupts, progress, ray_seams, resume
from train.run import folder as folders
from train.run.cluster import lacking, require, start_ray
from train.run.entry import train_loop
from train.run.folder import RECORD
from train.run.job import Job, listen, run_folder
from train.run.tracking import create_run, describe_run, open_tracker, reopen_run

log = logging.getLogger(__name__)

# glibc gives activations back to the kernel after each step and faults them in again at the next. Keeping them made a
# CPU step of the quickstart 1.5 times as fast (0.31 s instead of 0.48 s, page faults 115,000 -> 200).
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}
START_WORD_S, NEXT_WORD_S = 5.0, 30.0  # of silence before a line says what is going on
STOPPING = "stopping after the step at hand, with a checkpoint"
STOP_S = 120.0  # for the workers to end their step, or their validation, and to commit
CPU_PER_WORKER = {False: 0.01, True: 1.0}  # by use_gpu: a CPU worker's own threads share the cores with its data tasks


@dataclass(frozen=True)
class Run:
    """Hold a finished training run."""

    folder: Path
    model: Path  # exported checkpoint, without optimizer state
    taxonomy: Taxonomy
    run_id: str
    history: list[dict[str, float]]  # one record an epoch
    steps: int
    seconds: float


@dataclass(frozen=True)
class Share:
    """Hold what a sweep gives to one of its runs, and what the sweep observes it with."""

    budget: CpuBudget  # its part of the cluster
    board: Any  # of train.run.progress
    stop: threading.Event  # set, the run ends after its step, with a checkpoint
    measured_last: str = ""  # as in Job
    frozen_texts: str = ""


def prepare(config: Config) -> tuple[Taxonomy, int]:
    """Check shards, splits, batch, lanes and phases before anything starts.

    Returns the taxonomy and the number of steps of the run. The taxonomy comes from the train split alone: a model can
    name only what it was shown.
    """
    index = load_index(config.data.shards)
    train = select_split(index, "train")
    taxonomy = Taxonomy.build(label_columns(train))
    for conflict in taxonomy.conflicts[:5]:
        log.warning("taxonomy: %s", conflict)
    if len(taxonomy.conflicts) > 5:
        log.warning("taxonomy: %d conflicts in all", len(taxonomy.conflicts))
    plan = EpochPlan(
        labels=taxonomy.encode(label_columns(train)),
        seed=config.run.seed,
        lanes=config.data.lanes,
        global_batch_size=config.run.global_batch_size,
        window=config.data.window,
        partners=config.data.partners,
    )
    total_steps = phases(config, plan.steps_per_epoch)[-1].last
    if config.data.lanes % max(1, config.run.num_workers):
        plan.worker_order(0, 0, config.run.num_workers)  # raises with the allowed numbers
    checkpoint.build(config, taxonomy)  # an architecture that cannot be built, or weights that are not there
    log.info(
        "%d training specimens, taxa per rank %s, %d steps an epoch, %d specimens left to the next epoch",
        len(train),
        [len(names) for names in taxonomy.names],
        plan.steps_per_epoch,
        plan.num_left_out,
    )
    return taxonomy, total_steps


def _threads(config: Config) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.run.threads or max(1, cores // max(1, config.run.num_workers))


def worker_resources(config: Config) -> dict[str, float]:
    """Return the resources that one train worker reserves in Ray."""
    run = config.run
    own = {run.worker_resource: 1.0} if run.worker_resource else {}
    return {"CPU": CPU_PER_WORKER[run.use_gpu]} | ({"GPU": 1.0} if run.use_gpu else {}) | own


def _trainer(job: Job, config: Config) -> Any:
    """Return a TorchTrainer whose workers listen for signals. `_fit` restarts it, not Ray."""
    import ray.train
    from ray.train import FailureConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run = config.run
    memory = {key: os.environ.get(key, value) for key, value in KEEP_MEMORY.items()}
    return TorchTrainer(
        train_loop,
        train_loop_config={field.name: getattr(job, field.name) for field in dataclasses.fields(job)},
        torch_config=ray_seams.torch_setup(listen),
        scaling_config=ScalingConfig(
            num_workers=run.num_workers,
            use_gpu=run.use_gpu,
            resources_per_worker=worker_resources(config),
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=str(Path(run.storage).resolve()),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": memory | ray_seams.TRAIN_NICENESS},
        ),  # type: ignore[call-arg]  # the type checker sees the older RunConfig of ray.air
    )


def _not_worth_a_retry(error: Exception) -> Exception | None:
    """Return the failure that would only happen again: a user's mistake, a full disk, a loss that is not finite."""
    failures = ray_seams.failures_of(error).values()
    full: list[Exception] = [
        one for one in failures if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)
    ]
    again: list[Exception] = [failure for failure in failures if isinstance(failure, ValueError | FloatingPointError)]
    source = [failure for failure in again if re.match(r"loss is -?(nan|inf)", str(failure))]
    return next(iter(full + source + again), None)


def _attempt(job: Job, config: Config, total_steps: int, stop: threading.Event) -> None:
    """Train in a thread, so that this one hears signals in every phase; raise what the training raised.

    After a request to stop it returns when the workers have committed; at once before their first step.
    """
    outcome: list[BaseException] = []

    def fit() -> None:
        try:
            _trainer(job, config).fit()
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=fit, name="training", daemon=True)
    started, word, deadline = time.monotonic(), START_WORD_S, float("inf")
    with progress.shown(job.board, total_steps, stop) as view:
        thread.start()
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(0.1)
            waited = time.monotonic() - started
            if stop.is_set() and deadline == float("inf"):
                deadline = time.monotonic() + (STOP_S if view.begun else 0.0)
            if not view.begun and waited > word:
                log.info("%d train workers start: torch, first batch (%.0f s)", config.run.num_workers, waited)
                word += NEXT_WORD_S
    if outcome:
        raise outcome[0]


def _fit(job: Job, config: Config, total_steps: int, stop: threading.Event) -> None:
    """Train to the end, or to a request to stop: after a failure again from the last commit, `run.max_failures` times.

    Ray restarts workers that die, but not its controller: when that one's process dies, `fit` raises an actor error.
    Here both count alike, and what would only fail again is not tried again.
    """
    import ray
    import ray.train

    run = config.run
    failures, limit = 0, run.max_failures
    while True:
        try:
            _attempt(job, config, total_steps, stop)
            return
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            mistake = _not_worth_a_retry(error)
            if mistake:
                raise mistake from None
            if stop.is_set():  # whoever sent SIGTERM may have sent it to the workers too
                return
            failures += 1
            if 0 <= limit < failures:
                raise
            log.warning("%s; going on from the last checkpoint (restart %d)", _cause(error), failures)
            if lack := lacking(worker_resources(config), run.num_workers, ray.cluster_resources()):
                log.warning("training waits for nodes: its workers need %s", lack)


def _cause(error: Exception) -> str:
    """Return one line that says why training broke off."""
    causes = [f"worker {rank}: {type(one).__name__}: {one}" for rank, one in ray_seams.failures_of(error).items()]
    return " ".join((causes[0] if causes else f"{type(error).__name__}: {error}").split())[:300]


def make_folder(folder: Path) -> Path:
    """Make a folder where it is missing. Raises ValueError when it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"run.storage: got {folder}, which cannot be written ({error.strerror}); "
            "allowed: a folder this user may write"
        ) from None
    return folder


def export(source: Path, target: Path) -> Path:
    """Copy a checkpoint without its optimizer state."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(checkpoint.STATE), dirs_exist_ok=True)
    return target


def _record(config: Config, rows: str) -> str:
    """Return the MLflow run of this training, the same after every restart; "" when not tracking.

    Write run.json anew: with the configuration that is used from here on, and the checksum of the train split.
    """
    folder = run_folder(config)
    record = checkpoint.read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    first = resume.came_from(record, folder)
    if first:
        log.info("%s is a copy of %s: it has a run of its own in MLflow", folder, first)
    run_id = "" if first else record.get("run_id", "")
    if run_id and reopen_run(config, run_id):
        before = resume.reopened(folder, ())
        tags = {f"resumed.{key}": str(new) for key, (_, new) in resume.changed(before, config).items()}
        describe_run(config, run_id, tags)
    else:
        tags = {"recipe": config.recipe, "code_version": checkpoint.code_version()}
        run_id = create_run(config, tags | ({"copied_from": str(first)} if first else {}))
    part = (folder / RECORD).with_suffix(".part")
    part.write_text(json.dumps({"run_id": run_id, "config": to_dict(config), "rows": rows}, indent=1))
    part.rename(folder / RECORD)
    return run_id


def train(config: Config, share: Share | None = None, *, wait: bool = False) -> Run:
    """Train as configured, on the running Ray cluster or one started here; a run of the same name is continued.

    Args:
        config: of the run; its folder is `run.storage`/`run.name`, which this process owns meanwhile.
        share: of one of several runs, whose status in MLflow is set by the sweep.
        wait: for nodes that the cluster does not have yet, instead of refusing.

    Raises ValueError for everything that the user can mend: shards, splits, numbers of workers, resources, tracking;
    FloatingPointError when the loss is not finite; Interrupted (SystemExit) after a signal, with the last step
    committed.
    """
    config = absolute_paths(config)
    folder = run_folder(config)
    with interrupts.heard() as signals, contextlib.ExitStack() as own:
        if share is None:
            own.enter_context(folders.held(folder))
        taxonomy, total_steps = prepare(config)
        rows = resume.fingerprint(select_split(load_index(config.data.shards), "train")) if share is None else ""
        resume.check(folder, total_steps, rows)
        start_ray()
        job = _job(config, taxonomy, share, wait)
        make_folder(folder)
        job = dataclasses.replace(job, run_id=_record(config, rows))
        started, status = time.perf_counter(), "FAILED"
        try:
            with signals.patient(STOPPING) if share is None else contextlib.nullcontext(share.stop) as stop:
                _fit(job, config, total_steps, stop)
            status = _reached(config, total_steps)
            if status:
                raise interrupts.Interrupted(signals.signum or signal.SIGTERM)
        except interrupts.Interrupted:
            status = "KILLED"
            raise
        finally:
            if status and share is None:
                open_tracker(config, job.run_id).close(status)
        return _finished(config, taxonomy, job.run_id, total_steps, time.perf_counter() - started)


def _job(config: Config, taxonomy: Taxonomy, share: Share | None, wait: bool) -> Job:
    """Return what every worker needs, after comparing the cluster with it. Raises ValueError for a lack."""
    import ray

    run, tree, taxa, threads = config.run, to_dict(config), taxonomy.to_json(), _threads(config)
    if share:
        return Job(tree, taxa, "", share.budget, threads, share.board, share.measured_last, share.frozen_texts)
    require(worker_resources(config), run.num_workers, wait)
    budget = cpu_budget(ray.cluster_resources(), run.num_workers, CPU_PER_WORKER[run.use_gpu])
    return Job(tree, taxa, "", budget, threads, progress.new_board())


def _reached(config: Config, total_steps: int) -> str:
    """Return "" for a run that has come to its end, else KILLED after a line that says how to go on."""
    reached = max(commits.steps(run_folder(config)), default=0)
    if reached >= total_steps:
        return ""
    name = config.run.name
    log.warning("stopped at step %d of %d; go on with --resume %s", reached, total_steps, name)
    return "KILLED"


def _finished(config: Config, taxonomy: Taxonomy, run_id: str, total_steps: int, seconds: float) -> Run:
    """Export the model of the last step and describe the run."""
    folder = run_folder(config)
    best = commits.best(folder)
    if best is not None and best != total_steps:
        log.info("best by validation: %s", commits.path_of(folder, best))
    last = commits.path_of(folder, total_steps)
    state = checkpoint.load_training_state(last)
    model = export(last, folder / "model")
    return Run(folder, model, taxonomy, run_id, state["history"], state["step"], seconds)
