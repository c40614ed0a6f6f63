"""The outcome of an evaluation, and what a terminal shows of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from train.evaluation.top1_accuracy import Comparison
from train.pages import tables


@dataclass(frozen=True)
class Evaluation:
    """The outcome on one split."""

    split: str
    metrics: dict[str, float]
    predictions: pa.Table
    unknown: dict[str, dict[str, int]]  # rank -> names that the model does not know -> specimens
    provisional: dict[str, int] = field(default_factory=dict)  # species labels that name no described species
    comparison: dict[str, Comparison] = field(default_factory=dict)
    files: tuple[str, ...] = ()  # written by `run_evaluation`

    def headline(self, scoring: str) -> str:
        """Return what a terminal shows: both tables, the baselines, fusion against the better single modality."""
        values, split = self.metrics, self.split
        peers = tables.peer_table(values, split)
        parts = [
            tables.paper_text(values, split, tables.View(scoring=scoring)),
            f"n: specimens that have what the query needs. {tables.populations(values, split)}",
            peers.text() if peers else "No baseline was measured.",
            tables.comparison_table(self.comparison).text() if self.comparison else NOT_COMPARED,
            *self.left_out(),
        ]
        return "\n\n".join(parts)

    def left_out(self) -> list[str]:
        """Sentences about the labels that were not scored."""
        return [*unknown_text(self.unknown), *provisional_text(self.provisional)]


NOT_COMPARED = "Fusion is not compared: that takes specimens with image and barcode in val and in another split."


def unknown_text(unknown: dict[str, dict[str, int]], shown: int = 5) -> list[str]:
    """One sentence a rank about the labels that the model does not know."""
    return [
        f"Not scored at {rank}: {sum(names.values()):,} specimens of {len(names):,} taxa that the model was never "
        f"shown, so that no answer could be right: {_examples(list(names.items()), shown)}"
        for rank, names in unknown.items()
    ]


def provisional_text(provisional: dict[str, int], shown: int = 5) -> list[str]:
    """One sentence about species labels that are no names of described species."""
    if not provisional:
        return []
    return [
        f"Not scored at species: {sum(provisional.values()):,} specimens whose {len(provisional):,} labels name no "
        f"described species (sp., cf., codes): {_examples(list(provisional.items()), shown)}"
    ]


def _examples(items: Sequence[tuple[str, int]], shown: int) -> str:
    named = ", ".join(f"{name} ({count})" for name, count in items[:shown])
    return named + (", ..." if len(items) > shown else "")
