"""PROTAX's published formula on our own search: a peer for the probabilities of a library alone.

At each node of the taxonomy the outcome is one of its children or an unknown one (Somervuo et al., 2016). A child with
references found has the features 1, best and second similarity; one without any, a 1 of its own; the unknown one a
constant. Multinomial regression over the outcomes, one set of parameters a rank, and a share of mislabelled references
spread evenly over them. All are fitted by gradient on training specimens that are left out of the library one by one,
those of unknown taxa weighing as much as in the mixture asked about. A lineage's probability is the product along it.

Legend: N queries, R ranks, P (query, taxon) pairs found at a rank.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.specimens.taxonomy import RANKS
from train.evaluation.known_questions import WITHHELD
from train.reference import Hits, Library

FITTED_ON = 4000  # training specimens left out one by one
_SCALE = 0.1  # of similarities: 1 = identical, 0 = this much less
_RIDGE = 1e-5
_FLOOR = 0.3  # edits per letter: no similarity found


@dataclass(frozen=True)
class Pairs:
    """Children found for queries at one rank."""

    query: np.ndarray  # int64 [P], ascending
    taxon: np.ndarray  # int64 [P]
    parent: np.ndarray  # int64 [P], taxon of the rank above; 0 at the highest
    best: np.ndarray  # float64 [P], similarity of its nearest reference
    second: np.ndarray  # of the next one, the same again where there is none


def pairs_of(library: Library, hits: Hits, without: np.ndarray | None = None) -> list[Pairs]:
    """Return what a search found, per rank; `without` int64 [N]: a record of each query that does not count."""
    rows, begin = library.rows_of
    held = begin[hits.reference + 1] - begin[hits.reference]
    hit = np.repeat(np.arange(len(held)), held)
    row = rows[np.repeat(begin[hits.reference] - np.cumsum(held) + held, held) + np.arange(held.sum())]
    query = hits.query[hit]
    if without is not None:
        kept = row != without[query]
        hit, row, query = hit[kept], row[kept], query[kept]
    rate = np.minimum(hits.difference[hit] / np.maximum(hits.length[query], 1), _FLOOR)
    similarity = 1 - rate / _SCALE
    result = []
    for rank in range(len(RANKS)):
        taxon = library.labels[row, rank]
        parent = library.labels[row, rank - 1] if rank else np.zeros(len(row), dtype=np.int64)
        known = np.flatnonzero((taxon >= 0) & (parent >= 0))
        order = known[np.lexsort((-similarity[known], taxon[known], query[known]))]
        new = np.append(True, (np.diff(query[order]) != 0) | (np.diff(taxon[order]) != 0))[: len(order)]
        first = np.flatnonzero(new)
        following = np.minimum(first + 1, len(order) - 1)
        again = np.where(np.append(new, True)[first + 1], first, following)
        best, second = similarity[order[first]], similarity[order[again]]
        result.append(Pairs(query[order[first]], taxon[order[first]], parent[order[first]], best, second))
    return result


class Protax:
    """The formula with its fitted parameters."""

    def __init__(self, library: Library) -> None:
        self.library = library
        start = [-1.0, -8.0, 4.0, 1.0]  # unknown, no reference, best and second similarity
        self.weights = torch.tensor([start] * len(RANKS), dtype=torch.float64, requires_grad=True)
        self.wrong = torch.full(
            (len(RANKS),), -4.0, dtype=torch.float64, requires_grad=True
        )  # logit of the share mislabelled
        self._children = []
        for rank, lineages in enumerate(library.taxonomy.lineages):
            parent = np.asarray(lineages)[:, rank - 1] if rank else np.zeros(len(lineages), dtype=np.int64)
            size = library.taxonomy.sizes[rank - 1] if rank else 1
            self._children.append(np.bincount(parent[parent >= 0], minlength=size))

    def _logits(self, rank: int, found: Pairs, node: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of pairs [P], of the unknown child [N], and the log sum over all children [N], inside nodes."""
        unknown, none, best, second = self.weights[rank]
        inside = torch.from_numpy(found.parent == node[found.query])
        query = torch.from_numpy(found.query)
        logit = best * torch.from_numpy(found.best).double() + second * torch.from_numpy(found.second).double()
        logit = logit.masked_fill(~inside, -torch.inf)
        met = torch.zeros(len(node), dtype=torch.float64).index_add_(0, query, inside.double())
        missing = torch.from_numpy(self._children[rank][np.maximum(node, 0)]).double() - met
        total = torch.zeros(len(node), dtype=torch.float64).index_add_(0, query, logit.exp())
        total = total + missing.clamp(min=0) * none.exp() + unknown.exp()
        return logit, unknown.expand(len(node)), total.log()

    def _shares(self, rank: int, found: Pairs, node: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the probabilities of the pairs [P] and of an unknown child [N], given the node."""
        logit, unknown, total = self._logits(rank, found, node)
        wrong = self.wrong[rank].sigmoid()
        outcomes = torch.from_numpy(self._children[rank][np.maximum(node, 0)] + 1.0).double()
        query = torch.from_numpy(found.query)
        of_pairs = (logit - total[query]).exp()
        even = torch.where(torch.isfinite(logit), wrong / outcomes[query], 0.0)
        return (1 - wrong) * of_pairs + even, (1 - wrong) * (unknown - total).exp() + wrong / outcomes

    def fit(self, seed: int = 0) -> "Protax":
        """Fit on specimens of the library, each left out."""
        library, rng = self.library, np.random.default_rng(seed)
        haplotype = library.records["haplotype"].to_numpy()
        there = np.flatnonzero((haplotype >= 0) & (library.labels[:, -1] >= 0))
        rows = np.sort(rng.permutation(there)[:FITTED_ON])
        found = pairs_of(library, library.search([library.barcode(n) for n in haplotype[rows].tolist()]), rows)
        labels = library.labels[rows].copy()
        for rank, size in enumerate(library.taxonomy.sizes):
            alone = np.bincount(labels_of(library, rank), minlength=size)[np.maximum(labels[:, rank], 0)] == 1
            labels[alone, rank] = -1
        unknown = labels[:, -1] < 0
        weight = np.where(unknown, WITHHELD / unknown.mean(), (1 - WITHHELD) / (1 - unknown.mean()))
        weights = torch.from_numpy(weight).double()
        optimiser = torch.optim.LBFGS([self.weights, self.wrong], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = _RIDGE * (self.weights**2).sum()
            for rank, one in enumerate(found):
                node = labels[:, rank - 1] if rank else np.zeros(len(labels), dtype=np.int64)
                share, new = self._shares(rank, one, node)
                right = torch.from_numpy(one.taxon == labels[one.query, rank])
                own = torch.zeros(len(node), dtype=torch.float64).index_add_(
                    0, torch.from_numpy(one.query), share * right
                )
                own = torch.where(torch.from_numpy(labels[:, rank] < 0), new, own).clamp(min=1e-6)
                loss = loss - (weights * torch.from_numpy(node >= 0) * own.log()).mean()
            loss.backward()
            return loss

        optimiser.step(closure)
        return self

    @torch.inference_mode()
    def answers(self, hits: Hits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the most probable lineage int64 [N, R], its probabilities [N, R], and those of unknown children.

        The lineage is found from the highest rank down; the last are float64 [N, R], inside its taxa.
        """
        found, count = pairs_of(self.library, hits), len(hits.length)
        path = np.full((count, len(RANKS)), -1)
        told, unknown = np.zeros(path.shape), np.zeros(path.shape)
        node, reached = np.zeros(count, dtype=np.int64), np.ones(count)
        for rank, one in enumerate(found):
            share, new = (part.double().numpy() for part in self._shares(rank, one, node))
            unknown[:, rank] = reached * np.where(node >= 0, new, 0.0)
            share[one.parent != node[one.query]] = 0.0
            order = np.argsort(share, kind="stable")
            best = np.full(count, -1)
            best[one.query[order]] = order
            there = (best >= 0) & (node >= 0) & (share[best] > 0)
            path[there, rank] = one.taxon[best[there]]
            reached = np.where(there, reached * share[best], 0.0)
            told[:, rank], node = reached, path[:, rank]
        return path, told, unknown


def labels_of(library: Library, rank: int) -> np.ndarray:
    """Return the labels of a rank that are there, int64."""
    labels = library.labels[:, rank]
    return labels[labels >= 0]
