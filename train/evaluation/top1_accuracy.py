"""From features to metrics: every query ranked, then counted for every subset of the specimens; fusion compared.

Which single modality fusion is compared with is chosen on val, never on the split under test.

Legend: N specimens, R ranks, Q columns of `metrics.COLUMNS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from engine.specimens.taxonomy import RANKS
from train import metrics
from train.evaluation.predict import QUERIES, Encoded
from train.inference.scoring import SCORINGS, Ranking, Scorer
from train.metrics import Difference, paired_difference, prefix

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


@dataclass(frozen=True)
class Comparison:
    """Fused minus single, both inputs noisy, at one rank."""

    modality: str  # the better single modality, by val
    difference: Difference  # first = fused, second = single


def better_single(values: Mapping[str, float], rank: str, split: str = "val") -> str:
    """Return the single modality with the higher noisy top-1 among specimens that have both; image in a tie.

    Raises ValueError when `values` does not hold both.
    """
    keys = {name: f"{prefix(split, name, 'noisy', scope='both')}/{rank}/top1" for name in ("image", "dna")}
    missing = [key for key in keys.values() if key not in values]
    if missing:
        raise ValueError(f"choosing the better single modality needs the metric {missing[0]!r}, which is not there")
    return "dna" if values[keys["dna"]] > values[keys["image"]] else "image"


def compare_fused(
    val_metrics: Mapping[str, float], test_predictions: pa.Table, resamples: int = 1000, split: str = "val"
) -> dict[str, Comparison]:
    """Paired difference of fused (noisy both) and the better single modality (its own noise), per rank.

    Args:
        resamples: bootstrap draws.
        val_metrics: of `measure.measure` on the split that chooses.
        test_predictions: predictions.parquet of the split under test.
        split: name of the choosing split in the keys of `val_metrics`.

    Returns:
        rank -> Comparison with a bootstrap 95% interval over barcode groups; a rank that no specimen with both
        modalities is labelled at is left out, and {} is returned where there are no such specimens.
    """
    if "fused_noisy_both_species_position" not in test_predictions.column_names:
        return {}
    result = {}
    both = pc.and_(test_predictions["has_image"], test_predictions["has_dna"]).to_numpy()
    group = test_predictions["group"].to_numpy()
    for rank in RANKS:
        modality = better_single(val_metrics, rank, split)
        columns = (f"fused_noisy_both_{rank}_position", f"{modality}_noisy_{rank}_position")
        fused, single = (_positions(test_predictions[column]) for column in columns)
        rows = both & (fused != metrics.UNSCORED)
        if rows.any():
            found = paired_difference(
                metrics.hits(fused, 1)[rows], metrics.hits(single, 1)[rows], group[rows], resamples=resamples
            )
            result[rank] = Comparison(modality, found)
    return result


def as_metrics(found: Mapping[str, Comparison], split: str) -> dict[str, float]:
    """Numbers of `compare_fused` as `test/fused_minus_single/noisy_both/species/{difference,low,high,rows}`."""
    result: dict[str, float] = {}
    for rank, one in found.items():
        start, gap = f"{split}/fused_minus_single/noisy_both/{rank}", one.difference
        result |= {f"{start}/difference": gap.value, f"{start}/low": gap.low, f"{start}/high": gap.high}
        result[f"{start}/rows"] = gap.rows
    return result


def _positions(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(column, metrics.UNSCORED).to_numpy()
