"""Tracking: complete when it works, harmless when it does not."""

import builtins
import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from train.config import Config, RunConfig
from train.tracking import MlflowTracker, NoTracker, create_run, open_tracker, tracking_uri


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


def test_a_failure_later_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_at(tmp_path)
    tracker = MlflowTracker(tracking_uri(config), create_run(config, {}))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DROP TABLE latest_metrics")
        database.execute("DROP TABLE metrics")
    tracker.metrics({"loss/total": 1.0}, 1)
    tracker.close()
    assert "training goes on" in caplog.text
