"""Train in the driver: configuration -> TorchTrainer -> a finished run. Its workers run `train.run.worker`.

Ray's own switches that are environment variables are set here, before Ray is imported, and never over the user's.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # the default of 2 s is added to every report
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # else every line of a worker appears twice
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA visible to zero-GPU drivers; no warning
os.environ.setdefault("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", "300")  # 30 minutes of silence help nobody
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # a sweep tells itself how far it is
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # a sweep writes its own record
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # ctrl-C ends a sweep as it ends a training

from engine import ray_seams as tasks
from engine.batches.pipeline import CpuBudget, cpu_budget, label_columns, load_index, select_split
from engine.batches.sampling import EpochPlan
from engine.specimens.taxonomy import Taxonomy
from train.config import Config, absolute_paths, to_dict
from train.learning.loop import phases
from train.models import checkpoint
from train.run import commits, progress
from train.run.tracking import create_run, open_tracker, reopen_run
from train.run.worker import Job, listen, run_folder, train_loop

log = logging.getLogger(__name__)

# glibc gives activations back to the kernel after each step and faults them in again at the next. Keeping them made a
# CPU step of the quickstart 1.5 times as fast (0.31 s instead of 0.48 s, page faults 115,000 -> 200).
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}
RECORD = "run.json"  # in the run's folder: its MLflow run and its configuration, for --resume
STOPPED = 128 + signal.SIGTERM  # exit code, as a shell says it of a process that SIGTERM ended
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
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.torch.config import _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(listen)  # in the main thread: the training function runs in another

    class Setup(TorchConfig):
        @property
        def backend_cls(self) -> type[_TorchBackend]:
            return Backend

    run = config.run
    memory = {key: os.environ.get(key, value) for key, value in KEEP_MEMORY.items()}
    return TorchTrainer(
        train_loop,
        train_loop_config={field.name: getattr(job, field.name) for field in dataclasses.fields(job)},
        torch_config=Setup(),
        scaling_config=ScalingConfig(
            num_workers=run.num_workers,
            use_gpu=run.use_gpu,
            resources_per_worker=worker_resources(config),
        ),
        run_config=ray.train.RunConfig(
            name=run.name,
            storage_path=str(Path(run.storage).resolve()),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": memory},
        ),  # type: ignore[call-arg]  # the type checker sees the older RunConfig of ray.air
    )


def _not_worth_a_retry(error: Exception) -> Exception | None:
    """Return the failure that would only happen again: a user's mistake, or a loss that is not finite."""
    failures = getattr(error, "worker_failures", {}).values()
    again = [failure for failure in failures if isinstance(failure, ValueError | FloatingPointError)]
    source = [failure for failure in again if re.match(r"loss is -?(nan|inf)", str(failure))]
    return next(iter(source + again), None)


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
            with progress.shown(job.board, total_steps, stop):
                _trainer(job, config).fit()
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


def lacking(each: Mapping[str, float], num_workers: int, cluster: Mapping[str, float]) -> str:
    """Return, as text, which resources the cluster lacks for so many workers; "" = it has enough."""
    needed = {name: num_workers * amount for name, amount in each.items()}
    short = {name: amount for name, amount in needed.items() if cluster.get(name, 0.0) < amount}
    return "; ".join(f"{amount:g} {name}, there are {cluster.get(name, 0.0):g}" for name, amount in short.items())


def _cause(error: Exception) -> str:
    """Return one line that says why training broke off."""
    failures = getattr(error, "worker_failures", {})
    causes = [f"worker {rank}: {type(failure).__name__}: {failure}" for rank, failure in failures.items()]
    return " ".join((causes[0] if causes else f"{type(error).__name__}: {error}").split())[:300]


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets while the block runs; only in the main thread."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def start_ray() -> None:
    """Start or join Ray as `engine.ray_seams.start_ray` does, with Ray's warnings shown."""
    tasks.start_ray(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it reports every execution; failures come as exceptions


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


def _record(config: Config) -> str:
    """Return the MLflow run of this training, the same after every restart; "" when not tracking."""
    record = run_folder(config) / RECORD
    run_id = json.loads(record.read_text())["run_id"] if record.exists() else ""
    if run_id:
        reopen_run(config, run_id)
        return run_id
    run_id = create_run(config, {"recipe": config.recipe, "code_version": checkpoint.code_version()})
    part = record.with_suffix(".part")
    part.write_text(json.dumps({"run_id": run_id, "config": to_dict(config)}, indent=1))
    part.rename(record)
    return run_id


def train(config: Config, share: Share | None = None) -> Run:
    """Train as configured, on the running Ray cluster or one started here; a run of the same name is continued.

    Args:
        config: of the run; its folder is `run.storage`/`run.name`.
        share: of one of several runs, whose status in MLflow is set by the sweep.

    Raises ValueError for everything that the user can mend: shards, splits, numbers of workers, CPUs, tracking;
    FloatingPointError when the loss is not finite; SystemExit(143) after SIGTERM, with the last step committed.
    """
    import ray

    config = absolute_paths(config)
    taxonomy, total_steps = prepare(config)
    start_ray()
    run = config.run
    if share is None:
        budget = cpu_budget(ray.cluster_resources(), run.num_workers, CPU_PER_WORKER[run.use_gpu])
        board, measured, texts = progress.new_board(), "", ""
    else:
        budget, board, measured, texts = share.budget, share.board, share.measured_last, share.frozen_texts
    folder = make_folder(run_folder(config))
    run_id = _record(config)
    started, status = time.perf_counter(), "FAILED"
    try:
        with _sigterm_stops() if share is None else contextlib.nullcontext(share.stop) as stop:
            tree, taxa = to_dict(config), taxonomy.to_json()
            job = Job(tree, taxa, run_id, budget, _threads(config), board, measured, texts)
            _fit(job, config, total_steps, stop)
        reached = max(commits.steps(folder), default=0)
        if reached < total_steps:
            status = "KILLED"
            log.warning("stopped at step %d of %d; go on with --resume %s", reached, total_steps, run.name)
            raise SystemExit(STOPPED)
        status = ""
    finally:
        if status and share is None:
            open_tracker(config, run_id).close(status)
    seconds = time.perf_counter() - started
    best = commits.best(folder)
    if best is not None and best != total_steps:
        log.info("best by validation: %s", commits.path_of(folder, best))
    last = commits.path_of(folder, total_steps)
    state = checkpoint.load_training_state(last)
    model = export(last, folder / "model")
    return Run(folder, model, taxonomy, run_id, state["history"], state["step"], seconds)
