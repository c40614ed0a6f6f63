"""Nothing of ours calls out unless a user asked: tracking, registering, and what libraries report to their makers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import engine

ROOT = Path(__file__).resolve().parents[2]
REGISTERS = """
import json, sys
calls = []
def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[0] if event.startswith("socket.get") else arguments[1]
        host = address[0] if isinstance(address, tuple) else address
        if isinstance(host, bytes):
            host = host.decode()
        if host not in ("127.0.0.1", "::1", "localhost", None) and not str(host).startswith("/"):
            calls.append(f"{event} {address!r}")
sys.addaudithook(hook)
import engine
from pathlib import Path
import mlflow
from mlflow import MlflowClient
place = f"sqlite:///{sys.argv[1]}/mlflow.db"
mlflow.set_tracking_uri(place)
client = MlflowClient(place, place)
experiment = client.create_experiment("names", artifact_location=sys.argv[1])
run = client.create_run(experiment)
client.log_metric(run.info.run_id, "loss", 1.0)
client.create_registered_model("taxafuse")
client.create_model_version("taxafuse", sys.argv[1], run.info.run_id)
client.set_terminated(run.info.run_id)
import time
time.sleep(2)  # what is told to others goes in threads
print(json.dumps(calls))
"""


@pytest.mark.slow  # starts a process that imports MLflow
def test_registering_a_model_calls_nobody(tmp_path: Path) -> None:
    silent = {name: value for name, value in os.environ.items() if name not in (*engine.SILENT, "PYTEST_CURRENT_TEST")}
    done = subprocess.run(
        [sys.executable, "-c", REGISTERS, str(tmp_path)], cwd=ROOT, env=silent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_switches_are_set_and_can_be_turned() -> None:
    assert all(name in os.environ for name in engine.SILENT)
    assert engine.SILENT["RAY_USAGE_STATS_ENABLED"] == "0"
