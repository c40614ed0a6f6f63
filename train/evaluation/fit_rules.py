"""Fits the rules of one query to answered questions whose truth is known.

Legend: N queries, M inputs of a rule, R ranks.
"""

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from engine.specimens.taxonomy import RANKS
from train.evaluation.known_questions import SPECIES, Cases
from train.inference.calibration import Calibrator, Cap, Rule, columns_of, logit
from train.inference.evidence import INPUTS

FLAGGED = 0.03  # of the queries of known species: on test they are up to 1.4 times as many, and 5% are allowed
RIDGE = 1e-2  # on standardised weights: keeps a rule finite where an input separates right from wrong
KNOTS = {"far": (0.0, *np.geomspace(0.005, 0.5, 21).round(4).tolist())}  # of a cap


def fit_rule(inputs: tuple[str, ...], columns: np.ndarray, right: np.ndarray, weight: np.ndarray) -> Rule:
    """Weighted logistic regression with a small ridge.

    Args:
        inputs: names of the columns.
        columns: float [N, M].
        right: bool [N].
        weight: float [N], of each query, not negative.

    Raises:
        ValueError: when no query has a weight.
    """
    if not weight.sum() > 0:
        raise ValueError("calibration: got no query to fit on, required at least one with a weight")
    share = weight / weight.sum()
    mean = share @ columns
    spread = np.sqrt(share @ (columns - mean) ** 2)
    spread[spread < 1e-9] = 1.0
    if len(np.unique(right[share > 0])) == 1:  # nothing to tell apart; the chance is kept off 0 and 1
        slope, offset = np.zeros(columns.shape[1]), logit((share @ right * len(right) + 0.5) / (len(right) + 1))
    else:
        fitted = LogisticRegression(C=max(1.0, len(columns) ** 0.5) / RIDGE, solver="newton-cholesky", tol=1e-8)
        fitted.fit((columns - mean) / spread, right, sample_weight=share)
        slope, offset = fitted.coef_[0], fitted.intercept_[0]
    return Rule(inputs, tuple(mean.tolist()), tuple(spread.tolist()), tuple(slope.tolist()), float(offset))


def fit_query(cases: Cases, inputs: tuple[str, ...] = INPUTS) -> Calibrator:
    """Return the rules of one query, on whatever evidence the cases carry under `inputs`.

    Raises:
        ValueError: when no case is labelled at some rank.
    """
    rules: list[Rule] = []
    for rank, name in enumerate(RANKS):
        weight = cases.weight * cases.scored[:, rank]
        if not weight.sum():
            raise ValueError(f"calibration: no specimen of val is labelled at {name}, required at every rank")
        columns = columns_of(cases.answers.evidence, inputs, rank)
        rules.append(fit_rule(inputs, columns, cases.right[:, rank], weight))
    columns = columns_of(cases.answers.evidence, inputs, SPECIES)
    named = cases.scored[:, SPECIES]
    known = fit_rule(inputs, columns, ~cases.withheld, cases.weight * named)
    score = 1 - known(columns)
    seen = named & ~cases.withheld
    share = flagged_share(len(np.unique(cases.group[seen])))
    novel_from = weighted_quantile(score[seen], cases.weight[seen], 1 - share)
    return Calibrator(tuple(rules), known, novel_from, fit_unknown(cases, inputs))


def fit_unknown(cases: Cases, inputs: tuple[str, ...]) -> tuple[Rule, ...]:
    """Fit, on the answers whose last right rank is the one above, whether the true taxon of a rank is unknown."""
    rules = []
    for rank in range(len(RANKS)):
        above = cases.right[:, rank - 1] if rank else np.ones(len(cases.weight), dtype=bool)
        weight = cases.weight * (above & ~cases.right[:, rank] & cases.scored[:, rank])
        columns = columns_of(cases.answers.evidence, inputs, rank)
        if weight.any():
            rules.append(fit_rule(inputs, columns, cases.unknown[:, rank], weight))
        else:  # never wrong there: nothing to go by
            nothing = (0.0,) * len(inputs)
            rules.append(Rule(inputs, nothing, (1.0,) * len(inputs), nothing, 0.0))
    return tuple(rules)


def fit_caps(cases: Cases, distance: str) -> tuple[Cap, ...]:
    """Fit, per rank, the share of members among members and specimens of unknown taxa, by how far they are.

    Args:
        cases: answered questions, outsiders among them.
        distance: the evidence that says how far: `far`, the most edits per letter; PHOTO_FAR; `cosine`, which falls
            with the distance.
    """
    caps = []
    for rank in range(len(RANKS)):
        rows = cases.scored[:, rank] & (cases.right[:, rank] | cases.unknown[:, rank])
        far = columns_of(cases.answers.evidence, (distance,), rank)[rows, 0]
        curve = IsotonicRegression(increasing=distance == "cosine", y_min=0.0, y_max=1.0, out_of_bounds="clip")
        curve.fit(far, cases.right[rows, rank].astype(float), cases.weight[rows])
        knots = KNOTS.get(distance) or tuple(np.unique(np.quantile(far, np.linspace(0, 1, 25))).tolist())
        caps.append(Cap(distance, knots, tuple(curve.predict(np.array(knots)).tolist())))
    return tuple(caps)


def flagged_share(num_groups: int) -> float:
    """Share to flag on val so that others flag more than FLAGGED in one of 20 draws of as many barcode groups."""
    return max(0.005, FLAGGED - 1.645 * (FLAGGED * (1 - FLAGGED) / max(1, num_groups)) ** 0.5)


def weighted_quantile(values: np.ndarray, weight: np.ndarray, share: float) -> float:
    """Return the smallest value that at least `share` of the weight does not exceed, and a little above it."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order]) >= share * weight.sum() - 1e-12
    return float(np.nextafter(values[order][int(reached.argmax())], np.inf))
