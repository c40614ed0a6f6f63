"""Keep on disk what a sweep has done: one small file a trial, from which an interrupted sweep goes on.

RUNS/SWEEP/sweep.json             what was asked for, and the MLflow run
RUNS/SWEEP/trial-003/trial.json   one training of the search: values, state, score at each validation
RUNS/SWEEP/final-003-seed-2/...   one of the trainings that decide
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SWEEP, TRIAL = "sweep.json", "trial.json"
DEFAULT = 0  # the number of the recipe's own values

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass
class Entry:
    """Hold one training: of the search, or one of the finals."""

    number: int  # of the values; 0 = the recipe's own
    values: dict[str, Any]
    seed: int
    final: bool = False
    state: State = "waiting"
    history: list[tuple[int, float]] = field(default_factory=list)  # (epoch, score on val)
    test: float | None = None  # score on the test split, of finals
    reason: str = ""  # of a failure
    run_id: str = ""
    seconds: float = 0.0
    start_s: float = 0.0  # of the seconds: until the first step

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"final-{self.number:03d}-seed-{self.seed}" if self.final else f"trial-{self.number:03d}"

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ("finished", "stopped", "failed")

    @property
    def score(self) -> float | None:
        """Score on val at the latest epoch; None before the first validation."""
        return self.history[-1][1] if self.history else None

    @property
    def epoch(self) -> int:
        """Latest validated epoch."""
        return self.history[-1][0] if self.history else 0

    def saw(self, epoch: int, score: float) -> None:
        """Note a validation; one that was repeated after a restart counts once."""
        self.history = [(e, s) for e, s in self.history if e < epoch] + [(epoch, score)]


class Ledger:
    """Hold the entries of one sweep, in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        """Read what is there."""
        from train.models.checkpoint import read_json  # imports torch

        self.folder = folder
        self.entries: dict[str, Entry] = {}
        for file in sorted(folder.glob(f"*/{TRIAL}")):
            tree = read_json(file)
            tree["history"] = [(int(epoch), float(score)) for epoch, score in tree["history"]]
            entry = Entry(**tree)
            self.entries[entry.name] = entry

    def put(self, entry: Entry) -> None:
        """Write an entry as it is now."""
        self.entries[entry.name] = entry
        write_json(self.folder / entry.name / TRIAL, dataclasses.asdict(entry))

    def search(self) -> list[Entry]:
        """Return the entries of the search, by number."""
        return sorted((entry for entry in self.entries.values() if not entry.final), key=lambda e: e.number)

    def finals(self) -> list[Entry]:
        """Return the finals, by number and seed."""
        return sorted((entry for entry in self.entries.values() if entry.final), key=lambda e: (e.number, e.seed))


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(tree, indent=1))
    part.replace(path)
