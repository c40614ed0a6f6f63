"""From queries to aligned references: seeds choose candidates, exact alignment ranks them, on whichever strand fits.

Candidates are those that share the most of the query's rarest k-mers, and the first of each of a few other species, so
that the nearest other species is known. A search goes on in wider rounds while a nearer reference may have been passed
over: a reference of fewer edits than the nearest so far has the seeds that were read, but those that its edits change.
If that may be no more seeds than the last aligned candidate has, the next round reads and aligns more.

What a reference does not cover of a query is neither right nor wrong; it is counted as differing as often as the query
differs from its nearest reference, and `UNCOVERED` more: `difference` is in edits and ranks references of any overlap.
(bold val, species top-1 in %, whole / 100 nt: plain edits 99.28 / 97.92, this 99.34 / 97.98; on damaged barcodes plain
edits lose 4 points to references that hide the damage by being short.)

Legend: N queries, T hits of all queries, C candidates of one, H references (different barcodes).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from engine.signals.barcodes import orient_batch, reverse_complement
from train.reference.align import align
from train.reference.seeds import Budget, Candidates, SeedIndex

UNCOVERED = 0.05  # differences per nucleotide of the query that a reference does not cover, beyond the query's own
MIN_OVERLAP = 60  # nucleotides, or a third of a shorter query
_WIDE = 0.9  # of the greatest overlap: references that say how much the query differs
_SUSPECT = 0.12  # share of differences from which the other strand is tried too
_UNRELATED = 0.3  # differences per uncovered nucleotide when strands are compared: unrelated ones align at about that
_LOST = 6  # seeds among those read that an edit costs a reference; of all k-mers it changes k at most
_BATCH = 64  # queries a thread takes at a time


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What one round of a search may cost and how far it looks."""

    budget: Budget = field(default_factory=Budget)
    nearest: int = 64  # candidates aligned
    share: float = 0.5  # of the first candidate's seeds: with fewer a candidate is not aligned as near
    others: int = 2  # of other species than the first candidate's, aligned beside them
    slack: float = 0.04  # differences per nucleotide beyond the nearest's up to which candidates are told
    other_slack: float = 0.15  # the same for those of other species


FIRST = SearchOptions()
WIDE = SearchOptions(budget=Budget(postings=1_000_000, least=40, candidates=2048), nearest=512, share=0.2)
ROUNDS = (
    FIRST,
    SearchOptions(budget=Budget(postings=200_000, least=24, candidates=1024), nearest=256, share=0.3),
    WIDE,
)


@dataclass(frozen=True)
class Hits:
    """Aligned references of N queries, the hits of query i in start[i] .. start[i + 1], nearest first."""

    start: np.ndarray  # int64 [N + 1]
    reference: np.ndarray  # int64 [T], one of H
    distance: np.ndarray  # int64 [T], edits in the overlap
    overlap: np.ndarray  # int64 [T], aligned columns, letters of the reference
    difference: np.ndarray  # float64 [T], edits that rank, the uncovered part included
    length: np.ndarray  # int64 [N], nucleotides of the query
    strand: np.ndarray  # int64 [N], +1 as given, -1 the other one
    rounds: np.ndarray  # int64 [N], searched: more than one where a nearer reference may have been passed over

    @property
    def query(self) -> np.ndarray:
        """The query of each hit, int64 [T]."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    @property
    def identity(self) -> np.ndarray:
        """Share of aligned columns that agree, float64 [T]."""
        return 1.0 - self.distance / np.maximum(self.overlap, 1)


@dataclass(frozen=True)
class _Aligned:
    """What one query found on one strand."""

    reference: np.ndarray
    distance: np.ndarray
    overlap: np.ndarray
    difference: np.ndarray
    cost: float  # of the nearest, for choosing the strand: differences per nucleotide of the query
    doubtful: bool  # a nearer reference may have been passed over


_NOTHING = np.empty(0, dtype=np.int64)
_NONE = _Aligned(_NOTHING, _NOTHING, _NOTHING, np.empty(0), np.inf, False)


@dataclass(frozen=True)
class Targets:
    """H references as a search sees them."""

    index: SeedIndex
    barcode: Callable[[int], str]  # reference -> its letters
    group: np.ndarray  # int64 [H], references of one species are equal; -1 = unknown

    def candidates(self, query: str, budget: Budget, without: int) -> Candidates:
        """Of one query, those of the group `without` left out."""
        found = self.index.lookup(query, budget)
        if without < 0:
            return found
        kept = self.group[found.reference] != without
        return Candidates(found.reference[kept], found.shared[kept], found.shift[kept], found.seeds)


def search(
    queries: Sequence[str],
    targets: Targets,
    rounds: Sequence[SearchOptions],
    threads: int = 1,
    without: Sequence[int] | None = None,
) -> Hits:
    """Find the nearest references of clean barcodes.

    Args:
        queries: N clean barcodes on either strand; "" finds nothing.
        targets: the references.
        rounds: at least one; each query goes on to the next while a nearer reference may have been passed over.
        threads: numpy and edlib let others run while they work.
        without: a group for each query, as if there were no reference of it; -1 = none.
    """
    apart = [-1] * len(queries) if without is None else without

    def work(first: int) -> list[tuple[_Aligned, int, int]]:
        batch = slice(first, first + _BATCH)
        given = queries[batch]
        return [
            _all_rounds(*one, targets, rounds) for one in zip(given, orient_batch(given), apart[batch], strict=True)
        ]

    starts = range(0, len(queries), _BATCH)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = [one for batch in pool.map(work, starts) for one in batch]
    else:
        found = [one for first in starts for one in work(first)]
    parts = [one for one, _, _ in found] or [_NONE]
    return Hits(
        start=np.cumsum([0, *(len(one.reference) for one, _, _ in found)]),
        reference=np.concatenate([one.reference for one in parts]),
        distance=np.concatenate([one.distance for one in parts]),
        overlap=np.concatenate([one.overlap for one in parts]),
        difference=np.concatenate([one.difference for one in parts]),
        length=np.array([len(query) for query in queries], dtype=np.int64),
        strand=np.array([strand for _, strand, _ in found], dtype=np.int64),
        rounds=np.array([searched for _, _, searched in found], dtype=np.int64),
    )


def _all_rounds(
    given: str, oriented: str, without: int, targets: Targets, rounds: Sequence[SearchOptions]
) -> tuple[_Aligned, int, int]:
    """Search until nothing nearer is likely; returns what was found, the strand, and the rounds that took."""
    searched, best, strand = 0, replace(_NONE, doubtful=True), 1
    while best.doubtful and searched < len(rounds):
        best, strand = _both_strands(given, oriented, without, targets, rounds[searched])
        searched += 1
    return best, strand, searched


def _both_strands(
    given: str, oriented: str, without: int, targets: Targets, options: SearchOptions
) -> tuple[_Aligned, int]:
    """Search the coding strand, and the other one where that finds nothing near."""
    strand = 1 if oriented == given else -1
    best = _one_strand(oriented, without, targets, options)
    if given and best.cost > _SUSPECT:
        other = _one_strand(reverse_complement(oriented), without, targets, options)
        if other.cost < best.cost:
            return other, -strand
    return best, strand


def _one_strand(query: str, without: int, targets: Targets, options: SearchOptions) -> _Aligned:
    found = targets.candidates(query, options.budget, without)
    if not len(found.reference):  # where seeds were read, all that they found is of the group left out
        return replace(_NONE, doubtful=found.seeds > 0)
    near, far = _chosen(found, targets.group, options)
    parts = []
    for rows, slack in ((near, options.slack), (far, options.other_slack)):
        references = [targets.barcode(number) for number in found.reference[rows].tolist()]
        parts.append(align(query, references, found.shift[rows].tolist(), max(8, int(slack * len(query)))))
    distance, overlap = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    reference = found.reference[np.concatenate([near, far])]
    told = (distance >= 0) & (overlap >= min(MIN_OVERLAP, len(query) // 3))
    if not told.any():
        return replace(_NONE, doubtful=True)
    reference, distance, overlap = reference[told], distance[told], overlap[told]
    uncovered = np.maximum(0, len(query) - overlap)
    wide = overlap >= _WIDE * overlap.max()
    rate = (distance[wide] / np.maximum(overlap[wide], 1)).min()
    difference = distance + (UNCOVERED + rate) * uncovered
    order = np.lexsort((reference, difference))
    least = float(difference[order[0]])
    doubtful = least > 0 and bool(found.seeds - _LOST * max(0, least - 1) <= found.shared[near[-1]])
    cost = float((distance + _UNRELATED * uncovered).min()) / len(query)
    return _Aligned(reference[order], distance[order], overlap[order], difference[order], cost, doubtful)


def _chosen(found: Candidates, group: np.ndarray, options: SearchOptions) -> tuple[np.ndarray, np.ndarray]:
    """Choose the candidates to align: the first ones, and apart from them the first of a few other species."""
    kinds = group[found.reference]
    names, first = np.unique(kinds, return_index=True)
    far = np.sort(first[(names >= 0) & (names != kinds[0])])[: options.others]
    near = np.flatnonzero(found.shared[: options.nearest] >= options.share * found.shared[0])
    return near[~np.isin(near, far)], far
