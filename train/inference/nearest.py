"""The nearest references of a library, by the taxa of a model: what the expert `library` and the rules read.

A lineage is as far as its nearest reference, in edits counted as in a whole barcode: a fragment has fewer letters to
differ in. A taxon of which no reference was found is `step` edits farther than the taxon that it lies in, so that a
species without references is still nearer than those of another genus.

Legend: N queries, b of a chunk, M records of the library, R ranks, T_r taxa of a rank, L lineages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from engine.specimens.taxonomy import RANKS, Taxonomy
from train.inference.calibration import LIBRARY_INPUTS
from train.inference.scoring import Scorer
from train.reference import Hits, Library, RankScores, rank_scores

_SPECIES = RANKS.index("species")
WHOLE = 658  # nucleotides of a barcode: the edits of a fragment count as those that a whole one would have
MORE = 0.02  # far less than half an edit, whatever their number
FAR = 0.3  # differences per nucleotide between barcodes that have nothing in common: taxa of which none was found


@dataclass(frozen=True)
class Nearest:
    """The nearest references of N queries, taxa numbered as the model's."""

    ranks: tuple[RankScores, ...]
    length: np.ndarray  # int64 [N], nucleotides of the query
    known: tuple[np.ndarray, ...] = ()  # per rank bool [T_r], the taxa of which the library has a barcode; () = all

    @cached_property
    def _begin(self) -> list[np.ndarray]:
        numbers = np.arange(len(self.length) + 1)
        return [np.searchsorted(one.query, numbers) for one in self.ranks]

    @cached_property
    def least(self) -> np.ndarray:
        """Edits to the nearest reference of all, float64 [N]; inf where none was found."""
        least = np.full(len(self.length), np.inf)
        for one in self.ranks:
            np.minimum.at(least, one.query, one.difference)
        return least

    @cached_property
    def references(self) -> np.ndarray:
        """Specimens that speak for the nearest species, int64 [N]."""
        species = self.ranks[_SPECIES]
        found = np.zeros(len(self.length), dtype=np.int64)
        found[species.query[::-1]] = species.records[::-1]
        return found

    def take(self, rows: np.ndarray) -> "Nearest":
        """Return what was found for some queries, int64 [n], rising."""
        place = np.full(len(self.length), -1)
        place[rows] = np.arange(len(rows))
        ranks = []
        for one in self.ranks:
            kept = place[one.query] >= 0
            parts = (getattr(one, name)[kept] for name in ("taxon", "difference", "records", "hit"))
            ranks.append(RankScores(place[one.query[kept]], *parts))
        return Nearest(tuple(ranks), self.length[rows], self.known)

    def found(self, scorer: Scorer, rows: slice) -> np.ndarray:
        """Return the edits to the nearest reference of every candidate, float32 [b, C]; inf where none was found.

        Of equally near taxa the one with more specimens there is nearer, by MORE edits for e times as many.
        """
        found = np.full((rows.stop - rows.start, len(scorer.candidates)), np.inf, dtype=np.float32)
        for rank, (one, begin) in enumerate(zip(self.ranks, self._begin, strict=True)):
            span = slice(begin[rows.start], begin[rows.stop])
            edits = one.difference[span] - MORE * np.log1p(one.records[span])
            found[one.query[span] - rows.start, int(scorer.first[rank]) + one.taxon[span]] = edits
        return found

    def leaf_distances(self, scorer: Scorer, rows: slice, step: float) -> Tensor:
        """Return the edits of a whole barcode beyond the nearest reference of all, float32 [b, L].

        0 where nothing related was found.
        """
        found = self.found(scorer, rows)
        whole = torch.from_numpy(WHOLE / np.maximum(self.length[rows], 1).astype(np.float32)).to(scorer.device)[:, None]
        distance = (torch.from_numpy(found).to(scorer.device) * whole).clamp_(max=FAR * WHOLE)
        least = distance.amin(1, keepdim=True)
        for rank, size in enumerate(scorer.sizes):
            taxa = slice(int(scorer.first[rank]), int(scorer.first[rank]) + size)
            parent = scorer.parent[taxa]
            above = torch.where(parent >= 0, distance[:, parent.clamp(min=0)], least) + step
            distance[:, taxa] = torch.minimum(distance[:, taxa], above)
        return distance[:, scorer.leaf_candidate] - least

    def evidence(self, path: np.ndarray, first: int) -> dict[str, np.ndarray]:
        """Return LIBRARY_INPUTS of answered lineages int64 [b, R], those of the queries from `first` on."""
        rows = np.arange(first, first + len(path))
        far = FAR * self.length[rows]
        own, other = (np.tile(far[:, None], len(RANKS)) for _ in range(2))
        for rank, (one, begin) in enumerate(zip(self.ranks, self._begin, strict=True)):
            span = slice(begin[first], begin[first + len(path)])
            query, taxon, difference = one.query[span] - first, one.taxon[span], one.difference[span]
            answered = taxon == path[query, rank]
            for told, which in ((own, answered), (other, ~answered)):
                np.minimum.at(told[:, rank], query[which], difference[which])
        return dict(
            zip(
                LIBRARY_INPUTS,
                (np.log1p(own), np.log1p(other), np.log(np.maximum(self.length[rows], 1.0))),
                strict=True,
            )
        )

    def far(self, path: np.ndarray, edits: np.ndarray, first: int) -> np.ndarray:
        """Return how far answered taxa are at most, float64 [b, R]: `most_edits` per letter to their nearest reference.

        0 for a taxon of which the library has no barcode: then nothing follows from finding none.

        Args:
            path: int64 [b, R], answered lineages of the queries from `first` on.
            edits: float64 [b, R], of `evidence`, their log1p.
            first: place of the first query.
        """
        length = np.maximum(self.length[first : first + len(path)], 1)[:, None]
        there = np.ones(path.shape, dtype=bool)
        for rank, known in enumerate(self.known):
            if len(known):
                there[:, rank] = known[np.maximum(path[:, rank], 0)] | (path[:, rank] < 0)
        return np.where(there, most_edits(np.expm1(edits)) / length, 0.0)


def most_edits(edits: np.ndarray) -> np.ndarray:
    """Return the edits that another stretch as long may well have: so that a few letters say no more than they can.

    Three standard errors of a count: 6 edits of 100 letters may be 14, 40 of 658 59. With 1.645 the caps of moths with
    their library let 16% of other families be named by 100 letters (results/unknown.md).
    """
    return edits + 3.0 * np.sqrt(edits + 1.0)


class Combiner:
    """A library whose records are labelled with a model's taxa."""

    def __init__(self, library: Library, taxonomy: Taxonomy) -> None:
        self.library = library
        self.labels = taxonomy.encode(library.names)  # int64 [M, R]
        place = {name: number for number, name in enumerate(library.taxonomy.names[_SPECIES])}
        barcoded = library.records["haplotype"].to_numpy() >= 0
        self._known = tuple(
            np.bincount(self.labels[barcoded, rank] + 1, minlength=size + 1)[1:] > 0
            for rank, size in enumerate(taxonomy.sizes)
        )
        self._species = np.array([place.get(name, -1) for name in taxonomy.names[_SPECIES]], dtype=np.int64)

    def find(self, barcodes: Sequence[str], *, without: np.ndarray | None = None, threads: int = 1) -> Nearest:
        """Search clean barcodes.

        `without` int64 [N] names a species of the model for each, as if the library had no reference of it, -1 = none.
        """
        groups = None
        if without is not None:
            groups = np.where(without >= 0, self._species[np.maximum(without, 0)], -1).tolist()
        return self.of(self.library.search(barcodes, threads=threads, without=groups), without)

    def of(self, hits: Hits, without: np.ndarray | None = None) -> Nearest:
        """Return what a search of this library found."""
        ranks = (rank_scores(self.library, hits, rank, self.labels, without) for rank in range(len(RANKS)))
        return Nearest(tuple(ranks), hits.length, self._known)
