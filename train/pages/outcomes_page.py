"""The page's table of answers to which an unknown species is an answer, too (`train.evaluation.outcomes`)."""

from collections.abc import Mapping

from engine import html, markdown
from train.evaluation.outcomes import POINTS
from train.pages import plots

ABOUT = (
    "With an unknown species as an answer, too: the species or the unknown, whichever is more probable. Bias: mean "
    "probability of these outcomes less the share right, where the bias-accuracy curve ends (points: sum of "
    "probabilities : share right, the surest first, a tenth more each). Of answers at {threshold:.0%}: misclassified, "
    "over-classified (named below the last true taxon that is known), under-classified (right, but coarser than that)."
)
HEADER = ("asked with", "right", "bias", "misclassified", "over-classified", "under-classified", "curve")


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
