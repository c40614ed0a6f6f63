"""A sweep in MLflow: one run for the sweep, below it one for each trial, all of them made by the driver.

Trials only add metrics to a run that is there. A run is found again by what it stands for, so neither a killed trial
nor a killed driver makes a second one.
"""

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from train.config import Config
from train.models.checkpoint import code_version
from train.run.tracking import KEY, ModelVersion, create_run, describe_run, open_tracker, register_model
from tune.ledger import DEFAULT, Entry
from tune.spaces import short

log = logging.getLogger(__name__)

OUTCOMES = {"finished": "ran to the end", "stopped": "stopped early", "failed": "failed"}
ALIAS = "champion"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # what MLflow's page shows as the description


def open_sweep(config: Config, asked: Mapping[str, Any]) -> str:
    """Create or find the run of the sweep, whose parameters are the recipe's own; `asked` becomes tags."""
    tags = {f"sweep.{key}": str(value) for key, value in asked.items()}
    tags |= {KEY: config.run.name, "kind": "sweep", "recipe": config.recipe, "code_version": code_version()}
    return create_run(config, tags, f"sweep {config.run.name}")


def title_of(entry: Entry) -> str:
    """Return the name that MLflow lists; the column shows some 25 letters, so what differs comes first."""
    name = f"{'final' if entry.final else 'trial'} {entry.number:03d}"
    name += " (default)" if entry.number == DEFAULT else ""
    return name + (f", seed {entry.seed}" if entry.final else "")


def open_trial(config: Config, sweep: str, parent: str, entry: Entry) -> str:
    """Create or find the run of a trial; "" when the sweep has none, or (with a warning) the server is away."""
    if not parent:
        return ""
    kind = "final" if entry.final else "trial"
    tags = {
        KEY: f"{sweep}/{entry.name}",
        PARENT: parent,
        "kind": kind,
        "trial": f"{entry.number:03d}",
        "sweep": sweep,
        "recipe": config.recipe,
        "code_version": code_version(),
        "outcome": "under way",
    }
    try:
        return create_run(config, tags, title_of(entry))
    except ValueError as error:
        log.warning("%s is not tracked: %s", entry.name, error)
        return ""


def close_trial(config: Config, entry: Entry) -> None:
    """Note what became of a trial: score at each validation, outcome, status.

    `search/score` is there only for trials that ran to the end, so sorting by it ranks what can be compared.
    """
    if not entry.run_id:
        return
    tracker = open_tracker(config, entry.run_id)
    for epoch, score in entry.history:
        tracker.metrics({"sweep/val_score": score}, epoch)
    last = {"sweep/epochs": float(entry.epoch), "sweep/seconds": entry.seconds}
    if entry.state == "finished" and entry.score is not None:
        last |= {"final/val_score" if entry.final else "search/score": entry.score}
    last |= {"final/test_score": entry.test} if entry.test is not None else {}
    tracker.metrics(last, entry.epoch)
    tracker.close()
    tags = {"outcome": OUTCOMES[entry.state]} | ({"reason": entry.reason} if entry.reason else {})
    tags[NOTE] = f"{short(entry.values)}: {tags['outcome']} {entry.reason}".strip()
    describe_run(config, entry.run_id, tags, "FAILED" if entry.state == "failed" else "FINISHED")


def close_sweep(config: Config, run_id: str, folder: Path, note: str, search: Sequence[Entry]) -> None:
    """Note the outcome of the sweep: the text as its description, the files, and how the best score grew."""
    if not run_id:
        return
    tracker = open_tracker(config, run_id)
    best = 0.0
    for entry in search:
        if entry.state == "finished" and entry.score is not None:
            best = max(best, entry.score)
            tracker.metrics({"sweep/best_val_score": best}, entry.number)
    counts = {f"sweep/{state}": float(sum(e.state == state for e in search)) for state in OUTCOMES}
    tracker.metrics(counts, len(search))
    for file in sorted(folder.iterdir()):
        if file.suffix in (".png", ".md", ".csv", ".json"):
            tracker.artifact(file)
    tracker.close()
    describe_run(config, run_id, {NOTE: note}, "FINISHED")


def register_winner(config: Config, entry: Entry, model: Path, settings: str) -> str:
    """Make the model of a final a version of the registered model of its recipe; "" when not tracking.

    Args:
        config: of the sweep.
        entry: the final that won.
        settings: `--set key=value ...`.
        model: the folder of the trained model.
    """
    sweep = config.run.name
    tags = {"sweep": sweep, "settings": settings, "seed": str(entry.seed)}
    name, note = f"taxafuse-{config.recipe}", f"winner of {sweep}: {settings}"
    return register_model(config, entry.run_id, model, ModelVersion(name=name, alias=ALIAS, tags=tags, note=note))


def write_files(
    folder: Path, search: Sequence[Entry], finals: Sequence[Entry], pictures: Mapping[str, Figure | None], report: str
) -> None:
    """Write trials.csv, report.md and the pictures."""
    (folder / "report.md").write_text(report + "\n")
    keys = list(search[0].values) if search else []
    with (folder / "trials.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", *keys, "seed", "state", "epochs", "val_score", "test_score", "seconds", "reason"])
        for entry in [*search, *finals]:
            values = [entry.values[key] for key in keys]
            row = [entry.seed, entry.state, entry.epoch, entry.score, entry.test, round(entry.seconds, 1), entry.reason]
            table.writerow([entry.name, *values, *row])
    for name, figure in pictures.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=130)
