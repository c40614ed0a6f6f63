"""From queries to the nearest references, many at a time: batches, threads, and what a search may cost.

`align` says what nearest means, `nearest` how one query is searched. Queries are read on their coding strand, and on
the other one too where that finds nothing near.

Legend: N queries, T hits of all queries, H references (different barcodes).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import cached_property
from queue import SimpleQueue

import numpy as np

from engine.signals.barcodes import orient_batch
from engine.signals.nucleotides import CODES, codes
from train.reference.clusters import Clusters
from train.reference.nearest import search_batch
from train.reference.seeds import Scratch, SeedIndex, read_only

_BATCH = 64  # queries a thread takes at a time
_HITS = 128  # references of a query that are told at most, beside those of other species
_MEMBERS = 1 << 16  # references compared with a query at most


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What one round of a search may cost and how far it looks."""

    entries: int = 30_000  # of the index, read for a query
    least: int = 24  # seeds read even where they have more entries
    leaders: int = 256  # compared at most
    gapped: int = 64  # of them, where the query lies on the first ones with gaps
    share: float = 0.2  # of the first leader's seeds: with fewer a leader is not compared
    others: int = 2  # nearest references of other species than the first's, told beside the nearest
    slack: float = 0.04  # edits per letter beyond the nearest's up to which references are hits
    other_slack: float = 0.15  # the same for those of other species


FIRST = SearchOptions()
WIDE = SearchOptions(entries=600_000, leaders=1024, gapped=256)
ROUNDS = (FIRST, WIDE)


@dataclass(frozen=True)
class Hits:
    """Aligned references of N queries, the hits of query i in start[i] .. start[i + 1], nearest first."""

    start: np.ndarray  # int64 [N + 1]
    reference: np.ndarray  # int64 [T], one of H
    distance: np.ndarray  # int64 [T], edits in the overlap
    overlap: np.ndarray  # int64 [T], letters that both know
    difference: np.ndarray  # float64 [T], edits that rank, the uncovered part included
    length: np.ndarray  # int64 [N], nucleotides of the query
    strand: np.ndarray  # int64 [N], +1 as given, -1 the other one
    rounds: np.ndarray  # int64 [N], searched: more than one where a nearer reference may have been passed over

    @property
    def query(self) -> np.ndarray:
        """The query of each hit, int64 [T]."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    @property
    def exact(self) -> np.ndarray:
        """Whether it is proven that no reference is nearer, bool [N]: only where the nearest does not differ at all."""
        found = np.diff(self.start) > 0
        found[found] = self.difference[self.start[:-1][found]] == 0
        return found

    @property
    def identity(self) -> np.ndarray:
        """Share of the overlap that agrees, float64 [T]."""
        return 1.0 - self.distance / np.maximum(self.overlap, 1)


@dataclass(frozen=True)
class Targets:
    """H references as a search sees them."""

    index: SeedIndex  # of the leaders
    clusters: Clusters
    letters: np.ndarray  # uint8, ASCII, one reference after another
    starts: np.ndarray  # int64 [H + 1], where each begins
    group: np.ndarray  # int64 [H], references of one species are equal; -1 = unknown

    @classmethod
    def build(cls, barcodes: Sequence[str]) -> "Targets":
        """Cluster and index different clean barcodes, which are of no group."""
        letters = np.frombuffer("".join(barcodes).encode("ascii"), dtype=np.uint8)
        return cls.of(letters, np.cumsum([0, *map(len, barcodes)], dtype=np.int64))

    @classmethod
    def of(cls, letters: np.ndarray, starts: np.ndarray) -> "Targets":
        """Do the same for those that are laid out as below."""
        clusters = Clusters.build(letters, starts)
        index = SeedIndex.build(letters, starts[clusters.leader], starts[clusters.leader + 1])
        return cls(index, clusters, letters, starts, np.full(len(starts) - 1, -1))

    @cached_property
    def arrays(self) -> tuple[object, ...]:
        """As compiled code takes them."""
        clusters = tuple(read_only(getattr(self.clusters, name)) for name in Clusters.names())
        texts = read_only(self.letters), read_only(self.starts), CODES
        return self.index.arrays, clusters, texts, read_only(self.group)


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
        threads: that search at the same time; compiled code lets others run.
        without: a group for each query, as if there were no reference of it; -1 = none.
    """
    apart = np.full(len(queries), -1) if without is None else np.asarray(without, dtype=np.int64)
    settings = np.array([astuple(one) for one in rounds])
    width = _HITS + max(one.others for one in rounds)
    free: SimpleQueue[tuple[object, np.ndarray]] = SimpleQueue()
    for _ in range(max(1, threads)):
        free.put((Scratch(len(targets.clusters.leader)).arrays, np.empty((_MEMBERS, 4), dtype=np.int32)))
    arrays = targets.arrays

    def work(first: int) -> tuple[np.ndarray, ...]:
        given = queries[first : first + _BATCH]
        oriented = orient_batch(given)
        ends = np.cumsum([0, *map(len, oriented)])
        hits, ranked = np.empty((len(given), width, 3), dtype=np.int64), np.empty((len(given), width))
        said = np.empty((len(given), 3), dtype=np.int64)
        scratch = free.get()
        batch = (codes("".join(oriented)), ends), apart[first : first + _BATCH]
        search_batch(*batch, arrays, settings, scratch, (hits, ranked, said))
        free.put(scratch)
        turned = np.array([one != other for one, other in zip(given, oriented, strict=True)], dtype=bool)
        kept = np.arange(width) < said[:, :1]
        return hits[kept], ranked[kept], said, np.where(turned ^ said[:, 1].astype(bool), -1, 1)

    starts = range(0, len(queries), _BATCH)
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(work, starts))
    else:
        parts = [work(first) for first in starts]
    nothing = np.empty((0, 3), np.int64), np.empty(0), np.empty((0, 3), np.int64), np.empty(0, np.int64)
    hits, ranked, said, strand = (np.concatenate(columns) for columns in zip(nothing, *parts, strict=True))
    return Hits(
        start=np.concatenate([[0], np.cumsum(said[:, 0])]),
        reference=hits[:, 0],
        distance=hits[:, 1],
        overlap=hits[:, 2],
        difference=ranked,
        length=np.array([len(query) for query in queries], dtype=np.int64),
        strand=strand,
        rounds=said[:, 2],
    )
