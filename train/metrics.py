"""Accuracy from the position of the truth, and intervals that resample barcode groups.

A query is scored against candidates elsewhere (`train.inference.scoring`); what arrives here is the *position* of the
right answer among them: 0 = ranked first, MISSED = not among the candidates, UNSCORED = the specimen has no known
label there and counts nowhere. Every top-k, micro or macro, follows from it.

Keys of the metrics: `test/dna/noisy/species/top1`; a scoring other than roll-up and a subset of the specimens come
after the split: `test/prompt/novel/dna/noisy/species/macro_top1`.

Legend: N specimens, R ranks, Q columns (R ranks and two globals), G groups, T resamples, M quantities at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.specimens.taxonomy import RANKS

COLUMNS = (*RANKS, "global_exact", "global_compatible")
UNSCORED = -1
MISSED = np.iinfo(np.int32).max
TOP = (1, 5)
CHUNK_BYTES = 64e6


def prefix(split: str, query: str, condition: str, scoring: str = "rollup", scope: str = "all") -> str:
    """First part of a metric's key; the default scoring and the whole split are not named in it."""
    parts = (split, scoring if scoring != "rollup" else "", scope if scope != "all" else "", query, condition)
    return "/".join(part for part in parts if part)


def hits(positions: np.ndarray, k: int) -> np.ndarray:
    """Is the truth among the first k? bool, shape of `positions`; False where UNSCORED."""
    return (positions >= 0) & (positions < k)


def micro(correct: np.ndarray, population: np.ndarray) -> float:
    """Share of the specimens in `population` (bool [N]) that are correct (bool [N]); nan when there are none."""
    return float(correct[population].mean()) if population.any() else float("nan")


def macro(correct: np.ndarray, classes: np.ndarray) -> float:
    """Mean over classes of the share of their specimens that are correct.

    Args:
        correct: bool [N].
        classes: int64 [N], the true class; negative = not in the population.

    Returns:
        nan when no specimen has a class.
    """
    population = classes >= 0
    if not population.any():
        return float("nan")
    _, inverse = np.unique(classes[population], return_inverse=True)
    counts = np.bincount(inverse)
    return float((np.bincount(inverse, weights=correct[population]) / counts).mean())


def true_classes(labels: np.ndarray) -> np.ndarray:
    """Class of every specimen in every column, int64 [N, Q]: the label, and for the globals the deepest labelled taxon.

    Args:
        labels: int64 [N, R], -1 = unknown.
    """
    num_ranks = labels.shape[1]
    depth = np.where(labels >= 0, np.arange(num_ranks), -1).max(axis=1)
    taxon = np.take_along_axis(labels, np.maximum(depth, 0)[:, None], axis=1)[:, 0]
    whole = np.where(depth >= 0, taxon * num_ranks + depth, -1)
    return np.column_stack([labels, whole, whole])


def accuracies(positions: np.ndarray, classes: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Every top-k of one query, keys `<column>/<top1 | top5 | macro_top1 | macro_top5 | rows | taxa>`.

    Args:
        positions: int32 [N, Q], position of the truth.
        classes: int64 [N, Q] of `true_classes`.
        mask: bool [N], the specimens that count (those that have the modality, or a subset of them).
    """
    result: dict[str, float] = {}
    for column, name in enumerate(COLUMNS[: positions.shape[1]]):
        population = mask & (positions[:, column] != UNSCORED)
        kinds = np.where(population, classes[:, column], -1)
        for k in TOP:
            correct = hits(positions[:, column], k)
            result[f"{name}/top{k}"] = micro(correct, population)
            result[f"{name}/macro_top{k}"] = macro(correct, kinds)
        result[f"{name}/rows"] = int(population.sum())
        result[f"{name}/taxa"] = len(np.unique(kinds[population]))
    return result


def resample(num_groups: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn: float32 [t, G] chunks of about 64 MB, `resamples` rows in all."""
    rng = np.random.default_rng(seed)
    step = max(1, int(CHUNK_BYTES / (4 * max(1, num_groups))))
    for first in range(0, resamples, step):
        rows = min(step, resamples - first)
        draws = (np.bincount(rng.integers(0, num_groups, num_groups), minlength=num_groups) for _ in range(rows))
        yield np.stack(list(draws)).astype(np.float32)


def intervals(
    correct: np.ndarray, population: np.ndarray, groups: np.ndarray, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return bootstrap 95% intervals of M micro accuracies; whole groups are drawn with replacement.

    Specimens that share a barcode are not independent, so resampling rows would make the intervals too narrow.

    Args:
        correct: bool [N, M].
        population: bool [N, M], the specimens that count.
        groups: int64 [N], 0..G-1, equal for specimens that are drawn together.
        resamples: T.
        seed: of the draws.

    Returns:
        float64 [M, 2], low and high; nan where the population is empty.
    """
    num_groups = int(groups.max(initial=-1)) + 1
    if not num_groups:
        return np.full((correct.shape[1], 2), np.nan)
    step = max(1, int(4 * CHUNK_BYTES / (8 * num_groups)))
    columns = (slice(first, first + step) for first in range(0, correct.shape[1], step))
    parts = [_intervals(correct[:, c], population[:, c], groups, (num_groups, resamples, seed)) for c in columns]
    return np.concatenate(parts)


def _intervals(
    correct: np.ndarray, population: np.ndarray, groups: np.ndarray, drawing: tuple[int, int, int]
) -> np.ndarray:
    """As `intervals`, for some of the quantities. `drawing`: groups, resamples, seed."""
    num_groups, resamples, seed = drawing
    sums = np.zeros((num_groups, 2 * correct.shape[1]), dtype=np.float32)
    np.add.at(sums, groups, np.concatenate([correct & population, population], axis=1))
    drawn = np.concatenate([weights @ sums for weights in resample(num_groups, resamples, seed)])
    right, total = np.split(drawn, 2, axis=1)
    with np.errstate(invalid="ignore"):
        shares = right / total
    empty = ~population.any(axis=0)
    shares[:, empty] = 0.0
    bounds = np.nanpercentile(shares, [2.5, 97.5], axis=0).T
    bounds[empty] = np.nan
    right, total = np.split(sums, 2, axis=1)
    return _widened(bounds, right.sum(axis=0) / np.maximum(total.sum(axis=0), 1), (total > 0).sum(axis=0))


def _widened(bounds: np.ndarray, shares: np.ndarray, num_groups: np.ndarray) -> np.ndarray:
    """Return bounds [M, 2] where all or none are correct: the exact (Clopper-Pearson) ones of that many groups.

    No resample differs there: the interval would have no width.
    """
    limit = 0.025 ** (1 / np.maximum(num_groups, 1))
    bounds[:, 0] = np.where((shares == 1) & (num_groups > 0), limit, bounds[:, 0])
    bounds[:, 1] = np.where((shares == 0) & (num_groups > 0), 1 - limit, bounds[:, 1])
    return bounds


def _macro_draws(values: np.ndarray, kinds: np.ndarray, group: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the mean over classes of the mean value within each, for every resample: float64 [T].

    A class that no drawn group has is left out of its resample. values: float32 [N]; kinds: int64 [N], 0..K-1, the
    classes; group: int64 [N], 0..G-1.
    """
    num_groups = int(group.max()) + 1
    cell, inverse = np.unique(kinds * num_groups + group, return_inverse=True)  # rows of one class and group
    sizes = np.bincount(inverse).astype(np.float32)
    sums = np.bincount(inverse, weights=values).astype(np.float32)
    starts = np.flatnonzero(np.diff(cell // num_groups, prepend=-1))
    drawn = []
    for weights in resample(num_groups, resamples, seed):
        step = max(1, int(CHUNK_BYTES / (8 * len(cell))))
        for start in range(0, len(weights), step):
            rows = weights[start : start + step][:, cell % num_groups]
            total = np.add.reduceat(rows * sizes, starts, axis=1)
            gain = np.add.reduceat(rows * sums, starts, axis=1)
            present = total > 0
            drawn.append((gain / np.where(present, total, 1)).sum(axis=1) / present.sum(axis=1))
    return np.concatenate(drawn)


def macro_interval(
    correct: np.ndarray, classes: np.ndarray, groups: np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap 95% interval of one macro accuracy; whole groups are drawn with replacement.

    Where few specimens of each class were seen the percentiles are a little narrow: a class that is not drawn drops
    out instead of counting as unknown.

    Args:
        correct: bool [N].
        classes: int64 [N], the true class; negative = not in the population.
        groups: int64 [N], any integers.
        resamples: how many.
        seed: of the draws.

    Returns:
        nan twice when no specimen has a class.
    """
    rows = classes >= 0
    if not rows.any():
        return float("nan"), float("nan")
    kinds, group = (np.unique(values[rows], return_inverse=True)[1] for values in (classes, groups))
    shares = _macro_draws(correct[rows].astype(np.float32), kinds, group, resamples, seed)
    low, high = np.percentile(shares, [2.5, 97.5])
    bounds = np.array([[low, high]])
    number, whole = np.array([group.max() + 1]), np.array([correct[rows].mean()])
    low, high = _widened(bounds, whole, number)[0]
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """A paired difference of two accuracies on the same specimens, with its 95% interval."""

    first: float
    second: float
    low: float
    high: float
    rows: int
    groups: int

    @property
    def value(self) -> float:
        """Return first - second, as fractions of 1."""
        return self.first - self.second


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray,
    classes: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Return the accuracy of `first` minus that of `second` on the same N specimens; groups are resampled.

    Args:
        first: bool [N], is the answer correct?
        second: as `first`, of the other answer.
        resamples: how many.
        seed: of the draws.
        groups: int64 [N], any integers.
        classes: int64 [N]; given, the macro accuracies are compared, else the micro ones.

    Raises:
        ValueError: when there is no specimen.
    """
    if not len(first):
        raise ValueError("a paired difference needs specimens that both answers share, got none")
    _, group = np.unique(groups, return_inverse=True)
    kinds = np.zeros(len(first), dtype=np.int64) if classes is None else np.unique(classes, return_inverse=True)[1]
    change = first.astype(np.float32) - second.astype(np.float32)
    low, high = np.percentile(_macro_draws(change, kinds, group, resamples, seed), [2.5, 97.5])
    return Difference(
        first=macro(first, kinds),
        second=macro(second, kinds),
        low=float(low),
        high=float(high),
        rows=len(first),
        groups=int(group.max()) + 1,
    )
