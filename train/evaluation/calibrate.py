"""Fits a model's calibration on val and measures it on the split under test.

Both meet the same mixture: 60% clean, 20% damaged (DAMAGE in equal parts), 20% of species that the model does not
know, for which naming any species is wrong. On val those are made: the query's own species is taken from the
candidates. Under test they are the specimens of `<split>_unseen` where the shards have them (the model was trained
without these species), else they are made in the same way. Val is never under test. In the fit 2 of these 20% are
outsiders (`train.evaluation.outsiders`), for which no name of any rank is right.

Legend: N queries, R ranks.
"""

import logging
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from engine.specimens.schema import uniforms_for
from train.evaluation.calibrate_library import collect
from train.evaluation.fit_pool import fit_pool
from train.evaluation.fit_rules import fit_caps, fit_query, fit_rule
from train.evaluation.known_questions import CLEAN, DAMAGE, DAMAGED, OUTSIDE, WITHHELD, Asked, Cases, Part, is_pooled
from train.inference import evidence
from train.inference.calibration import Calibration, Cap, Disagreement, columns_of
from train.inference.evidence import AGREEMENTS
from train.inference.looks import PHOTO_FAR
from train.inference.pool import Pool

log = logging.getLogger(__name__)

PREVALENCE = 0.02  # of swapped pairs


def fit(part: Part) -> Calibration:
    """Fit the rules of every query that some specimen of `part` can be asked with.

    Raises:
        ValueError: when no specimen of it is labelled at some rank.
    """
    queries = {}
    of_library = _library_caps(part)
    for query in tqdm(part.queries(), desc="calibration", unit=" queries", disable=None, leave=False):
        pieces = _pieces(part, query, np.flatnonzero(part.mask(query)))
        pool = fit_pool(part, query) if is_pooled(query) else None
        cases = Cases.concatenate([piece.cases(pool) for piece in pieces])
        inputs = tuple(cases.answers.evidence)
        how = PHOTO_FAR if PHOTO_FAR in inputs else "cosine"
        caps = of_library if of_library and "far" in inputs else fit_caps(cases, how)
        queries[query] = replace(fit_query(cases, inputs), pool=pool, caps=caps)
    return Calibration(part.setting.taxonomy.fingerprint, queries, _fit_disagreement(part), scope=part.scope)


def _library_caps(part: Part) -> tuple[Cap, ...]:
    """Fit by how far the library's own specimens are from its taxa, those of taken-out genera and families, too.

    () without a library, and of one that is too small to be asked.
    """
    if part.combiner is None:
        return ()
    try:
        return fit_caps(collect(part.combiner.library), "far")
    except ValueError as error:
        log.warning("%s: answers with it are capped by the model's cosines", error)
        return ()


def _pieces(part: Part, query: str, rows: np.ndarray) -> list[Asked]:
    """Return the mixture that is fitted on: every row in every way."""
    pieces = [part.asked(query, rows, weight=CLEAN)]
    pieces += [part.asked(query, rows, damage, weight=DAMAGED / len(DAMAGE)) for damage in DAMAGE]
    pieces.append(part.asked(query, rows, withhold=True, weight=WITHHELD - OUTSIDE))
    return [*pieces, part.asked_outside(query, OUTSIDE)]


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
