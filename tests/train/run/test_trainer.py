"""Ray Train for real, each job in a process of its own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from train.run.trainer import lacking

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


def started(shards: Path, storage: Path | str, *settings: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """tests/train/jobs.py, run in `folder` to its end."""
    return subprocess.run(
        [sys.executable, ROOT / "tests/train/jobs.py", shards, storage, *settings],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},  # Ray's workers start in another folder
    )


def job(shards: Path, storage: Path | str, *settings: str, folder: Path = ROOT) -> dict:
    """The JSON line of a job that went well, with the log of the driver beside it."""
    done = started(shards, storage, *settings, folder=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"log": done.stderr}


@pytest.fixture(scope="module")
def one_worker(simulated_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """Tracked, and with a relative storage folder, which workers must not look for in their own directory."""
    folder = tmp_path_factory.mktemp("one")
    settings = ["run.tracking=mlflow", "run.log_every=2", "model.dropout=0.1"]
    return job(simulated_shards, ".", *settings, folder=folder), folder


def test_what_training_waits_for() -> None:
    """After a node is lost the user is told what the others lack."""
    each = {"CPU": 1.0, "train": 1.0}
    assert lacking(each, 2, {"CPU": 4.0, "train": 2.0}) == ""
    assert lacking(each, 2, {"CPU": 4.0, "train": 1.0}) == "2 train, there are 1"
    assert lacking(each, 2, {}) == "2 CPU, there are 0; 2 train, there are 0"


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_share_one_trajectory(
    workers: int, one_worker: tuple[dict, Path], simulated_shards: Path, tmp_path: Path
) -> None:
    """Same losses at equal global batch for 1, 2 and 4 workers on 2 CPUs; every specimen validated once."""
    alone, _ = one_worker
    together = job(simulated_shards, tmp_path, f"run.num_workers={workers}", "model.dropout=0.1")
    assert "first batch after" in together["log"]
    assert together["steps"] == alone["steps"] == 4 * 7
    for a, b in zip(alone["history"], together["history"], strict=True):
        for name in (key for key in a if key.startswith("loss/")):
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), (a["epoch"], name)
        rows = {name: value for name, value in a.items() if name.startswith("val/") and name.endswith("/rows")}
        assert rows.items() <= b.items()


def test_a_loss_that_is_not_finite_ends_the_run(simulated_shards: Path, tmp_path: Path) -> None:
    """On both workers, at once, with the step and the keys; trying again would end the same."""
    done = started(simulated_shards, tmp_path, "run.num_workers=2", "optim.max_lr=1e30", "optim.clip_norm=0")
    assert done.returncode == 1
    assert re.search(r"NotFinite: loss is (nan|inf) at step \d+ \(rank \d\).*; keys \w+", done.stderr)
    assert "going on from the last checkpoint" not in done.stderr


def test_a_finished_run_is_recorded(one_worker: tuple[dict, Path]) -> None:
    done, folder = one_worker
    assert [record["epoch"] for record in done["history"]] == [1.0, 2.0, 3.0, 4.0]
    assert "val/dna/clean/species/top1" in done["history"][-1]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("taxafuse").experiment_id])
    assert len(client.get_metric_history(run.info.run_id, "perf/samples_per_s")) >= 14
    timed = ["data/wait_s", "perf/step_s", "perf/checkpoint_s", "perf/commit_s", "perf/mfu"]
    assert all(run.data.metrics[name] > 0 for name in timed)
    model = folder / "job" / "model"
    assert {path.name for path in model.iterdir()} == {"model.safetensors", "config.json", "taxonomy.json", "meta.json"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_ray_job_submit(simulated_shards: Path, tmp_path: Path) -> None:
    """`ray job submit --working-dir . -- python train/main.py`, on a cluster of its own."""
    gcs, dashboard = free_port(), free_port()
    here = Path(sys.executable).parent  # the job's `python` is the one that the head finds
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PATH": f"{here}:{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)  # it would go before --address
    ray = str(here / "ray")
    short = tempfile.mkdtemp(prefix="taxafuse")  # the sockets below it may not pass 107 characters
    head = subprocess.Popen(
        [
            ray,
            "start",
            "--head",
            "--block",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            "--num-cpus=2",
            "--dashboard-host=127.0.0.1",
            "--object-store-memory=300000000",
            "--include-dashboard=true",
            f"--temp-dir={short}",
            f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}",
        ],  # the default, 52365, is the shared session's
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version")
        from tests.train.small import SETTINGS

        settings = [*SETTINGS, f"data.shards={simulated_shards}", f"run.storage={tmp_path}", "run.name=submitted"]
        overrides = [part for setting in [*settings, "run.epochs=2"] for part in ("--set", setting)]
        command = [ray, "job", "submit", f"--address=http://127.0.0.1:{dashboard}", "--working-dir", ".", "--"]
        command += ["python", "train/main.py", *overrides]
        for _ in range(10):  # the head answers before the agent that starts jobs is there
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
            )
            if "No available agent" not in done.stdout + done.stderr:
                break
            time.sleep(2)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert "Table 2" in done.stdout
        assert (tmp_path / "submitted" / "evaluation" / "metrics.json").is_file()
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=60)
        shutil.rmtree(short, ignore_errors=True)


def wait_for(url: str, seconds: float = 90) -> None:
    """Until the address answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            assert time.monotonic() < end, f"{url} did not answer within {seconds} s"
            time.sleep(0.5)


def test_training_inside_the_driver(simulated_shards: Path, tmp_path: Path) -> None:
    """run.num_workers=0, with a transformer on non-overlapping k-mers."""
    options = [
        "run.num_workers=0",
        "model.dna=kmer_transformer",
        "data.kmer_stride=4",
        "data.random_offset=true",
        "run.validate_every=1",
    ]
    done = job(simulated_shards, tmp_path, "run.epochs=1", *options)
    assert done["steps"] == 7 and "val/dna/clean/species/top1" in done["history"][-1]
    assert (tmp_path / "job" / "model" / "model.safetensors").is_file()
