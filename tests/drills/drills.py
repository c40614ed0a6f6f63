"""The drills: something dies, something must hold. Each returns what was seen; a statement that does not hold raises.

"As undisturbed" means: over the committed history every epoch used the specimens of the run that nobody disturbed, and
the final weights are equal to it, bit for bit.
"""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.drills.cluster import FINAL, JOB_S, LOG_EVERY, ROOT, SHAPE, Cluster, ClusterTraining
from tests.drills.machines import Network, until
from tests.drills.service import Deployed
from tests.drills.services import BIN, Services
from tests.train.small import SETTINGS

STRIKE = 22  # of 140, step at which something dies: two commits are behind it
TOLERANCE = "as undisturbed"


@dataclass
class Bench:
    """What the drills share: the services, one cluster at a time, the shards, the run that nobody disturbed."""

    network: Network
    services: Services
    folder: Path
    shards: Path
    running: Cluster | None = None

    def cluster(self) -> Cluster:
        """The cluster, made anew where it is not whole."""
        if self.running and {m.address for m in self.running.machines.values()} > self.running.alive():
            self.clear()
        if not self.running:
            self.running = Cluster(self.network, self.services, self.folder / "logs", SHAPE)
            self.running.start()
        return self.running

    def clear(self) -> None:
        """End the cluster."""
        if self.running:
            self.running.destroy()
            self.running = None

    def train(self, name: str, *settings: str, storage: Path | None = None) -> ClusterTraining:
        """Start a training as a job."""
        storage = storage or self.folder / "runs"
        shutil.rmtree(storage / name, ignore_errors=True)  # of a drill that was broken off
        return ClusterTraining(self.cluster(), self.shards, storage, name, *settings)

    @property
    def whole(self) -> Path:
        """The folder of the run that nobody disturbed."""
        return self.folder / "runs" / "undisturbed"


def closing(run: ClusterTraining, bench: Bench) -> str:
    """Wait for the end of a run and compare; returns what to say of it. Raises AssertionError."""
    status = run.end()
    assert status == "SUCCEEDED", f"the job is {status}: {run.log[-1500:]}"
    found = run.differences(bench.whole)
    assert not found, "; ".join(found)
    recorded = run.mlflow()
    assert recorded.info.status == "FINISHED", f"MLflow says {recorded.info.status}"
    last = int(recorded.data.metrics["epoch"])
    again = [int(step) for step in re.findall(r"resumed at step (\d+)", run.log)]
    itself = len(re.findall("going on from the last checkpoint", run.log))
    how = f"went on from step {', '.join(map(str, again))}" if again else "never stopped"
    return f"{how}, {itself} restarts by itself; {TOLERANCE}; one MLflow run, FINISHED, epoch {last}"


def undisturbed(bench: Bench) -> str:
    """The run that the others are compared with."""
    run = bench.train("undisturbed")
    assert run.end() == "SUCCEEDED", run.log[-3000:]
    return f"job SUCCEEDED; MLflow: {run.mlflow().info.status}"


def sweep(bench: Bench) -> str:
    """`ray job submit --working-dir .` of a sweep, as the README has it."""
    cluster, name = bench.cluster(), "sweep"
    shutil.rmtree(bench.folder / "runs" / name, ignore_errors=True)
    settings = [
        *SETTINGS,
        f"data.shards={bench.shards}",
        f"run.storage={bench.folder / 'runs'}",
        "run.epochs=2",
        "run.validate_every=1",
        "run.tracking=mlflow",
        f"run.tracking_uri={bench.services.mlflow_uri}",
        "run.experiment=sweeps",
    ]
    command = [
        str(BIN / "ray"),
        "job",
        "submit",
        f"--address={cluster.dashboard}",
        "--working-dir",
        str(ROOT),
        "--",
        "python",
        "tune/main.py",
        "--recipe",
        "quickstart",
        "--trials=2",
        "--seeds=1",
        f"--name={name}",
        *(part for setting in settings for part in ("--set", setting)),
    ]
    with (cluster.logs / "job-sweep.log").open("wb") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=cluster.environment, check=False)
    assert done.returncode == 0, (cluster.logs / "job-sweep.log").read_text()[-2000:]
    from mlflow import MlflowClient

    client = MlflowClient(bench.services.mlflow_uri)
    runs = client.search_runs([client.get_experiment_by_name("sweeps").experiment_id])
    states = {run.info.status for run in runs}
    assert states == {"FINISHED"}, f"runs in MLflow: {states}"
    return f"job SUCCEEDED; {len(runs)} runs in MLflow, all FINISHED"


def train_node(bench: Bench) -> str:
    """A machine with a train worker dies; another comes."""
    run = bench.train("train-node")
    step = run.wait_for(STRIKE)
    run.crash_node("train-2", after_s=5)
    told = closing(run, bench)
    assert "never stopped" not in told, told
    return f"at step {step}: {told}"


def data_node(bench: Bench) -> str:
    """The machine that prepares data dies; another comes."""
    run = bench.train("data-node")
    step = run.wait_for(STRIKE // 2)
    run.crash_node("data", after_s=5)
    return f"at step {step}: {closing(run, bench)}"


def network_cut(bench: Bench) -> str:
    """A train node is cut off for 30 s."""
    run = bench.train("network-cut")
    step = run.wait_for(STRIKE)
    machine = run.cluster.machines["train-2"]
    machine.connect(False)
    time.sleep(30)
    machine.connect(True)

    def given_up() -> bool:
        alive = run.cluster.alive()
        return bool(alive) and machine.address not in alive

    until(lambda: given_up() or run.status() in FINAL, "the end, or the head to give the node up", JOB_S)
    if (
        given_up()
    ):  # up to half a minute after it is back: then its raylet ends, and what watches a node starts it again
        machine.crash()
        run.cluster.start_node("train-2")
    return f"at step {step}: {closing(run, bench)}"


def mlflow_server(bench: Bench) -> str:
    """MLflow's server is away for 15 s."""
    run = bench.train("mlflow-server")
    step = run.wait_for(STRIKE)
    bench.services.kill_mlflow()
    time.sleep(15)
    bench.services.start_mlflow(wait=False)
    told = closing(run, bench)
    from mlflow import MlflowClient

    client = MlflowClient(bench.services.mlflow_uri)
    there = [one.step for one in client.get_metric_history(run.mlflow().info.run_id, "optim/lr")]
    assert there == list(range(LOG_EVERY, run.steps() + 1, LOG_EVERY)), f"steps recorded: {there}"
    return f"at step {step}, away 15 s: {told}; all {len(there)} records of it"


def preemption(bench: Bench) -> str:
    """A train node gets SIGTERM, and SIGKILL 10 s later, as a preempted machine does."""
    run = bench.train("preemption")
    step = run.wait_for(STRIKE)
    run.terminate_node("train-2", grace_s=10)
    told = closing(run, bench)
    assert "never stopped" not in told, told
    return f"SIGTERM at step {step}: {told}"


def job_stop(bench: Bench) -> str:
    """A user stops the job, then resumes it."""
    run = bench.train("job-stop")
    step = run.wait_for(STRIKE)
    run.stop()
    status, recorded = run.end(), run.mlflow().info.status
    assert status == "STOPPED" and recorded == "KILLED", f"the job is {status}, MLflow says {recorded}"
    committed = max(int(path.name[5:]) for path in (run.folder / "checkpoints").glob("step-*"))
    assert committed > step, f"stopped after step {step}, committed {committed}"
    run.resume()
    return f"stopped at step {step}, committed {committed}, MLflow KILLED; --resume {closing(run, bench)}"


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


def disk_full(bench: Bench) -> str:
    """The disk of the run fills up; after room is made the run is resumed."""
    bench.clear()  # the machines must see the new file system
    with small_disk(bench.folder / "small", 128) as disk:  # four checkpoints of 21 MB
        run = bench.train("disk-full", "run.max_failures=0", storage=disk)
        step = run.wait_for(STRIKE)
        filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
        try:
            while os.write(filler, bytes(2**16)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
        finally:
            os.close(filler)
        status, recorded = run.end(), run.mlflow().info.status
        assert status == recorded == "FAILED", f"the job is {status}, MLflow says {recorded}"
        named = re.findall(r"[^\n]*No space left on device[^\n]*", run.log)[-1].strip()[:120]
        (disk / "filler").unlink()
        run.resume()
        told = closing(run, bench)
        bench.clear()
    return f"full at step {step}: {named}; after room was made --resume {told}"


def head(bench: Bench) -> str:
    """The head dies and comes back with the state it had in Redis; the run is resumed."""
    run = bench.train("head")
    step = run.wait_for(STRIKE)
    run.cluster.head.crash()
    time.sleep(3)
    run.cluster.start_head()
    run.cluster.wait()
    nodes = len(run.cluster.alive())
    run.resume()
    return f"at step {step}; {nodes} nodes are back under the new head; --resume {closing(run, bench)}"


class Asking:
    """A client that asks a service four times a second, until the block ends."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask, self._over = ask, threading.Event()
        self.answers: list[tuple[float, bool]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.is_set():
            self.answers.append((time.monotonic(), self._ask()))
            self._over.wait(0.25)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def good_since(self, moment: float, count: int = 8) -> bool:
        """Whether the last `count` answers, all after a moment, were right."""
        last = self.answers[-count:]
        return len(last) == count and last[0][0] > moment and all(right for _, right in last)

    def outage(self, moment: float) -> float:
        """Seconds from a moment to the last wrong answer after it; 0 where there was none."""
        wrong = [when for when, right in self.answers if not right and when > moment]
        return wrong[-1] - moment if wrong else 0.0


SERVICE_S = 60.0  # within which a service must answer again


def _struck(bench: Bench, strike: Callable[[Deployed], Any]) -> str:
    """Ask a service while something dies; returns how long it was away."""
    with Deployed.on(bench.cluster(), bench.whole) as service, Asking(service.ask) as client:
        until(lambda: client.good_since(0.0), "the service", 120)
        moment = time.monotonic()
        said = strike(service)
        until(lambda: client.good_since(moment + 2), "the service to answer again", SERVICE_S + 60)
        time.sleep(5)
        away, wrong = client.outage(moment), sum(not right for when, right in client.answers if when > moment)
        assert away <= SERVICE_S, f"away for {away:.0f} s"
    return f"{said}; {wrong} questions unanswered, answers again after {away:.1f} s (at most {SERVICE_S:.0f})"


def replica_node(bench: Bench) -> str:
    """A machine with a replica of a service dies."""

    def strike(service: Deployed) -> str:
        name = service.node_of_a_replica()
        service.cluster.machines[name].crash()
        return f"{name} died"

    told = _struck(bench, strike)
    bench.clear()
    return told


def head_of_service(bench: Bench) -> str:
    """The head dies under a service and comes back."""

    def strike(service: Deployed) -> str:
        service.cluster.head.crash()
        time.sleep(3)
        service.cluster.start_head()
        service.cluster.wait()
        return "head died, started again after 3 s"

    told = _struck(bench, strike)
    bench.clear()
    return told


@dataclass(frozen=True)
class Drill:
    """One drill: what dies, what must hold, how long it may take."""

    what: str
    expected: str
    run: Callable[[Bench], str]
    limit_s: float = 480.0


ITSELF = f"goes on by itself from the last commit; {TOLERANCE}; one MLflow run, FINISHED"
DRILLS = {
    "undisturbed": Drill("nothing", "the run that the others are compared with", undisturbed),
    "sweep": Drill("nothing, during a sweep of two trials", "the job succeeds, no run is left open", sweep),
    "train-node": Drill("a train node, kill -9; another after 5 s", ITSELF, train_node),
    "data-node": Drill("the data node, kill -9; another after 5 s", ITSELF, data_node),
    "network": Drill("a train node's network for 30 s", f"waits or goes on by itself; {TOLERANCE}", network_cut),
    "mlflow": Drill(
        "the MLflow server, kill -9, for 15 s", f"training goes on; {TOLERANCE}; no number lost", mlflow_server
    ),
    "preemption": Drill("SIGTERM to a train node, SIGKILL 10 s later", ITSELF, preemption),
    "job-stop": Drill(
        "SIGTERM to the driver (ray job stop)",
        f"a commit of the step at hand, MLflow KILLED, then --resume: {TOLERANCE}",
        job_stop,
    ),
    "disk": Drill(
        "the disk of run.storage fills up", f"FAILED, MLflow FAILED; with room again --resume: {TOLERANCE}", disk_full
    ),
    "head": Drill(
        "the head, kill -9, with Redis",
        f"the driver dies with its machine; nodes come back to the new head; --resume: {TOLERANCE}",
        head,
    ),
    "replica-node": Drill("a node with a replica, kill -9", f"answers again within {SERVICE_S:.0f} s", replica_node),
    "service-head": Drill(
        "the head under a service, kill -9, with Redis", f"answers again within {SERVICE_S:.0f} s", head_of_service
    ),
}
