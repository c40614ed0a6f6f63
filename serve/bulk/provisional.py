"""Provisional taxa: barcodes that are flagged as of an unknown species, put together by their distance.

Two barcodes belong together where they differ by `distance` of their aligned nucleotides or less, and so does whatever
is joined to them by others (single linkage, as in the first step of BINs). Taxa are numbered by content, those with
most records first and of these that with the first barcode of the alphabet: the order of the input says nothing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from engine.specimens.taxonomy import RANKS

PREFIX = "TF"
_COVERED = 0.8  # of the shorter barcode that must be aligned
_COLUMNS = ("barcode", "rank", *RANKS, "nearest_name", "nearest_identity")


@dataclass(frozen=True)
class Provisional:
    """A provisional taxon."""

    name: str  # "Genus sp. TF-1", of the deepest taxon above the species that its members agree on
    size: int  # records
    nearest: str | None  # the known taxon nearest to one of its members
    identity: float | None  # to that


@dataclass
class _Barcode:
    """What is known of the records with one barcode."""

    records: int = 0
    lineages: set[tuple[str, ...]] = field(default_factory=set)  # down to the answered rank, species left out
    nearest: tuple[float, str] | None = None


def provisional_taxa(tables: Iterable[pa.Table], distance: float) -> dict[str, Provisional]:
    """Return the provisional taxon of every barcode.

    Args:
        tables: of records that are flagged and have a barcode.
        distance: within a taxon, share of aligned nucleotides.
    """
    found: dict[str, _Barcode] = {}
    for table in tables:
        for row in table.select(_COLUMNS).to_pylist():
            one = found.setdefault(row["barcode"], _Barcode())
            one.records += 1
            depth = RANKS.index(row["rank"]) + 1 if row["rank"] in RANKS else len(RANKS) if row["rank"] else 0
            one.lineages.add(tuple(row[rank] or "" for rank in RANKS[: min(depth, len(RANKS) - 1)]))
            if row["nearest_name"] is not None:
                this = (row["nearest_identity"], row["nearest_name"])
                one.nearest = this if one.nearest is None else max(one.nearest, this)
    barcodes = sorted(found)
    members: dict[int, list[str]] = {}
    for barcode, cluster in zip(barcodes, clusters(barcodes, distance).tolist(), strict=True):
        members.setdefault(cluster, []).append(barcode)
    sizes = Counter({cluster: sum(found[one].records for one in each) for cluster, each in members.items()})
    order = sorted(members, key=lambda cluster: (-sizes[cluster], members[cluster][0]))
    result: dict[str, Provisional] = {}
    for number, cluster in enumerate(order, 1):
        each = [found[one] for one in members[cluster]]
        near = max((one.nearest for one in each if one.nearest is not None), default=None)
        name = f"{_common([lineage for one in each for lineage in one.lineages])} sp. {PREFIX}-{number}"
        taxon = Provisional(name, sizes[cluster], near[1] if near else None, near[0] if near else None)
        result |= dict.fromkeys(members[cluster], taxon)
    return result


def clusters(barcodes: Sequence[str], distance: float) -> np.ndarray:
    """Return the cluster of each of N different clean barcodes, int64 [N]."""
    if len(barcodes) < 2:
        return np.arange(len(barcodes))
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    from train.reference.search import ROUNDS, Targets, search

    count = len(barcodes)
    hits = search(barcodes, Targets.build(barcodes), ROUNDS)
    lengths = np.array([len(barcode) for barcode in barcodes])
    shorter = np.minimum(lengths[hits.query], lengths[hits.reference])
    near = (hits.distance <= distance * hits.overlap + 1e-9) & (hits.overlap >= _COVERED * shorter)
    pairs = (np.ones(near.sum()), (hits.query[near], hits.reference[near]))
    return connected_components(coo_array(pairs, shape=(count, count)), directed=False)[1]


def _common(lineages: Sequence[Sequence[str]]) -> str:
    """Return the deepest taxon on which all lineages that reach its rank agree."""
    deepest = "Animal"
    for place in range(len(RANKS) - 1):
        names = {lineage[place] for lineage in lineages if len(lineage) > place and lineage[place]}
        if len(names) > 1:
            break
        deepest = names.pop() if names else deepest
    return deepest
