"""Tracking: complete when it works, harmless when it does not."""

import builtins
import dataclasses
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from train.config import Config, RunConfig
from train.run import tracking
from train.run.tracking import (
    MlflowTracker,
    NoTracker,
    create_run,
    open_tracker,
    reopen_run,
    tracking_uri,
    where_to_look,
)

pytestmark = pytest.mark.middle


def config_at(folder: Path, **run: Any) -> Config:
    return Config(run=RunConfig(storage=str(folder), name="a-run", **run))


def test_everything_arrives(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = config_at(tmp_path)
    run_id = create_run(config, {"recipe": "custom"})
    tracker = open_tracker(config, run_id)
    for step in range(1200):
        tracker.metrics({"loss/total": step / 2}, step)
    (tmp_path / "note.txt").write_text("hello")
    tracker.artifact(tmp_path / "note.txt")
    tracker.close("FINISHED")
    client = MlflowClient(tracking_uri(config))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a-run"
    assert run.data.params["loss.hierarchy_weight"] == "0.01"
    assert run.data.tags["recipe"] == "custom"
    history = client.get_metric_history(run_id, "loss/total")
    assert sorted((m.step, m.value) for m in history) == [(step, step / 2) for step in range(1200)]
    assert {item.path for item in client.list_artifacts(run_id)} == {"config.json", "note.txt"}


def test_where_to_look_is_a_servers_address_or_a_command(tmp_path: Path) -> None:
    assert where_to_look(config_at(tmp_path, tracking_uri="http://mlflow:5000")) == "http://mlflow:5000"
    assert where_to_look(config_at(tmp_path)) == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"


def test_none_needs_no_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_mlflow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "mlflow":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_mlflow)
    config = config_at(tmp_path, tracking="none")
    assert create_run(config, {}) == ""
    assert isinstance(open_tracker(config, ""), NoTracker)
    with pytest.raises(ValueError, match=r"MLflow is not installed; allowed: --set run.tracking=none"):
        create_run(dataclasses.replace(config, run=dataclasses.replace(config.run, tracking="mlflow")), {})


def test_unreachable_server_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database")
    with pytest.raises(ValueError, match=r"cannot be used: .*; allowed: run\.tracking=none"):
        create_run(config_at(tmp_path, tracking_uri=f"sqlite:///{tmp_path}/file"), {})


def test_a_failure_later_costs_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.0)
    config = config_at(tmp_path)
    tracker = MlflowTracker(tracking_uri(config), create_run(config, {}))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DROP TABLE latest_metrics")
        database.execute("DROP TABLE metrics")
    tracker.metrics({"loss/total": 1.0}, 1)
    tracker.close()
    assert "training goes on" in caplog.text and "1 numbers or more are not recorded" in caplog.text


class Server:
    """`mlflow server` on a sqlite file, to be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = [f"--backend-store-uri=sqlite:///{self._folder}/server.db", f"--artifacts-destination={self._folder}/a"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", f"--port={self.port}", "--workers=1", *store],
            cwd=self._folder,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5)
                return
            except OSError:
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.2)

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)


def recorded_through_an_outage(folder: Path, away: float) -> None:
    """A server is killed during training and comes back `away` seconds after its end, or later: every number is there
    once, in one run."""
    from mlflow import MlflowClient

    server = Server(folder)
    try:
        server.start()
        config = config_at(folder, tracking_uri=server.uri)
        run_id = create_run(config, {})
        tracker = open_tracker(config, run_id)
        for step in range(90):
            if step == 30:
                server.kill()
            tracker.metrics({"loss/total": float(step), "perf/step_s": step / 2}, step)
            time.sleep(0.01)
        comes_back = threading.Timer(away, server.start)
        comes_back.start()
        tracker.close("FINISHED")
        comes_back.join()
        client = MlflowClient(server.uri)
        (run,) = client.search_runs([client.get_experiment_by_name("taxafuse").experiment_id])
        assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
        for name, factor in (("loss/total", 1.0), ("perf/step_s", 0.5)):
            found = sorted((m.step, m.value) for m in client.get_metric_history(run_id, name))
            assert found == [(step, step * factor) for step in range(90)]
        reopen_run(config, run_id)
        assert client.get_run(run_id).info.status == "RUNNING"
    finally:
        server.kill()


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.2)
    recorded_through_an_outage(tmp_path, away=1.0)
    assert caplog.text.count("training goes on") == 1
