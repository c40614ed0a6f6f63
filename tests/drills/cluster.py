"""A Ray cluster over several machines, with token authentication and its state in Redis; jobs and trainings on it."""

import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from serve import front
from tests.drills.machines import Machine, Network, until
from tests.drills.services import BIN, KEYS, REDIS_PASSWORD, Services
from tests.train.faults import LONG, keys_of_epochs, last_step, weights_hash
from tests.train.small import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, LOG_EVERY = 10, 2
FINAL = ("SUCCEEDED", "FAILED", "STOPPED")  # of a job
STORE_BYTES = 150_000_000  # the smallest that serves
SHAPE = {"data": (2, ""), "train-1": (1, "train"), "train-2": (1, "train")}  # node -> CPUs, resource
START_S, JOB_S = 180, 330


def authenticate(folder: Path) -> None:
    """Make the token of all clusters to come, and let this process use it. Before Ray is imported: it reads it once."""
    token = folder / "token"
    descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, secrets.token_hex(32).encode())
    os.close(descriptor)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.pop("RAY_ADDRESS", None)


class Cluster:
    """A head that computes nothing, and the nodes of a shape (as SHAPE)."""

    def __init__(
        self,
        network: Network,
        services: Services | None,
        logs: Path,
        shape: dict[str, tuple[int, str]],
        store_bytes: int = STORE_BYTES,
    ) -> None:
        """Without services the head keeps its state to itself."""
        self.services, self.logs, self.shape, self.store_bytes = services, logs, shape, store_bytes
        self.temporary = Path(tempfile.mkdtemp(prefix="tf"))  # short: sockets lie below it
        self.namespace = secrets.token_hex(4)  # of this cluster in Redis
        self.machines = {name: network.machine(name) for name in ("head", *shape)}
        self._network, self._starts = network, 0
        logs.mkdir(parents=True, exist_ok=True)
        self.environment = (
            os.environ
            | KEYS
            | front.CLUSTER
            | {
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
                "RAY_DISABLE_IMPORT_WARNING": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_external_storage_namespace": self.namespace,
                "RAY_JOB_STOP_WAIT_TIME_S": "60",  # Ray's 3 s are too short for a commit and a word to MLflow
                "GLOO_SOCKET_IFNAME": "eth0",  # a namespace shares the name of the host, which is another address
            }
        )

    @property
    def head(self) -> Machine:
        """The machine of the head."""
        return self.machines["head"]

    @property
    def dashboard(self) -> str:
        """URL of Ray's dashboard, where jobs are handed in."""
        return f"http://{self.head.address}:8265"

    def start(self) -> "Cluster":
        """All machines; returns when all nodes are there."""
        self.start_head()
        for name in self.shape:
            self.start_node(name)
        self.wait()
        return self

    def _ray(self, machine: Machine, *options: str, **environment: str) -> None:
        self._starts += 1
        command = [
            str(BIN / "ray"),
            "start",
            "--block",
            f"--node-ip-address={machine.address}",
            f"--object-store-memory={self.store_bytes}",
            f"--temp-dir={self.temporary}/{self._starts}",
            "--disable-usage-stats",
            "--metrics-export-port=8080",
            *options,
        ]
        machine.start(command, self.logs / f"{machine.name}.log", self.environment | environment)

    def start_head(self) -> None:
        """Start the head, or start it again: what Redis holds of this cluster comes back."""
        options, environment = ["--head", "--port=6379", "--dashboard-host=0.0.0.0", "--num-cpus=0"], {}
        if self.services:
            options.append(f"--redis-password={REDIS_PASSWORD}")
            environment = {"RAY_REDIS_ADDRESS": self.services.redis}
        self._ray(self.head, *options, **environment)
        until(self.alive, "the head", START_S)

    def start_node(self, name: str) -> None:
        """Start a node, or one in the place of a dead one."""
        cpus, resource = self.shape[name]
        more = [f'--resources={{"{resource}": 1}}'] if resource else []
        self._ray(self.machines[name], f"--address={self.head.address}:6379", f"--num-cpus={cpus}", *more)

    def alive(self) -> set[str]:
        """Addresses of the nodes that the head believes alive; empty where it does not answer."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        if not any(self.head.pids()):
            return set()
        try:
            nodes = GcsClient(address=f"{self.head.address}:6379").get_all_node_info(timeout=5).values()
        except Exception:  # whatever a starting or dying head does
            return set()
        return {node.node_manager_address for node in nodes if node.state == 0}

    def wait(self) -> None:
        """Until the head knows all machines that run."""
        wanted = {machine.address for machine in self.machines.values()}
        until(lambda: wanted <= self.alive(), f"{len(wanted)} nodes", START_S)

    def jobs(self) -> Any:
        """A client of the jobs API."""
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.dashboard)

    def submit(self, command: list[str], log: Path) -> str:
        """Start a job whose output goes to a file; returns its id."""
        log.parent.mkdir(parents=True, exist_ok=True)
        entry = f"exec {shlex.join(command)} >> {log} 2>&1"

        def submitted() -> str:
            try:
                return str(self.jobs().submit_job(entrypoint=entry))
            except Exception as error:  # a head answers before the agent that starts jobs is there
                if not re.search("agent|connect", str(error), re.I):
                    raise
                return ""

        return str(until(submitted, "a job to be taken", 60))

    def destroy(self) -> None:
        """End everything of this cluster."""
        for machine in self.machines.values():
            self._network.machines.remove(machine)
            machine.destroy()
        for folder in self.temporary.glob("*/session_2*/logs/serve"):
            shutil.copytree(folder, self.logs / "serve" / folder.parents[2].name, dirs_exist_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)


class ClusterTraining:
    """A training as a job on a cluster, two workers on the train nodes, recorded in MLflow where there is one."""

    def __init__(self, cluster: Cluster, shards: Path, storage: Path, name: str, *settings: str) -> None:
        self.cluster, self.storage, self.name = cluster, storage, name
        self.folder, self.logfile = storage / name, cluster.logs / f"job-{name}.log"
        self.settings = [
            *SETTINGS,
            *LONG,
            f"data.shards={shards}",
            f"run.storage={storage}",
            f"run.name={name}",
            f"run.epochs={EPOCHS}",
            "run.num_workers=2",
            "run.worker_resource=train",
            "run.max_failures=5",
            "run.experiment=drills",
            f"run.log_every={LOG_EVERY}",
            *self._tracking(),
            *settings,
        ]
        self.id = self._submit("--recipe", "quickstart")

    def _tracking(self) -> list[str]:
        services = self.cluster.services
        return ["run.tracking=mlflow", f"run.tracking_uri={services.mlflow_uri}"] if services else ["run.tracking=none"]

    def _submit(self, *how: str) -> str:
        settings = self.settings if how[0] == "--recipe" else [f"run.storage={self.storage}"]
        overrides = [part for setting in settings for part in ("--set", setting)]
        return self.cluster.submit(
            [sys.executable, "-m", "train.main", *how, "--no-evaluation", *overrides], self.logfile
        )

    def resume(self) -> None:
        """The same command with --resume, as a new job."""
        self.id = self._submit("--resume", self.name)

    @property
    def log(self) -> str:
        """What the job's command has written so far."""
        return self.logfile.read_text(errors="replace") if self.logfile.exists() else ""

    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; "" where the head does not answer."""
        try:
            return str(self.cluster.jobs().get_job_status(self.id).value)
        except Exception:  # a head that is away is what some drills are about
            return ""

    def wait_for(self, step: int, seconds: float = JOB_S) -> int:
        """Until rank 0 has done this step; returns the number of its last one."""

        def reached() -> bool:
            if last_step(self.folder) >= step:
                return True
            assert self.status() not in FINAL, self.log[-2000:]
            return False

        until(reached, f"step {step} of {self.name}", seconds)
        return last_step(self.folder)

    def end(self, seconds: float = JOB_S) -> str:
        """Wait for the end; returns the job's status."""
        return str(until(lambda: (status := self.status()) in FINAL and status, f"the end of {self.name}", seconds))

    def stop(self) -> None:
        """`ray job stop`: SIGTERM to the driver."""
        self.cluster.jobs().stop_job(self.id)

    def crash_node(self, name: str, after_s: float = 0.0) -> None:
        """Cut a machine's power; another takes its place, `after_s` seconds later."""
        self.cluster.machines[name].crash()
        time.sleep(after_s)
        self.cluster.start_node(name)

    def terminate_node(self, name: str, grace_s: float) -> None:
        """What Kubernetes does to a pod: SIGTERM to its first process, SIGKILL to all after a while."""
        machine = self.cluster.machines[name]
        assert machine.signal(signal.SIGTERM, only="ray start") == 1
        with contextlib.suppress(TimeoutError):
            until(lambda: not machine.pids(), "the node to end by itself", grace_s)
        machine.crash()
        self.cluster.start_node(name)

    def mlflow(self) -> Any:
        """The one MLflow run of this training. Raises AssertionError when there are none or several."""
        from mlflow import MlflowClient

        assert self.cluster.services, "nothing is recorded without services"
        client = MlflowClient(self.cluster.services.mlflow_uri)
        experiment = client.get_experiment_by_name("drills").experiment_id
        found = client.search_runs([experiment], f"attributes.run_name = '{self.name}'")
        assert len(found) == 1, f"{len(found)} MLflow runs of the name {self.name}"
        return found[0]

    def differences(self, whole: Path) -> list[str]:
        """What is not as in the run that nobody disturbed: specimens of the committed history, weights."""
        from safetensors.torch import load_file

        found = []
        if keys_of_epochs(self.folder, self._epoch(whole)) != keys_of_epochs(whole, self._epoch(whole)):
            found.append("other specimens")
        if weights_hash(self.folder) != weights_hash(whole):
            a, b = (load_file(folder / "model" / "model.safetensors") for folder in (self.folder, whole))
            found.append(f"weights differ by {max(float((a[name] - b[name]).abs().max()) for name in a):.1e}")
        return found

    @staticmethod
    def _epoch(whole: Path) -> int:
        return steps_of(whole) // EPOCHS

    def steps(self) -> int:
        """Steps of the finished run."""
        return steps_of(self.folder)


def steps_of(folder: Path) -> int:
    """Steps of the run in a folder, from its model."""
    return int(json.loads((folder / "model" / "meta.json").read_text())["step"])
