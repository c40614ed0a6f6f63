"""The general way: seeds choose candidates among the references without columns, edlib aligns them, on either strand.

It serves other markers, long mitochondrial pieces and whatever stands on no column. An answer is exact where every
reference that could be nearer would share more seeds than some that were passed over (the k-mer lemma: e edits destroy
at most e k seeds).
"""

from __future__ import annotations

import numpy as np

from engine.signals.barcodes import orient, reverse_complement
from train.reference.align import align
from train.reference.search import MIN_OVERLAP, MIN_SHARE, NONE, UNCOVERED, Found, SearchOptions, Targets
from train.reference.seeds import Candidates

_WIDE = 0.9  # of the greatest overlap: references that say how much the query differs


def find(query: str, targets: Targets, options: SearchOptions, without: int) -> Found:
    """Search both strands of a clean barcode, the coding one first."""
    oriented, strand = orient(query)
    best = _one_strand(oriented, strand, targets, options, without)
    other = _one_strand(reverse_complement(oriented), -strand, targets, options, without)
    return other if other.least < best.least else best


def ranked(distance: np.ndarray, overlap: np.ndarray, length: int) -> np.ndarray:
    """`difference` of aligned candidates: [C]."""
    wide = overlap >= _WIDE * overlap.max()
    rate = (distance[wide] / np.maximum(overlap[wide], 1)).min()
    return distance + (UNCOVERED + rate) * np.maximum(0, length - overlap)


def _one_strand(query: str, strand: int, targets: Targets, options: SearchOptions, without: int) -> Found:
    found = targets.index.lookup(query, options.budget)
    rest = targets.planes.rest
    if without >= 0:
        kept = targets.group[rest[found.reference]] != without
        found = Candidates(found.reference[kept], found.shared[kept], found.shift[kept], found.passed_over)
    if not len(found.reference):
        return NONE
    number = rest[found.reference].astype(np.int64)
    near, far = _chosen(found.shared, targets.group[number], options)
    parts = []
    for rows, slack in ((near, options.slack), (far, options.other_slack)):
        references = [targets.barcode(one) for one in number[rows].tolist()]
        parts.append(align(query, references, found.shift[rows].tolist(), max(8, int(slack * len(query)))))
    distance, overlap = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    rows = np.concatenate([near, far])
    length = len(query) - query.count("N")
    told = (distance >= 0) & (overlap >= min(MIN_OVERLAP, MIN_SHARE * length))
    if not told.any():
        return NONE
    reference, distance, overlap = number[rows][told], distance[told], overlap[told]
    difference = ranked(distance, overlap, length)
    order = np.lexsort((reference, difference))
    passed_over = max([found.passed_over, *np.delete(found.shared, rows).tolist()])
    least = float(difference[order[0]])
    needed = length - least / UNCOVERED - (targets.index.k - 1) - targets.index.k * least  # seeds of anything nearer
    exact = needed > max(passed_over, 0) and "N" not in query
    return Found(reference[order], distance[order], overlap[order], difference[order], strand, exact)


def _chosen(shared: np.ndarray, kinds: np.ndarray, options: SearchOptions) -> tuple[np.ndarray, np.ndarray]:
    """Choose candidates to align, by place: the first ones, and the first of a few species unlike the first's."""
    names, first = np.unique(kinds, return_index=True)
    far = np.sort(first[(names >= 0) & (names != kinds[0])])[: options.others]
    near = np.flatnonzero(shared[: options.nearest] >= options.share * shared[0])
    return near[~np.isin(near, far)], far
