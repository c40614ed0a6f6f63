"""Record runs in MLflow, or nowhere, behind one interface.

The driver creates the run, so that database migrations happen once and restarts of workers find the same run. Rank 0
hands metrics to a queue that a thread empties in batches: the step never waits for a server. What a server does not
take is offered again until it does, also while the run ends; one that stays away costs a warning, never the training.
"""

import contextlib
import logging
import os
import queue
import shlex
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from train.config import Config, flatten, to_dict

log = logging.getLogger(__name__)

MAX_PARAM_LENGTH = 500  # MLflow refuses longer parameter values with some stores
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the page opens on runs
BATCH_LIMIT = 500  # metrics in one request; MLflow allows 1,000
ARTIFACTS = "mlflow-artifacts"  # folder beside a sqlite file of our own
RETRY_SECONDS = 2.0  # between two offers
KEY = "taxafuse.key"  # tag: what a run stands for, where that must not be recorded twice
PATIENCE_SECONDS = 60.0  # for a server that is away when the run ends: once in a worker, once in the driver
NOT_USED = {  # variables of MLflow -> the setting in whose place they are not taken
    "MLFLOW_TRACKING_URI": "run.tracking_uri",
    "MLFLOW_REGISTRY_URI": "run.tracking_uri",
    "MLFLOW_EXPERIMENT_NAME": "run.experiment",
    "MLFLOW_EXPERIMENT_ID": "run.experiment",
    "MLFLOW_RUN_ID": "run.name",
}


class Tracker(Protocol):
    """Take the numbers and files of a run."""

    run_id: str

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at a step. Returns at once."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file."""

    def close(self, status: str = "") -> None:
        """Send what is left; end the run when a status (FINISHED, FAILED) is given."""


class NoTracker:
    """Keep nothing: run.tracking=none needs no MLflow."""

    run_id = ""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keep nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep nothing."""

    def close(self, status: str = "") -> None:
        """Do nothing."""


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's own would sleep for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # MLflow's own is 120 s
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)  # not MLFLOW_REGISTRY_URI, which nobody here reads


class MlflowTracker:
    """Send numbers and files to an MLflow run that exists already (see `create_run`)."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.run_id = run_id
        self._client = _client(uri)
        self._queue: queue.Queue[tuple[str, float, int, int] | None] = queue.Queue()
        self._warned = False
        self._given_up = False  # nothing is offered any more
        self._last_call = float("inf")  # when a closing tracker gives up, on the monotonic clock
        self._thread = threading.Thread(target=self._drain, name="mlflow", daemon=True)
        self._thread.start()

    def _attempt(self, what: str, call: Any, *args: Any, **kwargs: Any) -> bool:
        """Offer something until it is taken, or the closing tracker's patience ends; return whether it was taken."""
        while not self._given_up:
            try:
                call(*args, **kwargs)
                return True
            except Exception as error:  # whatever a tracking server does, training goes on
                level = logging.DEBUG if self._warned else logging.WARNING
                log.log(level, "tracking: %s failed, training goes on: %s", what, error)
                self._warned = True
            if time.monotonic() > self._last_call:
                self._given_up = True
                break
            time.sleep(RETRY_SECONDS)
        return False

    def _drain(self) -> None:
        from mlflow.entities import Metric

        ended = False
        while not ended:
            waiting = [self._queue.get()]
            while len(waiting) < BATCH_LIMIT and not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            ended = None in waiting
            batch = [Metric(key, value, stamp, step) for key, value, stamp, step in filter(None, waiting)]
            if batch and not self._attempt("log_batch", self._client.log_batch, self.run_id, metrics=batch):
                log.warning("tracking: given up, %d numbers or more are not recorded", len(batch))
                return

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Queue numbers for the sending thread."""
        stamp = int(time.time() * 1000)
        for key, value in values.items():
            self._queue.put((key, float(value), stamp, step))

    def _be_patient(self) -> None:
        self._last_call = min(self._last_call, time.monotonic() + PATIENCE_SECONDS)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, in the caller's thread (the driver's, after training)."""
        self._be_patient()
        if not self._attempt("log_artifact", self._client.log_artifact, self.run_id, str(path), folder or None):
            log.warning("tracking: given up, %s is not recorded", path)

    def close(self, status: str = "") -> None:
        """Empty the queue, then end the run if a status is given; a server that is away is waited for (2 minutes)."""
        self._be_patient()
        self._queue.put(None)
        self._thread.join()
        if status and not self._attempt("set_terminated", self._client.set_terminated, self.run_id, status):
            log.warning("tracking: MLflow does not know that run %s is %s", self.run_id, status)


def tracking_uri(config: Config) -> str:
    """Return the configured address, or that of a sqlite file inside the storage folder."""
    return config.run.tracking_uri or f"sqlite:///{Path(config.run.storage).resolve() / 'mlflow.db'}"


def where_to_look(config: Config) -> str:
    """Return a server's own address, or the command that shows a file."""
    uri = tracking_uri(config)
    return uri if uri.startswith(("http://", "https://")) else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def _experiment(client: Any, config: Config) -> str:
    """Return the id of the experiment; make it where it is missing, its artifacts beside a sqlite file of our own."""
    found = client.get_experiment_by_name(config.run.experiment)
    if found and found.lifecycle_stage == "deleted":
        uri = shlex.quote(tracking_uri(config))
        raise ValueError(
            f"run.experiment: got {found.name!r}, which was deleted in MLflow; allowed: another name, or first "
            f"`MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {found.experiment_id}`"
        )
    if found:
        return found.experiment_id
    where = None if config.run.tracking_uri else str(Path(config.run.storage).resolve() / ARTIFACTS)
    return client.create_experiment(config.run.experiment, where, tags=EXPERIMENT_TAGS)


def _run_of(client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Return the run of this `KEY`, marked as running again, or a new one."""
    if KEY in tags:
        known = client.search_runs([experiment], f"tags.`{KEY}` = '{tags[KEY]}'", max_results=1)
        if known:
            client.update_run(known[0].info.run_id, status="RUNNING")
            return known[0].info.run_id
    return client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id


def create_run(config: Config, tags: Mapping[str, str], title: str = "") -> str:
    """Create the experiment and the run with its parameters, in the driver; return the run id ("" when not tracking).

    Args:
        config: of the run; its values become parameters.
        tags: of the run. With the tag `KEY` a run that has it already is taken instead of a new one, so that a driver
            that died before it could note the id makes no second run.
        title: the name that MLflow shows; "" = the run's.

    Raises ValueError when MLflow is asked for but not installed or its store cannot be reached: at the start of a run
    that is a mistake to mend, later it is only a warning.
    """
    if config.run.tracking == "none":
        return ""
    try:
        from mlflow.entities import Param
    except ImportError:
        raise ValueError("run.tracking=mlflow, but MLflow is not installed; allowed: --set run.tracking=none") from None
    uri = tracking_uri(config)
    for name in [name for name in NOT_USED if os.environ.get(name)]:
        log.warning("%s in the environment is not used: --set %s=... is", name, NOT_USED[name])
    Path(config.run.storage).resolve().mkdir(parents=True, exist_ok=True)
    try:
        client = _client(uri)
        run_id = _run_of(client, _experiment(client, config), title or config.run.name, tags)
        flat = {key: str(value)[:MAX_PARAM_LENGTH] for key, value in flatten(to_dict(config)).items()}
        client.log_batch(run_id, params=[Param(key, value) for key, value in flat.items()])
        client.log_dict(run_id, to_dict(config), "config.json")
    except ValueError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"MLflow at {uri} cannot be used: {reason}; allowed: run.tracking=none") from None
    return run_id


def describe_run(config: Config, run_id: str, tags: Mapping[str, str], status: str = "") -> None:
    """Set tags of a run, and end it when a status is given; costs a warning at most."""
    if not run_id:
        return
    try:
        client = _client(tracking_uri(config))
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        if status:
            client.set_terminated(run_id, status)
    except Exception as error:  # the server may be away: what was found out stays on disk
        log.warning("tracking: a run could not be described: %s", error)


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """Describe a version of a model in the registry."""

    name: str  # of the registered model
    alias: str  # that moves to this version
    tags: Mapping[str, str]
    note: str  # its description


def register_model(config: Config, run_id: str, model: Path, version: ModelVersion) -> str:
    """Make a trained model's folder a version of a registered model, which is made where it does not exist.

    The folder becomes the artifact `model` of the run. A run that has a version already keeps that one.

    Returns:
        The version's number, "" when not tracking or when the server refuses (a warning tells).
    """
    if not run_id:
        return ""
    try:
        client = _client(tracking_uri(config))
        if not client.search_registered_models(f"name='{version.name}'"):
            description = "Trained by taxafuse; see the runs that its versions name"
            client.create_registered_model(version.name, description=description)
        known = [found for found in client.search_model_versions(f"name='{version.name}'") if found.run_id == run_id]
        if not known:
            client.log_artifacts(run_id, str(model), "model")
            source = f"{client.get_run(run_id).info.artifact_uri}/model"
            tags, note = dict(version.tags), version.note
            known = [client.create_model_version(version.name, source, run_id, tags=tags, description=note)]
        number = str(known[0].version)
        client.set_registered_model_alias(version.name, version.alias, number)
        return number
    except Exception as error:  # a registry that is not there must not cost the result
        log.warning("tracking: the model is not registered: %s", error)
        return ""


def reopen_run(config: Config, run_id: str) -> bool:
    """Mark the run of a training that goes on as running again; a server that is away costs nothing.

    Returns False where the store answers that it has no such run: the folder was moved away from its MLflow file.
    """
    if config.run.tracking == "none":
        return False
    try:
        if not config.run.tracking_uri:
            _bring_along(Path(config.run.storage).resolve())
        _client(tracking_uri(config)).update_run(run_id, status="RUNNING")
    except Exception as error:  # the server may be away for a while: the tracker will warn
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
            log.warning("tracking: no run %s in %s: it goes on as a new one", run_id, tracking_uri(config))
            return False
        log.info("tracking: the run could not be marked as running: %s", error)
    return True


def _bring_along(storage: Path) -> None:
    """Let our own MLflow file, moved with its storage, name the artifacts beside it; no MLflow call can change them."""
    here, file = str(storage / ARTIFACTS), storage / "mlflow.db"
    if not file.is_file():
        return
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        for (old,) in database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
            if old and old != here and old.endswith(f"/{ARTIFACTS}") and "://" not in old:
                change = "UPDATE {0} SET {1} = ? || substr({1}, ?) WHERE substr({1}, 1, ?) = ?"
                for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                    database.execute(change.format(table, column), (here, len(old) + 1, len(old), old))


def open_tracker(config: Config, run_id: str) -> Tracker:
    """Return the tracker of an existing run; a `NoTracker` for "" as its id."""
    return MlflowTracker(tracking_uri(config), run_id) if run_id else NoTracker()
