"""From queries to references, nearest first: every reference on COI's columns is compared, or shown to be farther.

A query that stands on columns is compared with all references that do (`train.reference.scan`). Other queries, and
those to which the few other references may be nearest, are searched by seeds and aligned (`train.reference.general`).
Letters that both know count as overlap. What a reference does not know of a query is neither right nor wrong; it is
counted as differing as often as the query differs from its nearest reference, and `UNCOVERED` more: `difference` is in
edits and ranks references of any overlap. (bold val, species top-1 in %, whole / 100 nt: plain edits 99.28 / 97.92,
this 99.34 / 97.98; on damaged barcodes plain edits lose 4 points to references that hide the damage by being short.)

Legend: N queries, T hits of all queries, K hits of one, H references (different barcodes), S slots (`planes`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from train.reference.seeds import Budget, SeedIndex

if TYPE_CHECKING:  # importing numba takes as long as all the rest of a command
    from train.reference.planes import Planes

DISTANCES = 2  # version of what `difference` means: rules that were fitted on another one do not hold
UNCOVERED = 0.05  # differences per nucleotide of the query that a reference does not know, beyond the query's own
MIN_OVERLAP = 60  # nucleotides that both know,
MIN_SHARE = 0.8  # or as much of a shorter query
BATCH = 64  # queries a thread takes at a time


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a search may cost and how far it looks."""

    budget: Budget = field(default_factory=Budget)  # of what is searched by seeds
    nearest: int = 64  # references told
    share: float = 0.5  # of the first candidate's seeds: with fewer a candidate is not aligned as near
    others: int = 2  # of other species than the nearest's, told beside them
    slack: float = 0.04  # differences per nucleotide beyond the nearest's up to which references are told
    other_slack: float = 0.15  # the same for those of other species


@dataclass(frozen=True)
class Hits:
    """Compared references of N queries, the hits of query i in start[i] .. start[i + 1], nearest first."""

    start: np.ndarray  # int64 [N + 1]
    reference: np.ndarray  # int64 [T], one of H
    distance: np.ndarray  # int64 [T], edits in the overlap
    overlap: np.ndarray  # int64 [T], nucleotides that both know
    difference: np.ndarray  # float64 [T], edits that rank, the uncovered part included
    length: np.ndarray  # int64 [N], nucleotides of the query
    strand: np.ndarray  # int64 [N], +1 as given, -1 the other one
    exact: np.ndarray  # bool [N], no reference can be nearer than the first

    @property
    def query(self) -> np.ndarray:
        """The query of each hit, int64 [T]."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    @property
    def identity(self) -> np.ndarray:
        """Share of the overlap that agrees, float64 [T]."""
        return 1.0 - self.distance / np.maximum(self.overlap, 1)


@dataclass(frozen=True)
class Found:
    """What one query found."""

    reference: np.ndarray  # int64 [K]
    distance: np.ndarray  # int64 [K]
    overlap: np.ndarray  # int64 [K]
    difference: np.ndarray  # float64 [K], ascending
    strand: int = 1
    exact: bool = False

    @property
    def least(self) -> float:
        """The difference of the nearest, infinite where nothing was found."""
        return float(self.difference[0]) if len(self.difference) else np.inf


_NOTHING = np.empty(0, dtype=np.int64)
NONE = Found(_NOTHING, _NOTHING, _NOTHING, np.empty(0))


@dataclass(frozen=True)
class Targets:
    """H references as a search sees them."""

    planes: Planes
    letters: np.ndarray  # uint8, ASCII
    starts: np.ndarray  # int64 [H + 1]
    index: SeedIndex  # of `planes.rest`: numbers of the index are places there
    group: np.ndarray  # int64 [H], references of one species are equal; -1 = unknown
    slot_group: np.ndarray  # int64 [S], the same of slots

    def barcode(self, number: int) -> str:
        """Return a reference's letters."""
        return self.letters[self.starts[number] : self.starts[number + 1]].tobytes().decode("ascii")


def search(
    queries: Sequence[str],
    targets: Targets,
    options: SearchOptions,
    threads: int = 1,
    without: Sequence[int] | None = None,
) -> Hits:
    """Find the nearest references of clean barcodes.

    Args:
        queries: N clean barcodes on either strand; "" finds nothing.
        targets: what is searched.
        options: what a search may cost.
        threads: of compiled code that lets others run.
        without: a group for each query, as if there were no reference of it; -1 = none.
    """
    apart = np.full(len(queries), -1) if without is None else np.asarray(without, dtype=np.int64)
    work = _work(targets, options)
    parts = [(queries[first : first + BATCH], apart[first : first + BATCH]) for first in range(0, len(queries), BATCH)]
    if threads > 1 and len(parts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(itertools.chain.from_iterable(pool.map(work, parts)))
    else:
        found = list(itertools.chain.from_iterable(map(work, parts)))
    joined = found or [NONE]
    return Hits(
        start=np.cumsum([0, *(len(one.reference) for one in found)]),
        reference=np.concatenate([one.reference for one in joined]),
        distance=np.concatenate([one.distance for one in joined]),
        overlap=np.concatenate([one.overlap for one in joined]),
        difference=np.concatenate([one.difference for one in joined]),
        length=np.array([len(query) for query in queries], dtype=np.int64),
        strand=np.array([one.strand for one in found], dtype=np.int64),
        exact=np.array([one.exact for one in found], dtype=bool),
    )


def _work(targets: Targets, options: SearchOptions) -> Callable[[tuple[Sequence[str], np.ndarray]], list[Found]]:
    """Return what a thread does with a batch."""
    from train.reference import by_columns, general

    def work(part: tuple[Sequence[str], np.ndarray]) -> list[Found]:
        queries, without = part
        placed = by_columns.find(queries, targets, options, without)
        for row, (query, one) in enumerate(zip(queries, placed, strict=True)):
            if one.open and query:
                other = general.find(query, targets, options, int(without[row]))
                placed[row] = by_columns.joined(one, other, len(query) - query.count("N"))
        return [one.found for one in placed]

    return work
