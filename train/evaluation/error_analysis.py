"""Where the answers go wrong: ranks that contradict one another, families confused, species seldom seen in training.

Legend: N specimens, R ranks, C taxa of a rank, K bins.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from engine.specimens.taxonomy import RANKS, Taxonomy
from train import metrics
from train.evaluation.predict import Encoded
from train.evaluation.top1_accuracy import Rankings

TAIL_FROM = (1, 2, 3, 6, 11, 21, 51, 101, 501)  # smallest number of training specimens of each bin
OTHER = "others"

Names = Sequence[str | None]
"""Names of N specimens, None = unknown."""


def consistency(taxon: np.ndarray, taxonomy: Taxonomy) -> dict[str, float]:
    """Do the answers at the ranks name one lineage?

    Args:
        taxon: int [N, R], the answered taxon of each rank, -1 = none.
        taxonomy: of these taxa.

    Returns:
        For each rank but the first, the share of specimens whose answer has the answer of the rank above as its
        parent, among those whose answer has a known parent; `whole`: all ranks at once. nan where there are none.
    """
    result: dict[str, float] = {}
    agrees = np.ones(len(taxon), dtype=bool)
    for rank in range(1, taxon.shape[1]):
        own, above = taxon[:, rank], taxon[:, rank - 1]
        lineages = taxonomy.candidates(rank)
        parent = np.where(own >= 0, lineages[np.maximum(own, 0), rank - 1], -1) if len(lineages) else own
        known = (parent >= 0) & (above >= 0)
        result[RANKS[rank]] = float((parent == above)[known].mean()) if known.any() else float("nan")
        agrees &= ~known | (parent == above)
    result["whole"] = float(agrees.mean()) if len(agrees) else float("nan")
    return result


def training_counts(index: pa.Table, train: pa.Table) -> np.ndarray:
    """Specimens of train that carry the species of each row, int64 [N]; 0 without a species."""
    counts = Counter(train["species"].to_pylist())
    return np.array([counts[name] if name else 0 for name in index["species"].to_pylist()], dtype=np.int64)


def tail_labels() -> list[str]:
    """Names of the bins: "1", "2", "3-5" ... "501+"."""
    ends = [*(start - 1 for start in TAIL_FROM[1:]), None]
    names = zip(TAIL_FROM, ends, strict=True)
    return [f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}" for low, high in names]


def tail(
    position: np.ndarray, species: np.ndarray, counts: np.ndarray, group: np.ndarray, resamples: int
) -> dict[str, float]:
    """Species accuracy by how many training specimens the true species has: `<bin>/{top1, low, high, rows, taxa}`.

    Args:
        position: int32 [N], place of the true species; UNSCORED rows count nowhere.
        species: int64 [N], the true species.
        counts: int64 [N] of `training_counts`.
        group: int64 [N], specimens resampled together.
        resamples: bootstrap draws.
    """
    place = np.searchsorted(TAIL_FROM, counts, side="right") - 1
    scored = (position != metrics.UNSCORED) & (place >= 0)
    population = (place[:, None] == np.arange(len(TAIL_FROM))) & scored[:, None]
    correct = np.broadcast_to(metrics.hits(position, 1)[:, None], population.shape)
    bounds = metrics.intervals(correct, population, group, resamples)
    result: dict[str, float] = {}
    for number, name in enumerate(tail_labels()):
        rows = population[:, number]
        if rows.any():
            result[f"{name}/top1"] = metrics.micro(correct[:, number], rows)
            result[f"{name}/low"], result[f"{name}/high"] = bounds[number].tolist()
            result[f"{name}/rows"], result[f"{name}/taxa"] = int(rows.sum()), len(np.unique(species[rows]))
    return result


def consistencies(split: str, rankings: Rankings, encoded: Encoded, taxonomy: Taxonomy) -> dict[str, float]:
    """Return the consistency of every ranking: `test/dna/clean/consistency/whole`."""
    result: dict[str, float] = {}
    for (scoring, query, condition), ranking in rankings.items():
        start = metrics.prefix(split, query, condition, scoring)
        found = consistency(ranking.taxon[encoded.mask(query)], taxonomy)
        result |= {f"{start}/consistency/{name}": value for name, value in found.items()}
    return result


def tails(
    split: str, rankings: Rankings, encoded: Encoded, counts: np.ndarray, group: np.ndarray, resamples: int
) -> dict[str, float]:
    """Return by roll-up the long tail of every query: `test/dna/clean/tail/3-5/top1`; {} without training counts.

    Args:
        split: first part of the metrics' names.
        rankings: of `top1_accuracy.rank_queries`.
        encoded: the specimens under test.
        counts: int64 [N], of `training_counts`.
        group: int64 [N], specimens resampled together.
        resamples: bootstrap draws.
    """
    result: dict[str, float] = {}
    species = RANKS.index("species")
    for (scoring, query, condition), ranking in rankings.items():
        if scoring == "rollup" and counts.any():
            start = metrics.prefix(split, query, condition, scoring)
            binned = tail(ranking.position[:, species], encoded.labels[:, species], counts, group, resamples)
            result |= {f"{start}/tail/{name}": value for name, value in binned.items()}
    return result


def confusion(
    truth: Sequence[str | None], answer: Sequence[str | None], shown: int = 25
) -> tuple[list[str], np.ndarray]:
    """Return counts of (true, answered) names among the most frequent true ones, the rest as "others".

    The cell (others, others) also holds mistakes within the rest.

    Args:
        truth: true names [N]; rows without both are left out.
        answer: answered names [N].
        shown: names that get a row of their own.

    Returns:
        names, most frequent first, and int64 [K, K] counts, a row for each true name.
    """
    pairs = Counter((one, other) for one, other in zip(truth, answer, strict=True) if one and other)
    total: Counter[str] = Counter()
    for (one, _), count in pairs.items():
        total[one] += count
    names = [name for name, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))[:shown]]
    if len(total) > len(names) or any(other not in total for _, other in pairs):
        names.append(OTHER)
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for (one, other), count in pairs.items():
        counts[place.get(one, len(names) - 1), place.get(other, len(names) - 1)] += count
    return names, counts


def most_confused(truth: Names, answer: Names, shown: int = 15) -> list[tuple[str, str, int, float]]:
    """Return the most frequent mistakes: (true name, answer, how often, share of the true name's specimens)."""
    pairs = Counter((one, other) for one, other in zip(truth, answer, strict=True) if one and other)
    total: Counter[str] = Counter()
    for (one, _), count in pairs.items():
        total[one] += count
    wrong = [(one, other, count) for (one, other), count in pairs.items() if one != other]
    wrong.sort(key=lambda row: (-row[2], row[0], row[1]))
    return [(one, other, count, count / total[one]) for one, other, count in wrong[:shown]]
