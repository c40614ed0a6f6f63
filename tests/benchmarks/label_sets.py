"""Label sets that the order is measured on: BIOSCAN-5M's counts generated, or the columns of a real table.

Also the stored orders of an ingest: `random`, and `clustered` in runs of one lowest known taxon.
"""

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.ingest import plan as ingest_plan
from engine.ingest.plan import Layout
from engine.specimens.taxonomy import RANKS

NUM_TAXA = (55, 934, 7605, 22622)
SHARE_LABELLED = (0.997, 0.958, 0.238, 0.092)
SHARE_OF_LARGEST = (0.716, 0.25, 0.26, 0.016)  # of the specimens whose lowest known rank it is


def _zipf(count: int, largest: float) -> np.ndarray:
    """Probabilities 1/k^s [count] of which the first is `largest` (bisection for s)."""
    low, high = 0.0, 8.0
    for _ in range(60):
        power = (low + high) / 2
        weights = np.arange(1, count + 1, dtype=float) ** -power
        low, high = (power, high) if 1 / weights.sum() < largest else (low, power)
    return weights / weights.sum()


def _parents(count: int, parents: int, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The parent of each of `count` taxa, every parent at least once; larger parents have more children."""
    return np.concatenate((np.arange(parents), rng.choice(parents, count - parents, p=share)))


def bioscan_labels(count: int, seed: int = 0) -> np.ndarray:
    """Nested labels int64 [count, 4] with BIOSCAN-5M's number of taxa and of labelled specimens per rank.

    Within each lowest known rank the taxa follow Zipf's law with the exponent that gives the largest its share. At
    `count` = 5 million every taxon occurs; the smaller a sample, the more of the tail is missing, as in a real one.
    """
    rng = np.random.default_rng(seed)
    shares = [_zipf(taxa, largest) for taxa, largest in zip(NUM_TAXA, SHARE_OF_LARGEST, strict=True)]
    lineage = [np.arange(NUM_TAXA[0])[:, None]]  # per rank: taxa x ranks down to it
    for rank in range(1, len(NUM_TAXA)):
        above = shares[rank - 1] ** 0.75 / (shares[rank - 1] ** 0.75).sum() if rank > 1 else shares[0]
        parent = _parents(NUM_TAXA[rank], NUM_TAXA[rank - 1], above, rng)
        if rank > 1:  # the tail's taxa stand under any parent, the first taxa under the largest
            parent = np.concatenate((parent[:1], rng.permutation(parent[1:])))
        lineage.append(np.column_stack((lineage[-1][parent], np.arange(NUM_TAXA[rank]))))
    lowest = np.searchsorted(-np.array(SHARE_LABELLED), -rng.random(count)) - 1  # -1: no label at all
    labels = np.full((count, len(NUM_TAXA)), -1, dtype=np.int64)
    for rank in range(len(NUM_TAXA)):
        rows = np.flatnonzero(lowest == rank)
        taxa = rng.choice(NUM_TAXA[rank], len(rows), p=shares[rank])
        some = min(len(rows), NUM_TAXA[rank])
        if len(rows) > 3 * NUM_TAXA[rank]:
            taxa[rng.permutation(len(rows))[:some]] = np.arange(some)
        labels[rows, : rank + 1] = lineage[rank][taxa]
    return labels


def table_labels(path: Path) -> np.ndarray:
    """Labels int64 [N, 4] of a parquet table with the columns order, family, genus, species; rows as they stand.

    A taxon is its whole lineage: equal names under different parents are different.
    """
    table = pq.read_table(path, columns=list(RANKS))
    labels, lineage = [], None
    for rank in RANKS:
        name = pc.fill_null(table[rank].cast("string"), "")
        lineage = name if lineage is None else pc.binary_join_element_wise(lineage, name, "\t")
        codes = pc.dictionary_encode(lineage.combine_chunks()).indices.to_numpy()
        labels.append(np.where(pc.equal(name, "").to_numpy(zero_copy_only=False), -1, codes))
    return np.stack(labels, axis=1).astype(np.int64)


def stored_order(labels: np.ndarray, layout: Layout, seed: int = 0) -> np.ndarray:
    """The permutation int64 [N] that an ingest with this layout stores."""
    _, lineage = np.unique(labels, axis=0, return_inverse=True)
    return ingest_plan.stored_order(len(labels), seed, layout, lineage.reshape(-1))


def labels_of(name: str, seed: int = 0) -> np.ndarray:
    """`bioscan:N` = N generated specimens; anything else is the path of a parquet table."""
    kind, colon, count = name.partition(":")
    if kind == "bioscan" and colon:
        return bioscan_labels(int(count), seed)
    return table_labels(Path(name))
