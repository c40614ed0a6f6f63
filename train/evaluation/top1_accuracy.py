"""From features to metrics: every query ranked, then counted for every subset of the specimens.

Legend: N specimens, R ranks, Q columns of `metrics.COLUMNS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from engine.specimens.taxonomy import RANKS
from train import metrics
from train.evaluation.predict import QUERIES, Encoded
from train.inference.scoring import SCORINGS, Ranking, Scorer

Rankings = dict[tuple[str, str, str], Ranking]
"""(scoring, query, condition) -> ranking of all N specimens, UNSCORED where they lack what the query needs."""


@dataclass(frozen=True)
class Subsets:
    """The specimens of a split by what is asked of them."""

    group: np.ndarray  # int64 [N], specimens that are resampled together
    novel: np.ndarray | None  # bool [N]; None when there is no training split to compare with
    both: np.ndarray  # bool [N], has image and barcode

    def scopes(self, query: str) -> dict[str, np.ndarray | None]:
        """Return the subsets reported for a query: everybody, `both` for single modalities, `novel` for DNA."""
        result: dict[str, np.ndarray | None] = {"all": None}
        if query in ("image", "dna") and self.both.any():
            result["both"] = self.both
        if query != "image" and self.novel is not None:
            result["novel"] = self.novel
        return result


ALL_QUERIES = tuple((query, condition) for query, conditions in QUERIES.items() for condition in conditions)


def rank_queries(
    model: Any,
    scorer: Scorer,
    encoded: Encoded,
    asked: Sequence[tuple[str, str]] = ALL_QUERIES,
    scorings: Sequence[str] = SCORINGS,
) -> Rankings:
    """Rank every (query, condition) that some specimen has, with a progress bar."""

    def fuse(image: torch.Tensor, dna: torch.Tensor) -> torch.Tensor:
        return model.fuse(image.to(scorer.device), dna.to(scorer.device))

    result: Rankings = {}
    for query, condition in tqdm(asked, desc="ranking", unit=" queries", disable=None, leave=False):
        mask = encoded.mask(query)
        if not mask.any():
            continue
        found = {scoring: Ranking.empty(len(mask)) for scoring in scorings}
        for rows in encoded.rows(query):
            features = encoded.query(query, condition, fuse, rows)
            for scoring, ranking in found.items():
                ranking.fill(rows, scorer.rank(features, encoded.labels[rows], scoring))
        result |= {(scoring, query, condition): ranking for scoring, ranking in found.items()}
    return result


def measure(split: str, rankings: Rankings, encoded: Encoded, subsets: Subsets, resamples: int) -> dict[str, float]:
    """Accuracies of every ranking and subset, keys as in `train.metrics`.

    The micro top-1 comes with its 95% interval of `resamples` draws (0 = none), that of the headline scoring at every
    rank also with the interval of the macro top-1, `..._low` and `..._high`.
    """
    classes = metrics.true_classes(encoded.labels)
    result: dict[str, float] = {}
    bar = tqdm(rankings.items(), desc="measuring", unit=" rankings", disable=None, leave=False)
    for (scoring, query, condition), ranking in bar:
        names, population = [], []
        for scope, subset in subsets.scopes(query).items():
            mask = encoded.mask(query) if subset is None else encoded.mask(query) & subset
            start = metrics.prefix(split, query, condition, scoring, scope)
            result[f"{start}/rows"] = int(mask.sum())
            found = metrics.accuracies(ranking.position, classes, mask)
            result |= {f"{start}/{name}": value for name, value in found.items()}
            names += [f"{start}/{column}/top1" for column in metrics.COLUMNS]
            population.append(mask[:, None] & (ranking.position != metrics.UNSCORED))
        if resamples:
            correct = np.tile(metrics.hits(ranking.position, 1), len(population))
            bounds = metrics.intervals(correct, np.hstack(population), subsets.group, resamples)
            for name, (low, high) in zip(names, bounds, strict=True):
                result[f"{name}_low"], result[f"{name}_high"] = float(low), float(high)
    if resamples:
        result |= _macro_intervals(split, rankings, encoded, subsets, resamples)
    return result


def _macro_intervals(
    split: str, rankings: Rankings, encoded: Encoded, subsets: Subsets, resamples: int
) -> dict[str, float]:
    """Intervals of macro top-1 by roll-up for every query, subset and rank, with a progress bar."""
    result: dict[str, float] = {}
    asked = [(key, ranking) for key, ranking in rankings.items() if key[0] == "rollup"]
    for (scoring, query, condition), ranking in tqdm(asked, desc="intervals", disable=None, leave=False):
        for scope, subset in subsets.scopes(query).items():
            mask = encoded.mask(query) if subset is None else encoded.mask(query) & subset
            for column, rank in enumerate(RANKS):
                position = ranking.position[:, column]
                kinds = np.where(mask & (position != metrics.UNSCORED), encoded.labels[:, column], -1)
                low, high = metrics.macro_interval(metrics.hits(position, 1), kinds, subsets.group, resamples)
                name = f"{metrics.prefix(split, query, condition, scoring, scope)}/{rank}/macro_top1"
                result[f"{name}_low"], result[f"{name}_high"] = low, high
    return result


def measure_peer(
    split: str, name: str, answers: Mapping[str, np.ndarray], encoded: Encoded, subsets: Subsets
) -> dict[str, float]:
    """Top-1 accuracies of a baseline that answers with labels: keys `test/dna/peer_6mer/clean/species/top1`.

    Args:
        encoded: the specimens under test.
        split: first part of the metrics' names.
        subsets: the specimens that are reported apart.
        name: `<query>/<peer>`, e.g. `dna/peer_6mer`.
        answers: condition -> int64 [N, R], the answered taxon, -1 = none.
    """
    query = name.split("/")[0]
    classes = metrics.true_classes(encoded.labels)
    result: dict[str, float] = {}
    for condition, answer in answers.items():
        positions = np.where(answer == encoded.labels, 0, metrics.MISSED)
        positions[encoded.labels < 0] = metrics.UNSCORED
        for scope, subset in subsets.scopes(query).items():
            mask = encoded.mask(query) if subset is None else encoded.mask(query) & subset
            start = metrics.prefix(split, name, condition, scope=scope)
            result[f"{start}/rows"] = int(mask.sum())
            found = metrics.accuracies(positions, classes, mask)
            result |= {f"{start}/{key}": value for key, value in found.items() if "top5" not in key}
    return result
