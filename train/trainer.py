"""Config -> TorchTrainer -> a finished run: what the driver does, and what each Ray Train worker does.

Ray's own switches that are environment variables are set here, before Ray is imported, and never over the user's.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # the default of 2 s is added to every report
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every line of a worker appears twice
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA visible to zero-GPU drivers; no warning
os.environ.setdefault("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", "300")  # 30 minutes of silence help nobody

import pyarrow as pa
import torch

from engine.pipeline import CpuBudget, cpu_budget, evaluation_batches, label_columns, load_index, select_split
from engine.sampling import Plan
from engine.taxonomy import Taxonomy
from train import checkpoint, dist, evaluation, progress
from train.config import Config, absolute_paths, from_dict, to_dict
from train.loop import Meter, Session, phases, timed
from train.tracking import Tracker, create_run, open_tracker

log = logging.getLogger(__name__)

# glibc gives activations back to the kernel after each step and faults them in again at the next. Keeping them made a
# CPU step of the quickstart 1.5 times as fast (0.31 s instead of 0.48 s, page faults 115,000 -> 200).
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}
RECORD = "run.json"  # in the run's folder: its MLflow run and its configuration, for --resume
IN_PROCESS = "checkpoint_in_process"  # in the run's folder: where run.num_workers=0 keeps its checkpoint
SHOWN_RANKS = ("family", "species")  # of the validation, in the line of an epoch
CPU_PER_WORKER = {False: 0.01, True: 1.0}  # by use_gpu: a CPU worker's own threads share the cores with its data tasks


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    folder: Path
    model: Path  # exported checkpoint, without optimizer state
    taxonomy: Taxonomy
    run_id: str
    history: list[dict[str, float]]  # one record an epoch
    steps: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """What every worker is given. Plain data, so that it survives pickling to another node."""

    config: dict[str, Any]
    taxonomy: dict[str, Any]
    run_id: str
    budget: CpuBudget | None
    threads: int
    board: Any  # actor handle of train.progress

    def open(self) -> tuple[Config, Taxonomy, pa.Table]:
        """Configuration, taxonomy and index as objects."""
        config = from_dict(self.config)
        return config, Taxonomy.from_json(self.taxonomy), load_index(config.data.shards)


def _report(session: Session, metrics: dict[str, float], keep: bool) -> None:
    """Report to Ray Train; rank 0 attaches a checkpoint when `keep`."""
    import ray.train

    if not (keep and dist.rank() == 0):
        ray.train.report(metrics)
        return
    with _checkpoint_folder(session) as folder:
        checkpoint.save(
            folder, session.model, session.config, session.taxonomy, step=session.step, state=session.state()
        )
        if not session.config.run.num_workers:
            folder = checkpoint.keep(folder, session.step)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _run_folder(config: Config) -> Path:
    return Path(config.run.storage).resolve() / config.run.name


@contextlib.contextmanager
def _checkpoint_folder(session: Session) -> Iterator[Path]:
    """A folder to write a checkpoint into: without Ray's workers one that stays, half written until it is renamed."""
    if session.config.run.num_workers:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    part = _run_folder(session.config) / IN_PROCESS / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part


@contextlib.contextmanager
def _last_checkpoint(config: Config) -> Iterator[Path | None]:
    """The folder of the checkpoint to go on from, None for a new run; with or without Ray's workers, before and now."""
    import ray.train

    if not config.run.num_workers:
        yield checkpoint.newest(_run_folder(config), f"{IN_PROCESS}/step-*", "checkpoint_*")
        return
    # not Ray's own here: a worker could see one that the others do not see yet
    newest = checkpoint.newest(_run_folder(config), f"{IN_PROCESS}/step-*")
    if previous := ray.train.get_checkpoint():
        with previous.as_directory() as folder:
            yield newest if newest and checkpoint.step_of(newest) > checkpoint.step_of(Path(folder)) else Path(folder)
    else:
        yield newest


def _validate(session: Session, index: pa.Table) -> dict[str, float]:
    """Per-rank roll-up accuracy on val, by rank 0 alone while the others wait; {} where there is no val split."""
    if dist.rank() or not bool((index["split"].to_numpy(zero_copy_only=False) == "val").any()):
        return {}
    batches = evaluation_batches(
        select_split(index, "val"), session.taxonomy, session.config.data, session.config.eval.batch_size
    )
    return evaluation.accuracy_of(session.model, session.taxonomy, batches, session.tokenizer, session.device)


def train_loop(task: dict[str, Any]) -> None:
    """One Ray Train worker, from the last checkpoint (if any) to the end of the run; `task` holds a Job's fields."""
    import ray.train
    import ray.train.torch

    job = Job(**task)
    progress.log_to(job.board, dist.rank())
    config, taxonomy, index = job.open()
    torch.set_num_threads(job.threads)
    session = Session(config, index, taxonomy, ray.train.torch.get_device())
    with _last_checkpoint(config) as folder:
        if folder:
            loaded = checkpoint.load(folder)
            session.restore(loaded.model.state_dict(), checkpoint.load_training_state(folder))
            log.info("resumed at step %d of %d", session.step, session.total_steps)
    rank0 = dist.rank() == 0
    tracker = open_tracker(config, job.run_id if rank0 else "")
    every = session.plan.steps_per_epoch
    interval, epoch_meter, beside, start = Meter(), Meter(), "", session.step
    for batch, wait in timed(session.batches(job.budget)):
        if session.step == start:
            tracker.metrics({"data/first_batch_s": wait}, start)
            log.info("first batch after %.1f s", wait)
        started = time.perf_counter()
        terms = session.train_step(batch)
        busy = time.perf_counter() - started
        for meter in (interval, epoch_meter):
            meter.add(terms, int(batch["valid"].sum()), wait, busy)
        if session.step % config.run.log_every == 0:
            summary = interval.summary()
            tracker.metrics(summary | {"optim/lr": float(session.schedule.get_last_lr()[0])}, session.step)
            beside = f"loss {summary['loss/total']:.3f}, {summary['perf/samples_per_s']:.0f} specimens/s"
            interval = Meter()
        if rank0:
            job.board.set.remote(session.step, beside)
        if session.step % every == 0:
            _end_epoch(session, index, epoch_meter, tracker)
            epoch_meter = Meter()
        elif config.run.checkpoint_steps and session.step % config.run.checkpoint_steps == 0:
            _report(session, {"epoch": session.epoch, "step": float(session.step)}, keep=True)
    tracker.close()


def _end_epoch(session: Session, index: pa.Table, meter: Meter, tracker: Tracker) -> None:
    """Compare the replicas, validate when due, checkpoint when due, report."""
    run, epoch = session.config.run, session.step // session.plan.steps_per_epoch
    dist.check_replicas(session.model)
    last = session.step == session.total_steps
    metrics = meter.summary() | {"epoch": float(epoch), "step": float(session.step)}
    if last or epoch % run.validate_every == 0:
        metrics |= _validate(session, index)
    metrics["data/left_out"] = float(session.plan.num_left_out)
    tracker.metrics({key: value for key, value in metrics.items() if key not in ("step",)}, session.step)
    if dist.rank() == 0:
        tops = [(k.split("/"), v) for k, v in metrics.items() if k.startswith("val/") and k.endswith("/top1")]
        accuracies = [f"{query} {rank} {100 * v:.1f}" for (_, query, _, rank, _), v in tops if rank in SHOWN_RANKS]
        text = f"; val top-1 %: {', '.join(accuracies)}" if accuracies else ""
        log.info("epoch %d/%d: loss %.3f%s", epoch, run.epochs, metrics["loss/total"], text)
    session.history.append(metrics)
    _report(session, metrics, keep=last or epoch % run.checkpoint_every == 0)


def prepare(config: Config) -> tuple[Taxonomy, int]:
    """Everything that can be refused before anything starts: shards, splits, batch, lanes, phases.

    Returns the taxonomy and the number of steps of the run.

    The taxonomy is built from the train split alone: what a model can name is what it was shown.
    """
    index = load_index(config.data.shards)
    train = select_split(index, "train")
    taxonomy = Taxonomy.build(label_columns(train))
    for conflict in taxonomy.conflicts[:5]:
        log.warning("taxonomy: %s", conflict)
    if len(taxonomy.conflicts) > 5:
        log.warning("taxonomy: %d conflicts in all", len(taxonomy.conflicts))
    plan = Plan(
        labels=taxonomy.encode(label_columns(train)), seed=config.run.seed, lanes=config.data.lanes,
        global_batch_size=config.run.global_batch_size, window=config.data.window, partners=config.data.partners,
    )  # fmt: skip
    total_steps = phases(config, plan.steps_per_epoch)[-1].last
    if config.data.lanes % max(1, config.run.num_workers):
        plan.worker_order(0, 0, config.run.num_workers)  # raises with the allowed numbers
    checkpoint.build(config, taxonomy)  # an architecture that cannot be built, or weights that are not there
    log.info(
        "%d training specimens, taxa per rank %s, %d steps an epoch, %d specimens left to the next epoch",
        len(train), [len(names) for names in taxonomy.names], plan.steps_per_epoch, plan.num_left_out,
    )  # fmt: skip
    return taxonomy, total_steps


def _threads(config: Config) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.run.threads or max(1, cores // max(1, config.run.num_workers))


def _fit(job: Job, config: Config, total_steps: int) -> Path:
    """Run TorchTrainer to the end; returns the last checkpoint's folder."""
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    run = config.run
    memory = {key: os.environ.get(key, value) for key, value in KEEP_MEMORY.items()}
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={field.name: getattr(job, field.name) for field in dataclasses.fields(job)},
        scaling_config=ScalingConfig(
            num_workers=run.num_workers,
            use_gpu=run.use_gpu,
            resources_per_worker={"CPU": CPU_PER_WORKER[run.use_gpu]} | ({"GPU": 1} if run.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=str(Path(run.storage).resolve()),
            failure_config=FailureConfig(max_failures=run.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=run.keep_checkpoints),
            worker_runtime_env={"env_vars": memory},
        ),  # type: ignore[call-arg]  # the type checker sees the older RunConfig of ray.air
    )
    try:
        with progress.shown(job.board, total_steps):
            last = trainer.fit().checkpoint
    except ray.train.WorkerGroupError as error:
        mistakes = [failure for failure in error.worker_failures.values() if isinstance(failure, ValueError)]
        raise mistakes[0] if mistakes else error from None
    if not run.num_workers:
        kept = checkpoint.newest(_run_folder(config), f"{IN_PROCESS}/step-*", "checkpoint_*")
    else:
        kept = Path(last.path) if last else None
    assert kept, "the last epoch always writes a checkpoint"
    return kept


def start_ray() -> None:
    """Join the cluster of the environment (a submitted job's), or start one on this machine."""
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports every execution; failures come as exceptions


def make_folder(folder: Path) -> Path:
    """Make a folder of a run where it is not yet. Raises ValueError when it cannot be made or written to."""
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


def train(config: Config) -> Run:
    """Train as configured, on the running Ray cluster or one started here; a run of the same name is continued.

    Raises ValueError for everything that the user can mend: shards, splits, numbers of workers, CPUs, tracking.
    """
    import ray

    config = absolute_paths(config)
    taxonomy, total_steps = prepare(config)
    start_ray()
    run = config.run
    budget = cpu_budget(ray.cluster_resources(), run.num_workers, CPU_PER_WORKER[run.use_gpu])
    folder = make_folder(Path(run.storage).resolve() / run.name)
    record = folder / RECORD
    run_id = json.loads(record.read_text())["run_id"] if record.exists() else ""
    if not run_id:
        run_id = create_run(config, {"recipe": config.recipe, "code_version": checkpoint.code_version()})
        record.write_text(json.dumps({"run_id": run_id, "config": to_dict(config)}, indent=1))
    started = time.perf_counter()
    try:
        job = Job(to_dict(config), taxonomy.to_json(), run_id, budget, _threads(config), progress.new_board())
        last = _fit(job, config, total_steps)
    except BaseException:
        open_tracker(config, run_id).close("FAILED")
        raise
    seconds = time.perf_counter() - started
    state = checkpoint.load_training_state(last)
    model = export(last, folder / "model")
    return Run(folder, model, taxonomy, run_id, state["history"], state["step"], seconds)
