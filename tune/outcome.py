"""End a sweep: write the report and the pictures, register the model."""

from dataclasses import dataclass
from pathlib import Path

from train.config import Config
from tune import finalists, plots, records
from tune.ledger import Entry, Ledger
from tune.spaces import Space, assignments


@dataclass(frozen=True)
class Outcome:
    """Hold what a sweep ends with."""

    report: str
    settings: str  # `--set key=value ...`
    model: Path  # of the winner, the seed that was best on val
    version: str  # of the registered model, "" when it is not registered


def best_seed(finals: list[Entry], number: int) -> Entry:
    """Return the training of a setting that was best on val; the test split must not choose."""
    own = [entry for entry in finals if entry.number == number and entry.test is not None]
    return max(own, key=lambda entry: (entry.score or 0.0, -entry.seed))


def report_of(ledger: Ledger, config: Config, heading: str) -> str:
    """Return the whole report as Markdown; `heading` describes the search."""
    search, finals = ledger.search(), ledger.finals()
    return (
        f"# Sweep {config.run.name}\n\n"
        f"{finalists.verdict(search, finals)}\n\n"
        f"Finals, points of the score on {config.eval.split}\n\n"
        f"{finalists.final_table(finalists.standings(finals))}\n\n"
        f"{heading}\n\n{finalists.search_table(search)}"
    )


def conclude(ledger: Ledger, config: Config, space: Space, heading: str, parent: str) -> Outcome:
    """Find the winner, write and record everything about the sweep.

    Args:
        ledger: all trainings of the sweep.
        config: of the sweep.
        space: what was varied.
        heading: describes the search.
        parent: its MLflow run, "" when not tracking.

    Raises ValueError when no final gave a score.
    """
    search, finals = ledger.search(), ledger.finals()
    winner = finalists.standings(finals)[0]
    if winner.score is None:
        raise ValueError(f"no final gave a score: {'; '.join(sorted({e.reason for e in finals}))}")
    best = best_seed(finals, winner.number)
    settings = " ".join(f"--set {pair}" for pair in assignments(winner.values))
    report = report_of(ledger, config, heading)
    pictures = {
        "parallel_coordinates.png": plots.parallel_coordinates(space, search),
        "surface.png": plots.surface(space, search, winner.number),
    }
    records.write_files(ledger.folder, search, finals, pictures, report)
    model = ledger.folder / best.name / "model"
    version = records.register_winner(config, best, model, settings)
    records.close_sweep(config, parent, ledger.folder, report, search)
    return Outcome(report, settings, model, version)
