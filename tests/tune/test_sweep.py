"""A sweep from its settings to its outcome, on a local Ray: single-process trials of tiny towers."""

import csv
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.train.small import small_config
from train.config import Config
from train.models import checkpoint
from tune import spaces
from tune.ledger import SWEEP, Entry, Ledger
from tune.settings import Settings
from tune.spaces import Choice
from tune.sweep import Sweep, resumed

TINY = ("run.epochs=2", "run.validate_every=1", "run.tracking=mlflow", "eval.bootstrap=20")


@pytest.fixture
def shaky(monkeypatch: pytest.MonkeyPatch) -> str:
    """A space in which every other training explodes."""
    monkeypatch.setitem(spaces.SPACES, "shaky", lambda: {"optim.max_lr": Choice(values=(1e-3, 1e30, 2e-3, 1e31))})
    return "shaky"


def config_at(shards: Path, storage: Path, *settings: str) -> Config:
    return small_config(shards, *TINY, f"run.storage={storage}", "run.name=s", "optim.clip_norm=0", *settings)


def runs_of(config: Config) -> list[Any]:
    from mlflow import MlflowClient

    from train.run.tracking import tracking_uri

    client = MlflowClient(tracking_uri(config))
    (experiment,) = [e for e in client.search_experiments() if e.name == config.run.experiment]
    return list(client.search_runs([experiment.experiment_id], max_results=100))


@pytest.mark.slow
def test_a_sweep_with_trials_that_explode_and_its_resume(
    simulated_shards: Path, ray_session: None, tmp_path: Path, shaky: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_at(simulated_shards, tmp_path)
    settings = Settings(space=shaky, algorithm="random", trials=4, seeds=1, early_stopping=False)
    sweep = Sweep(settings, config)
    sweep.start()
    with caplog.at_level(logging.INFO, "tune"):
        outcome = sweep.run()
    search, finals = sweep.ledger.search(), sweep.ledger.finals()
    exploded = [entry for entry in search if entry.values["optim.max_lr"] > 1]
    assert exploded, "the seed must sample one that explodes"
    assert {entry.state for entry in exploded} == {"failed"}
    assert all("loss is nan" in entry.reason or "not finite" in entry.reason for entry in exploded)
    whole = [entry for entry in search if entry.state == "finished"]
    assert len(whole) + len(exploded) == 4 and 0 in {entry.number for entry in whole}
    assert all([epoch for epoch, _ in entry.history] == [1, 2] for entry in whole)
    assert {entry.number for entry in finals} <= {entry.number for entry in whole}
    assert all(entry.test is not None and entry.seed == 1 for entry in finals)
    assert checkpoint.load(outcome.model).config.run.seed == 1
    assert outcome.settings.startswith("--set optim.max_lr=") and outcome.version == "1"
    rows = list(csv.DictReader((tmp_path / "s" / "trials.csv").open()))
    assert [row["name"] for row in rows] == [entry.name for entry in [*search, *finals]]
    assert (tmp_path / "s" / "parallel_coordinates.png").stat().st_size > 10_000
    assert not list((tmp_path / "s").glob("trial-*/checkpoints"))
    runs = runs_of(config)
    assert len(runs) == 1 + len(search) + len(finals)
    assert {run.info.status for run in runs} == {"FINISHED", "FAILED"}
    assert sum(run.info.status == "FAILED" for run in runs) == len(exploded)
    caplog.clear()
    _goes_on(tmp_path / "s", len(search), len(finals), caplog)


def _goes_on(folder: Path, searched: int, finals: int, caplog: pytest.LogCaptureFixture) -> None:
    """One more trial is asked for: nothing that is done is done again, and no run is doubled."""
    settings, config = resumed(folder, (), searched + 1)
    before = {file: file.read_bytes() for file in folder.glob("*/trial.json")}
    sweep = Sweep(settings, config)
    sweep.start()
    with caplog.at_level(logging.INFO, "tune"):
        sweep.run()
    started = {line.split()[1] for line in caplog.messages if line.startswith("[")}
    new = {file.parent.name for file in folder.glob("*/trial.json")} - {file.parent.name for file in before}
    assert started == new and f"trial-{searched:03d}" in new
    assert all(file.read_bytes() == old for file, old in before.items())
    assert len(runs_of(config)) == 1 + searched + 1 + len(sweep.ledger.finals())
    assert len(sweep.ledger.finals()) >= finals


@pytest.mark.slow
def test_a_metric_that_no_trial_reports(simulated_shards: Path, ray_session: None, tmp_path: Path) -> None:
    config = config_at(simulated_shards, tmp_path, "run.tracking=none")
    sweep = Sweep(Settings(metric="val/smell/*/top1", trials=2), config)
    sweep.start()
    with pytest.raises(
        ValueError, match=r"no trial reports a metric like 'val/smell/\*/top1'; val gave: val/dna/clean"
    ):
        sweep.run()


def test_a_budget_smaller_than_one_trial(simulated_shards: Path, ray_session: None, tmp_path: Path) -> None:
    """Known after the first validation, not at the end of the budget."""
    config = config_at(simulated_shards, tmp_path, "run.tracking=none", "run.epochs=40")
    sweep = Sweep(Settings(trials=3), config, budget_s=100.0)
    sweep.start()
    (entry, _) = sweep.next_trial() or (None, None)
    assert entry
    result = {"epoch": 4, "score": 0.5, "took_s": 15.0, "start_s": 3.0, "measured": "{}"}
    sweep.saw(entry, result)
    assert sweep.refusal == (
        "--budget of 100 s is smaller than one trial, which takes about 123 s (4 of 40 epochs took 15 s)"
    )
    assert sweep.next_trial() is None
    patient = Sweep(Settings(trials=3), config, budget_s=124.0)
    patient.start()
    patient.saw(patient.ledger.search()[0], result | {"epoch": 8, "took_s": 12.0, "start_s": 0.0})
    assert not patient.refusal


def test_all_trials_fail(
    simulated_shards: Path, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_at(simulated_shards, tmp_path, "run.tracking=none")
    sweep = Sweep(Settings(trials=2), config)
    sweep.start()
    for number in range(2):
        sweep.ledger.put(Entry(number, {"loss.temperature": 0.07}, 0, state="failed", reason="loss is nan at step 3"))
    monkeypatch.setattr(sweep, "stage", lambda final: None)
    with pytest.raises(ValueError, match="no trial of 2 gave a score: loss is nan at step 3"):
        sweep.run()


def test_the_budget_leaves_time_for_the_finals(simulated_shards: Path, tmp_path: Path, ray_session: None) -> None:
    config = config_at(simulated_shards, tmp_path, "run.tracking=none")
    sweep = Sweep(Settings(trials=9, seeds=3), config, budget_s=1000.0)
    sweep.start()
    entry, _ = sweep.next_trial() or (None, None)
    assert entry
    entry.saw(2, 0.5)
    entry.seconds, entry.start_s = 110.0, 10.0
    assert sweep.full_trial_s() == 110.0
    assert sweep._in_time()  # 110 s, and 9 finals two at a time: 5 x 110 s
    entry.seconds = 200.0  # with 6 x 200 s it would take 1,200 s
    assert not sweep._in_time()
    assert sweep.next_trial() is None


def test_what_a_sweep_keeps(simulated_shards: Path, tmp_path: Path, ray_session: None) -> None:
    config = config_at(simulated_shards, tmp_path, "run.tracking=none")
    settings = Settings(trials=7, algorithm="random")
    Sweep(settings, config).start()
    tree = json.loads((tmp_path / "s" / SWEEP).read_text())
    assert tree["settings"] == dataclasses.asdict(settings)
    again, same = resumed(tmp_path / "s", (), 9)
    assert (again, same) == (dataclasses.replace(settings, trials=9), config)
    kept = ("run.storage=elsewhere", f"data.image_size={config.data.image_size}")  # what it has anyway changes nothing
    assert resumed(tmp_path / "s", kept, None) == (settings, config)
    with pytest.raises(ValueError, match=r"--set data.image_size: allowed: another sweep"):
        resumed(tmp_path / "s", ("data.image_size=96",), None)
    assert Ledger(tmp_path / "s").entries == {}


def test_an_interrupted_sweep_ends_what_it_began(
    simulated_shards: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(Settings(trials=2, algorithm="random"), config_at(simulated_shards, tmp_path, "run.tracking=none"))
    sweep.start()
    sweep.parent = "whole"
    sweep.ledger.put(Entry(0, {}, 0, state="finished", run_id="ended"))
    sweep.ledger.put(Entry(1, {}, 0, state="running", run_id="begun"))
    marked: list[tuple[str, str]] = []

    def interrupted(final: bool) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(sweep, "stage", interrupted)
    monkeypatch.setattr("tune.sweep.describe_run", lambda _, run_id, tags, status: marked.append((run_id, status)))
    with pytest.raises(SystemExit):
        sweep.run()
    assert marked == [("begun", "KILLED"), ("whole", "KILLED")]
