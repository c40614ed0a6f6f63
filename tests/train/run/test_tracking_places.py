"""Where a run is recorded: the store that is configured, whatever the environment names; one that moved; a mute one."""

import shlex
import shutil
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from tests.train.run.test_tracking import config_at
from train.run import tracking
from train.run.tracking import ModelVersion, create_run, open_tracker, register_model, reopen_run, where_to_look

pytestmark = pytest.mark.middle  # processes, or seconds


def test_a_registry_of_the_environment_is_not_taken_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/else.db")
    config = config_at(tmp_path / "runs")
    run_id = create_run(config, {})
    assert "MLFLOW_REGISTRY_URI in the environment is not used: --set run.tracking_uri=... is" in caplog.text
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "meta.json").write_text("{}")
    version = ModelVersion(name="tf", alias="champion", tags={}, note="")
    assert register_model(config, run_id, tmp_path / "model", version) == "1"
    own = MlflowClient(tracking.tracking_uri(config), tracking.tracking_uri(config))
    assert own.get_model_version_by_alias("tf", "champion").run_id == run_id
    assert not (tmp_path / "else.db").exists()


def test_a_deleted_experiment_is_said_with_the_command_that_restores_it(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    config = config_at(tmp_path)
    create_run(config, {})
    client = MlflowClient(tracking.tracking_uri(config))
    number = client.get_experiment_by_name("taxafuse").experiment_id
    client.delete_experiment(number)
    with pytest.raises(ValueError, match=f"got 'taxafuse', which was deleted .*restore --experiment-id {number}"):
        create_run(config, {})


def test_a_file_that_moved_with_its_storage_names_the_artifacts_there(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run_id = create_run(config_at(tmp_path / "old"), {})
    (tmp_path / "old").rename(tmp_path / "what is new#1")
    config = config_at(tmp_path / "what is new#1")
    assert reopen_run(config, run_id)
    client = MlflowClient(tracking.tracking_uri(config))  # another process asks the store; this one has remembered it
    assert client.get_run(run_id).info.artifact_uri.startswith(f"{tmp_path}/what is new#1/{tracking.ARTIFACTS}/")
    assert client.get_experiment_by_name("taxafuse").artifact_location == f"{tmp_path}/what is new#1/mlflow-artifacts"
    command = shlex.split(where_to_look(config))
    assert command[-1] == f"sqlite:///{tmp_path}/what is new#1/mlflow.db"  # it can be pasted


def test_a_folder_moved_away_from_its_file_goes_on_as_a_new_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = create_run(config_at(tmp_path / "old"), {})
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as database:
        database.execute("UPDATE runs SET run_uuid = 'another'")
    assert not reopen_run(config_at(tmp_path / "new"), run_id)
    assert "it goes on as a new one" in caplog.text


def test_a_mute_server_is_given_up_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and never answers: one line at the start; while a run ends, patience is spent once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        config = config_at(tmp_path, tracking_uri=f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ValueError, match="cannot be used: "):
            create_run(config, {})
        tracker = open_tracker(config, "a-run")
        (tmp_path / "note.txt").write_text("hello")
        for _ in range(5):
            tracker.artifact(tmp_path / "note.txt")
        tracker.metrics({"loss/total": 1.0}, 1)
        tracker.close("FINISHED")
        assert time.monotonic() - started < 40
