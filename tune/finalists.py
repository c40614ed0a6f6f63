"""Choose the winner: the best two and the recipe's own values, trained again with fresh seeds, scored on test.

The search picks on val, with one seed each; its best score is the luckiest of many. What is reported comes from the
finals alone: means over seeds, their intervals, and the difference from the recipe's own values with the same seeds.
Intervals are Student's t over seeds: they tell what another training would give on these test specimens, and with
three seeds they are wide (4.3 standard errors). Another draw of specimens is not in them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from train.pages.tables import markdown
from tune.ledger import DEFAULT, Entry
from tune.spaces import assignments, short

BEST = 2  # of the search, beside the recipe's own values
CONFIDENCE = 0.95
FLAT = 3.5  # standard deviations: what the best and the worst of 16 repetitions of one training lie apart


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% interval; nan without a second seed."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Student's t over one value a seed."""
        middle = mean(values)
        if len(values) < 2:
            return cls(middle, math.nan, math.nan)
        quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        half = quantile * stdev(values) / math.sqrt(len(values))
        return cls(middle, middle - half, middle + half)

    def text(self, sign: str = "") -> str:
        """In points: "61.2 (58.0 to 64.4)"."""
        first = f"{100 * self.value:{sign}.1f}"
        return first if math.isnan(self.low) else f"{first} ({100 * self.low:{sign}.1f} to {100 * self.high:{sign}.1f})"


@dataclass(frozen=True)
class Standing:
    """One setting in the finals."""

    number: int
    values: Mapping[str, Any]
    scores: Mapping[int, float]  # seed -> score on test
    failed: int  # trainings without a score
    score: Estimate | None
    difference: Estimate | None  # from the recipe's own values, over the seeds that both have

    @property
    def label(self) -> str:
        """For tables."""
        return label_of(self.number)


def label_of(number: int) -> str:
    """Return a setting's name in tables."""
    return f"trial {number:03d}{' (default)' if number == DEFAULT else ''}"


def choose(search: Sequence[Entry]) -> list[Entry]:
    """Return the finalists: the recipe's own values first, then the best two others.

    Trials that ran to the end come before stopped ones. Stopped ones fill up: a final is a training of its own.
    """
    scored = [e for e in search if e.state in ("finished", "stopped") and e.score is not None]
    others = [entry for entry in scored if entry.number != DEFAULT]
    others.sort(key=lambda e: (-e.epoch, -(e.score or 0.0), e.number))
    return [entry for entry in scored if entry.number == DEFAULT] + others[:BEST]


def standings(finals: Sequence[Entry]) -> list[Standing]:
    """Return the finalists, the winner first: fewest failures, then the highest mean."""
    groups: dict[int, list[Entry]] = {}
    for entry in finals:
        groups.setdefault(entry.number, []).append(entry)
    scores = {n: {e.seed: e.test for e in group if e.test is not None} for n, group in groups.items()}
    own = scores.get(DEFAULT, {})
    found = []
    for number, group in groups.items():
        pairs = [score - own[seed] for seed, score in scores[number].items() if seed in own]
        found.append(
            Standing(
                number,
                group[0].values,
                scores[number],
                len(group) - len(scores[number]),
                Estimate.of(list(scores[number].values())) if scores[number] else None,
                Estimate.of(pairs) if pairs and number != DEFAULT else None,
            )
        )
    return sorted(found, key=lambda one: (one.failed, -one.score.value if one.score else math.inf, one.number))


def seed_noise(finals: Sequence[Entry]) -> float:
    """Return the pooled standard deviation of the val score between seeds; nan when nothing was repeated."""
    groups: dict[int, list[float]] = {}
    for entry in finals:
        if entry.state == "finished" and entry.score is not None:
            groups.setdefault(entry.number, []).append(entry.score)
    repeated = [group for group in groups.values() if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    return math.sqrt(sum(stdev(g) ** 2 * (len(g) - 1) for g in repeated) / freedom) if freedom else math.nan


def final_table(found: Sequence[Standing]) -> str:
    """Return the finals as Markdown: one row a setting, the winner first; points of the score on test."""
    header = ["setting", "values", "test score (95%)", "seeds", "minus default (95%)"]
    rows = []
    for one in found:
        seeds = ", ".join(f"{100 * score:.1f}" for _, score in sorted(one.scores.items()))
        seeds += f", {one.failed} failed" if one.failed else ""
        difference = one.difference.text("+") if one.difference else "–"
        rows.append([one.label, short(one.values), one.score.text() if one.score else "–", seeds, difference])
    return markdown(header, rows)


def search_table(search: Sequence[Entry]) -> str:
    """Return the search as Markdown: finished trials by score, then stopped ones by their epoch."""
    order = {"finished": 0, "stopped": 1, "failed": 2}
    ranked = sorted(search, key=lambda e: (order.get(e.state, 3), -e.epoch, -(e.score or 0.0), e.number))
    rows = []
    for entry in ranked:
        score = "–" if entry.score is None else f"{100 * entry.score:.1f}"
        outcome = entry.reason[:60] if entry.state == "failed" else entry.state
        rows.append(
            [label_of(entry.number), short(entry.values), outcome, str(entry.epoch), score, f"{entry.seconds:.0f}"]
        )
    return markdown(["setting", "values", "outcome", "epochs", "val score", "seconds"], rows)


def verdict(search: Sequence[Entry], finals: Sequence[Entry]) -> str:
    """Return what to do now, and how sure that is, in a few sentences."""
    found = standings(finals)
    winner = found[0]
    settings = " ".join(f"--set {pair}" for pair in assignments(winner.values))
    lines = [f"Recommended: `{settings}`"]
    if winner.number == DEFAULT:
        lines.append("These are the recipe's own values: nothing that was tried did better in the finals.")
    elif winner.difference is None:
        lines.append("Difference from the default: not known, its own trainings gave no score.")
    else:
        gap = winner.difference
        lines.append(
            f"Difference from the default: {gap.text('+')} points on test (95% over {len(winner.scores)} seeds, "
            "on these specimens)."
        )
        if not (gap.low > 0 or gap.high < 0):
            lines.append("The interval holds 0: more seeds are needed to call this a difference.")
    whole = [entry.score for entry in search if entry.state == "finished" and entry.score is not None]
    noise = seed_noise(finals)
    if len(whole) > 2 and not math.isnan(noise):
        width = max(whole) - min(whole)
        flat = "the surface is flat where trials ran to the end" if width < FLAT * noise else "more than seeds explain"
        lines.append(
            f"The {len(whole)} trials that ran to the end lie {100 * width:.1f} points apart on val; another seed "
            f"alone moves a score by {100 * noise:.1f} (standard deviation): {flat}."
        )
    return "\n\n".join(lines)
