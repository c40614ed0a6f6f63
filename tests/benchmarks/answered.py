"""How many specimens are named, and how many of these rightly? Our answers beside thresholds on the classical tools.

    python -m tests.benchmarks.answered SHARDS --checkpoint RUN

SHARDS and RUN: of `withheld_shards` and a model trained on them, with `train.evaluate --calibration`, so that the
species of `test_unseen` are new to model, library and tools alike. Questions: the fixed mixture of `calibrate` (60%
clean, 20% damaged, 20% of unknown species, for which naming a species is wrong), the same cleaned barcodes for all;
references: the train split. Ours answers with its probability, a tool with its own score: % identity or bit score of
the top hit, bootstrap support. Table, per rank: our coverage at the probability THRESHOLD and how many are right there;
for each other the coverage at the lowest score whose answers are right as often as ours, chosen on these very answers
(which favours it). Then the AUROC of each as a score of novelty.
"""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from engine.batches.pipeline import label_columns, load_index
from engine.specimens.names import is_species
from engine.specimens.taxonomy import RANKS
from tests.benchmarks.classical_tools import run_tools
from train.evaluation import calibrate
from train.evaluation.known_questions import SPECIES, Asked, Cases, Part
from train.evaluation.model_under_test import Setting
from train.evaluation.subsets import read_barcodes
from train.inference.calibration import FILE, WITH_LIBRARY, Calibration
from train.models import checkpoint
from train.pages import calibration_report
from train.pages.calibration_report import THRESHOLD

OURS = f"dna{WITH_LIBRARY}"
TOOLS = ("vsearch_1_32", "vsearch_8_64", "sintax", "megablast", "blastn")


def coverage_at(score: np.ndarray, right: np.ndarray, accuracy: float) -> float:
    """The largest share of answers, the surest first, of which at least `accuracy` are right; equal scores together."""
    order = np.argsort(-score, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.append(np.diff(score[order]) != 0, True)  # a threshold takes all answers of a score
    good = np.flatnonzero(last & (share >= accuracy) & (score[order] > 0))
    return float((good[-1] + 1) / len(order)) if len(good) else 0.0


@dataclass
class Answered:
    """The same questions answered by several: name -> [N, R], and the score of novelty [N]."""

    cases: Cases
    score: dict[str, np.ndarray] = field(default_factory=dict)
    right: dict[str, np.ndarray] = field(default_factory=dict)
    novelty: dict[str, np.ndarray] = field(default_factory=dict)

    def table(self) -> str:
        """As in the description above; columns of tools and of the model alone are coverages."""
        lines = [f"| rank | {' | '.join(self.score)} |", f"|---{'|---:' * len(self.score)}|"]
        for rank, name in enumerate(RANKS):
            rows = self.cases.scored[:, rank]
            there = self.score[OURS][rows, rank] >= THRESHOLD
            reached = float(self.right[OURS][rows, rank][there].mean())
            cells = {
                one: f"{coverage_at(score[rows, rank], self.right[one][rows, rank], reached):.1%}"
                for one, score in self.score.items()
            }
            cells[OURS] = f"{there.mean():.1%} ({reached:.2%} right)"
            lines.append(f"| {name} | {' | '.join(cells.values())} |")
        named = self.cases.scored[:, SPECIES]
        areas = [roc_auc_score(self.cases.withheld[named], told[named]) for told in self.novelty.values()]
        return "\n".join([*lines, f"| AUROC of novelty | {' | '.join(f'{area:.3f}' for area in areas)} |"])


def ask_tools(found: Answered, setting: Setting, pieces: list[Asked], options: argparse.Namespace) -> None:
    """Let the classical tools answer the questions of `pieces`."""
    barcodes = [text for piece in pieces for text in piece.part.given(piece.rows, piece.damage)]
    truth = np.concatenate([piece.part.labels[piece.rows] for piece in pieces])
    columns, references = label_columns(setting.train), read_barcodes(setting.train)
    binomial = zip(columns["species"], is_species(columns["species"]), strict=True)
    labels = setting.taxonomy.encode(columns | {"species": [name if good else None for name, good in binomial]})
    known = [row for row, text in enumerate(references) if text]
    runs = run_tools(
        barcodes, [references[row] for row in known], labels[known], options.tools, options.threads, timed=False
    )
    for tool, run in runs.items():
        print(run.command)
        found.score[tool], found.right[tool] = run.score, (run.labels == truth) & (truth >= 0)
        found.right[tool][found.cases.withheld, SPECIES] = False
        found.novelty[tool] = -run.score[:, SPECIES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    loaded = checkpoint.load(options.checkpoint)
    setting = Setting(loaded.model, loaded.config, loaded.taxonomy, load_index([options.shards]), "test")
    combiner = calibration_report.library_of(setting)
    part, unseen = Part(setting, "test", combiner), Part(setting, "test_unseen", combiner)
    rules = Calibration.load(loaded.path / FILE).queries
    found = None
    for name in ("dna", OURS):
        cases = calibrate.mixture(part, name, unseen, rules[name].pool)
        found = found or Answered(cases)
        found.score[name], found.right[name] = rules[name].probabilities(cases.answers.evidence), cases.right
        found.novelty[name] = rules[name].novelty(cases.answers.evidence)
    assert found is not None
    ask_tools(found, setting, calibrate.mixture_pieces(part, "dna", unseen), options)
    print(f"{len(found.cases.weight)} questions, {found.cases.withheld.sum()} of them of unknown species\n")
    print(found.table())


if __name__ == "__main__":
    main()
