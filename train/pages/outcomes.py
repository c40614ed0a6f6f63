"""Answers judged as taxonomists' classifiers are: an unknown species is an answer, too, and can be the right one.

The outcome of a specimen is the answered species or an unknown taxon, whichever is more probable. The bias-accuracy
curve (PROTAX) sets the sum of the outcomes' probabilities against the number of right ones, the surest first: a line
along the diagonal is calibrated, its end is the accuracy.

Legend: N specimens, R ranks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from engine import html, markdown
from engine.specimens.taxonomy import RANKS
from train.evaluation.known_questions import SPECIES, Cases
from train.inference.calibration import Calibrator, back_off
from train.pages import plots

POINTS = 10  # of the curve
ABOUT = (
    "With an unknown species as an answer, too: the species or the unknown, whichever is more probable. Bias: mean "
    "probability of these outcomes less the share right, where the bias-accuracy curve ends (points: sum of "
    "probabilities : share right, the surest first, a tenth more each). Of answers at {threshold:.0%}: misclassified, "
    "over-classified (named below the last true taxon that is known), under-classified (right, but coarser than that)."
)
HEADER = ("asked with", "right", "bias", "misclassified", "over-classified", "under-classified", "curve")


@dataclass(frozen=True)
class Outcomes:
    """What N specimens are most probably."""

    probability: np.ndarray  # float64 [N]
    right: np.ndarray  # bool [N]

    @classmethod
    def of(cls, told: np.ndarray, unknown: np.ndarray, cases: Cases) -> "Outcomes":
        """Choose between species and unknown, probabilities float64 [N, R] each, where the species has a name."""
        either = np.column_stack([told[:, SPECIES], unknown.sum(axis=1)])[cases.scored[:, SPECIES]]
        right = np.column_stack([cases.right[:, SPECIES], cases.withheld])[cases.scored[:, SPECIES]]
        best = either.argmax(axis=1)
        rows = np.arange(len(best))
        return cls(either[rows, best], right[rows, best])

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Return sum of probabilities and number of right outcomes, shares of N, at POINTS: float64 each."""
        order = np.argsort(-self.probability, kind="stable")
        last = np.maximum(1, np.round(np.arange(1, POINTS + 1) / POINTS * len(order)).astype(int)) - 1
        sums = (np.cumsum(values[order])[last] / max(1, len(order)) for values in (self.probability, self.right))
        told, found = sums
        return told, found


def ends(told: np.ndarray, cases: Cases, threshold: float) -> dict[str, float]:
    """Return how answers end that reach a threshold, probabilities float64 [N, R]: shares of all.

    `over`: a name below the last true taxon that could be answered; `wrong`: another name; `under`: right, but coarser
    than that taxon.
    """
    depth = back_off(told, threshold)
    known = cases.scored & ~cases.unknown
    deepest = np.where(known, np.arange(len(RANKS)), -1).max(axis=1)
    place = np.maximum(depth, 0)
    judged = cases.scored[np.arange(len(depth)), place]
    wrong = (depth >= 0) & judged & ~cases.right[np.arange(len(depth)), place]
    over = wrong & (depth > deepest)
    under = ~wrong & (depth < deepest)
    parts = {"over": over, "wrong": wrong & ~over, "under": under}
    return {name: float(part.mean()) for name, part in parts.items()}


def measure(told: np.ndarray, unknown: np.ndarray, cases: Cases, threshold: float) -> dict[str, float]:
    """Return all numbers: `right`, `bias` (end of the curve, probability less share right), `curve/<k>/...`, `ends`.

    `auroc` of the probability of an unknown taxon as a score of unknown species, where there are both.
    """
    outcomes = Outcomes.of(told, unknown, cases)
    probability, right = outcomes.curve()
    result = {"right": float(right[-1]), "bias": float(probability[-1] - right[-1])}
    for place, (one, other) in enumerate(zip(probability.tolist(), right.tolist(), strict=True)):
        result |= {f"curve/{place}/told": one, f"curve/{place}/found": other}
    named = cases.scored[:, SPECIES]
    if 0 < cases.withheld[named].sum() < named.sum():
        result["auroc"] = float(roc_auc_score(cases.withheld[named], unknown.sum(axis=1)[named]))
    return result | ends(told, cases, threshold)


def of_rules(rules: Calibrator, cases: Cases, threshold: float) -> dict[str, float]:
    """Measure the probabilities of fitted rules."""
    told = rules.probabilities(cases.answers.evidence)
    return measure(told, rules.unknown_taxa(cases.answers.evidence, told), cases, threshold)


def blocks(values: Mapping[str, float], start: str, queries: list[str], threshold: float) -> list[str]:
    """Return paragraph and table, made of the metrics that begin with `start`; all in %."""
    rows = []
    for query in queries:
        one = f"{start}/{query}/outcomes"
        shares = [markdown.percent(values[f"{one}/{name}"]) for name in ("right", "wrong", "over", "under")]
        curve = [
            f"{100 * values[f'{one}/curve/{place}/told']:.0f}:{100 * values[f'{one}/curve/{place}/found']:.0f}"
            for place in range(POINTS)
        ]
        bias = f"{100 * values[f'{one}/bias']:+.1f}"
        rows.append([plots.TITLES[query], shares[0], bias, *shares[1:], " ".join(curve)])
    return [html.paragraph(ABOUT.format(threshold=threshold)), html.table(list(HEADER), rows)]
