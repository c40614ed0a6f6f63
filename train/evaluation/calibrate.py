"""Fits a model's calibration on val and measures it on the split under test.

Both meet the same mixture: 60% clean, 20% damaged (DAMAGE in equal parts), 20% of species that the model does not
know, for which naming any species is wrong. On val those are made: the query's own species is taken from the
candidates. Under test they are the specimens of `<split>_unseen` where the shards have them (the model was trained
without these species), else they are made in the same way. Val is never under test.

Legend: N queries, R ranks.
"""

from dataclasses import replace

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from engine.specimens.schema import uniforms_for
from engine.specimens.taxonomy import RANKS
from train.evaluation.fit_pool import fit_pool
from train.evaluation.known_questions import DAMAGE, SPECIES, Asked, Cases, Part, is_pooled
from train.inference import evidence
from train.inference.calibration import Calibration, Calibrator, Cap, Disagreement, Rule, columns_of, logit
from train.inference.evidence import AGREEMENTS, INPUTS
from train.inference.pool import Pool

CLEAN, DAMAGED, WITHHELD = 0.6, 0.2, 0.2  # shares of the mixture
OUTSIDE = 0.02  # of WITHHELD, in the fit: of nothing that anybody knows
KNOTS = {"rate": (0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.3, 0.5)}  # of a cap
FLAGGED = 0.03  # of the queries of known species: on test they are up to 1.4 times as many, and 5% are allowed
PREVALENCE = 0.02  # of swapped pairs
RIDGE = 1e-2  # on standardised weights: keeps a rule finite where an input separates right from wrong


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


def fit(part: Part) -> Calibration:
    """Fit the rules of every query that some specimen of `part` can be asked with.

    Raises:
        ValueError: when no specimen of it is labelled at some rank.
    """
    queries = {}
    for query in tqdm(part.queries(), desc="calibration", unit=" queries", disable=None, leave=False):
        pieces = _pieces(part, query, np.flatnonzero(part.mask(query)))
        pool = fit_pool(part, query) if is_pooled(query) else None
        cases = Cases.concatenate([piece.cases(pool) for piece in pieces])
        inputs = tuple(cases.answers.evidence)
        caps = fit_caps(cases, "cosine")
        queries[query] = replace(fit_query(cases, inputs), pool=pool, caps=caps)
    return Calibration(part.setting.taxonomy.fingerprint, queries, _fit_disagreement(part))


def _pieces(part: Part, query: str, rows: np.ndarray) -> list[Asked]:
    """Return the mixture that is fitted on: every row in every way."""
    pieces = [part.asked(query, rows, weight=CLEAN)]
    pieces += [part.asked(query, rows, damage, weight=DAMAGED / len(DAMAGE)) for damage in DAMAGE]
    pieces.append(part.asked(query, rows, withhold=True, weight=WITHHELD - OUTSIDE))
    return [*pieces, part.asked_outside(query, OUTSIDE)]


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
        distance: the evidence that says how far: `rate`, edits per letter; `cosine`, which falls with the distance.
    """
    caps = []
    for rank in range(len(RANKS)):
        rows = cases.scored[:, rank] & (cases.right[:, rank] | cases.unknown[:, rank])
        far = columns_of(cases.answers.evidence, (distance,), rank)[rows, 0]
        curve = IsotonicRegression(increasing=distance != "rate", y_min=0.0, y_max=1.0, out_of_bounds="clip")
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


def swaps(labels: np.ndarray, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of specimens whose barcodes are exchanged: kind -> (rows, rows of the barcode), int64 each.

    Kinds: `genus` (another species of the genus), `family` (another genus of it), `order` (another family of it),
    `orders` (another order). A kind that no pair fits is left out.
    """
    rng = np.random.default_rng(seed)
    result = {}
    for kind, same, other in (("genus", 2, 3), ("family", 1, 2), ("order", 0, 1), ("orders", None, 0)):
        rows, partners = [], []
        for row, own in enumerate(labels):
            fits = (labels[:, other] >= 0) & (labels[:, other] != own[other]) & (own[other] >= 0)
            if same is not None:
                fits &= (labels[:, same] == own[same]) & (own[same] >= 0)
            there = np.flatnonzero(fits)
            if len(there):
                rows.append(row)
                partners.append(there[rng.integers(len(there))])
        if rows:
            result[kind] = (np.array(rows), np.array(partners))
    return result


def pairs(part: Part) -> dict[str, np.ndarray]:
    """Columns of AGREEMENTS, float64 [n, R], of true pairs ("true") and of every kind of swapped ones; {} without."""
    both = np.flatnonzero(part.mask("fused"))
    if not len(both):
        return {}
    image, dna = part.clean.features["image"][both], part.clean.features["dna"][both]
    rows = {"true": (np.arange(len(both)), np.arange(len(both)))} | swaps(part.labels[both])
    found = {}
    for kind, (first, second) in rows.items():
        told = evidence.agreement(part.setting.scorer, image[first], dna[second])
        found[kind] = columns_of(told, AGREEMENTS, None)
    return found


def _fit_disagreement(part: Part) -> Disagreement | None:
    """None where no specimen has both, or none can be swapped."""
    columns = pairs(part)
    if len(columns) < 2:
        return None
    swapped = np.concatenate([columns[kind] for kind in columns if kind != "true"])
    weight = np.concatenate(
        [np.full(len(columns["true"]), 1 / len(columns["true"])), np.full(len(swapped), 1 / len(swapped))]
    )
    is_swapped = np.arange(len(weight)) >= len(columns["true"])
    rule = fit_rule(AGREEMENTS, np.concatenate([columns["true"], swapped]), is_swapped, weight)
    return Disagreement(rule, _best_f1(rule(columns["true"]), rule(swapped)))


def _best_f1(true: np.ndarray, swapped: np.ndarray) -> float:
    """Return the threshold of the highest F1 at PREVALENCE."""
    candidates = np.unique(np.concatenate([true, swapped]))
    candidates = candidates[:: max(1, len(candidates) // 1000)]
    recall = (swapped[None] >= candidates[:, None]).mean(axis=1)
    precision = precision_at(recall, (true[None] >= candidates[:, None]).mean(axis=1))
    return float(candidates[np.argmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))])


def precision_at(recall: np.ndarray, false_alarms: np.ndarray, prevalence: float = PREVALENCE) -> np.ndarray:
    """Share of flagged pairs that are swapped, from the shares flagged of swapped and of true pairs; 0 without any."""
    hits = prevalence * np.asarray(recall)
    return hits / np.maximum(hits + (1 - prevalence) * np.asarray(false_alarms), 1e-12)


def mixture(part: Part, query: str, unseen: Part | None, pool: Pool | None = None) -> Cases:
    """Return the cases under test.

    Args:
        part: specimens of the split under test.
        query: of `Part.queries`.
        unseen: specimens of species that the model does not know; None = they are made by withholding a query's own.
        pool: of a query of several experts.
    """
    pieces = mixture_pieces(part, query, unseen)
    whole = Cases.concatenate([piece.cases(pool) for piece in pieces])
    elsewhere = np.concatenate([np.full(len(piece.rows), piece.part is not part) for piece in pieces])
    return replace(whole, group=np.where(elsewhere, whole.group + part.group.max() + 1, whole.group))


def mixture_pieces(part: Part, query: str, unseen: Part | None) -> list[Asked]:
    """Return the questions of `mixture`: each specimen once, its condition drawn from its key."""
    draws = uniforms_for(0, 0, part.rows["key"].to_pylist(), "mixture", 3)
    mask = part.mask(query)
    rest = draws[:, 0] >= (WITHHELD if unseen is None else 0.0)
    pieces = []
    if unseen is None:
        pieces.append(part.asked(query, np.flatnonzero(mask & ~rest), withhold=True))
    else:
        few = min(int(unseen.mask(query).sum()), round(mask.sum() * WITHHELD / (1 - WITHHELD)))
        there = np.flatnonzero(unseen.mask(query))
        lots = uniforms_for(0, 0, unseen.rows["key"].to_pylist(), "mixture", 1)[there, 0]
        pieces.append(unseen.asked(query, np.sort(there[np.argsort(lots, kind="stable")[:few]])))
        most = few * (1 - WITHHELD) / WITHHELD  # of the others, so that the shares are those of the mixture
        rest = draws[:, 0] < most / max(1, int(mask.sum()))
    clean = draws[:, 1] < CLEAN / (CLEAN + DAMAGED)
    kind = (draws[:, 2] * len(DAMAGE)).astype(int)
    pieces.append(part.asked(query, np.flatnonzero(mask & rest & clean)))
    for number, damage in enumerate(DAMAGE):
        pieces.append(part.asked(query, np.flatnonzero(mask & rest & ~clean & (kind == number)), damage))
    return [piece for piece in pieces if len(piece.rows)]
