"""A sweep in MLflow: every run once, every number there, the winner registered."""

import dataclasses
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from tests.train.small import small_config
from tests.tune.writers import BATCHES, write
from train.config import Config
from train.run.tracking import tracking_uri
from tune import records, sweep
from tune.ledger import Entry
from tune.spaces import defaults, find

pytestmark = pytest.mark.middle

WRITERS = 4


def config_at(folder: Path, name: str = "a-sweep", **run: Any) -> Config:
    config = Config(recipe="sweep")
    return dataclasses.replace(config, run=dataclasses.replace(config.run, storage=str(folder), name=name, **run))


def client_of(config: Config) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri(config))


def all_runs(config: Config) -> list[Any]:
    client = client_of(config)
    experiment = client.get_experiment_by_name(config.run.experiment)
    return list(client.search_runs([experiment.experiment_id], max_results=100))


def entry_of(number: int, **changes: Any) -> Entry:
    values = defaults(find("pair", Config()), Config())
    return Entry(number, values, 0, **changes)


def test_parent_children_and_a_restart_that_doubles_nothing(tmp_path: Path) -> None:
    base = config_at(tmp_path)
    parent = records.open_sweep(base, {"trials": 2, "space": "pair"})
    entries = [
        entry_of(0, state="finished", history=[(3, 0.4), (9, 0.6)], seconds=12.0),
        entry_of(1, state="failed", reason="loss is nan"),
        entry_of(0, final=True, state="finished", history=[(9, 0.6)], test=0.55),
    ]
    for _ in range(2):  # the second time as after a driver that died before it noted the ids
        assert records.open_sweep(base, {"trials": 2, "space": "pair"}) == parent
        for entry in entries:
            config = config_at(tmp_path, entry.name)
            entry.run_id = records.open_trial(config, "a-sweep", parent, entry)
            records.close_trial(config, entry)
    records.close_sweep(base, parent, tmp_path, "# what came of it", entries[:2])
    runs = {run.info.run_name: run for run in all_runs(base)}
    assert len(all_runs(base)) == 4
    assert set(runs) == {"sweep a-sweep", "trial 000 (default)", "trial 001", "final 000 (default), seed 0"}
    whole, failed, final = (runs[name] for name in ("trial 000 (default)", "trial 001", "final 000 (default), seed 0"))
    assert {run.data.tags["mlflow.parentRunId"] for run in (whole, failed, final)} == {parent}
    assert (whole.info.status, whole.data.tags["outcome"]) == ("FINISHED", "ran to the end")
    assert (failed.info.status, failed.data.tags["reason"]) == ("FAILED", "loss is nan")
    assert (final.data.metrics["final/test_score"], final.data.metrics["final/val_score"]) == (0.55, 0.6)
    assert whole.data.metrics["search/score"] == 0.6
    assert "search/score" not in failed.data.metrics | final.data.metrics
    note = failed.data.tags["mlflow.note.content"]
    assert note == "hierarchy_weight 0.01, temperature 0.07: failed loss is nan"
    assert whole.data.params["loss.hierarchy_weight"] == "0.01"
    history = client_of(base).get_metric_history(whole.info.run_id, "sweep/val_score")
    assert {(m.step, m.value) for m in history} == {(3, 0.4), (9, 0.6)}
    told = runs["sweep a-sweep"]
    assert (told.info.status, told.data.tags["mlflow.note.content"]) == ("FINISHED", "# what came of it")
    assert told.data.metrics["sweep/failed"] == 1.0


def test_the_winner_is_registered_once(tmp_path: Path) -> None:
    base = config_at(tmp_path)
    records.open_sweep(base, {})
    entry = entry_of(0, final=True, state="finished", history=[(9, 0.6)], test=0.55)
    entry.run_id = records.open_trial(config_at(tmp_path, entry.name), "a-sweep", "parent", entry)
    model = tmp_path / entry.name / "model"
    model.mkdir(parents=True)
    (model / "meta.json").write_text(json.dumps({"format_version": 1}))
    versions = [records.register_winner(base, entry, model, "--set loss.temperature=0.07") for _ in range(2)]
    assert versions == ["1", "1"]
    client = client_of(base)
    found = client.get_model_version_by_alias("taxafuse-sweep", "champion")
    assert (found.version, found.run_id) in {("1", entry.run_id), (1, entry.run_id)}
    assert found.tags["settings"] == "--set loss.temperature=0.07"
    source = Path(found.source.removeprefix("file://"))
    assert json.loads((source / "meta.json").read_text()) == {"format_version": 1}


@pytest.mark.slow
def test_four_writers_of_a_thousand_batches_lose_nothing(tmp_path: Path) -> None:
    config = config_at(tmp_path)
    parent = records.open_sweep(config, {})
    ids = [records.open_trial(config, "a-sweep", parent, entry_of(number)) for number in range(WRITERS)]
    processes = [
        multiprocessing.get_context("spawn").Process(target=write, args=(config, run_id, number))
        for number, run_id in enumerate(ids)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * WRITERS
    client = client_of(config)
    for number, run_id in enumerate(ids):
        for key, factor in (("loss/total", 1.0), (f"writer/{number}", 0.5)):
            history = client.get_metric_history(run_id, key)
            assert sorted((m.step, m.value) for m in history) == [(s, s * factor) for s in range(BATCHES)]


def test_sqlite_on_several_nodes_is_refused(
    simulated_shards: Path, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(simulated_shards, f"run.storage={tmp_path}", "run.name=s", "run.tracking=mlflow")
    node = {"CPU": 2.0, "object_store_memory": 1e9}
    monkeypatch.setattr(sweep, "living_nodes", lambda: [node, node])
    with pytest.raises(ValueError, match=r"trials on 2 nodes cannot share sqlite:.*: start `mlflow server"):
        sweep.Sweep(sweep.Settings(), config).start()
    assert not (tmp_path / "mlflow.db").exists()
    server = small_config(simulated_shards, f"run.storage={tmp_path}", "run.name=s")  # no tracking at all
    sweep.Sweep(sweep.Settings(), server).start()
