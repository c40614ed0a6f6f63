"""Features against the taxonomy: the names of taxa are the candidates, and every taxon the model knows competes.

Two ways to score a query (METHOD, Evaluation):

- `prompt`: at rank r the candidates are the lineages, cut at r, of all taxa of that rank, by cosine;
- `rollup`: one softmax over the complete known lineages; a taxon's probability is the sum over its descendants, so
  the probabilities of children add up to their parent's. A lineage whose ancestor at a rank is unknown counts for no
  taxon of that rank.

Ties are broken by the order of the candidates. Work goes in chunks of specimens, so that no matrix of specimens by
candidates grows beyond `CHUNK_BYTES`.

Legend: N specimens, b specimens of a chunk, D embedding, R ranks, C candidates (`leaves`: complete lineages; `all`:
taxa of all ranks), T_r taxa of rank r.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.specimens.captions import caption
from engine.specimens.taxonomy import RANKS, Taxonomy
from train.metrics import COLUMNS, MISSED, UNSCORED

SCORINGS = ("rollup", "prompt")
CHUNK_BYTES = 64e6
TEXT_BATCH = 512


@dataclass(frozen=True)
class Ranking:
    """What one query says about N specimens."""

    position: np.ndarray  # int32 [N, Q] of metrics.COLUMNS: where the truth stands; MISSED, UNSCORED
    taxon: np.ndarray  # int32 [N, R], the first taxon of each rank; -1 where the query does not exist
    score: np.ndarray  # float32 [N, R], its probability (rollup) or cosine (prompt)

    @classmethod
    def empty(cls, count: int) -> "Ranking":
        """Return a ranking of specimens of which nothing is known yet."""
        return cls(
            position=np.full((count, len(COLUMNS)), UNSCORED, dtype=np.int32),
            taxon=np.full((count, len(RANKS)), -1, dtype=np.int32),
            score=np.full((count, len(RANKS)), np.nan, dtype=np.float32),
        )

    def fill(self, rows: np.ndarray, other: "Ranking") -> None:
        """Put the rows of `other`, in order, at `rows` (bool or int) of this one."""
        self.position[rows], self.taxon[rows], self.score[rows] = other.position, other.taxon, other.score


def positions(scores: Tensor, truth: Tensor) -> Tensor:
    """How many candidates stand before the true one.

    Args:
        scores: float [b, C].
        truth: int64 [b], column of the truth; negative = MISSED.

    Returns:
        int64 [b]. Of equal scores the lower column stands first, so top-1 agrees with `scores.argmax(1)`.
    """
    if not scores.shape[1]:
        return torch.full_like(truth, MISSED)
    own = scores.gather(1, truth.clamp(min=0)[:, None])
    columns = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (columns < truth[:, None]))
    return before.sum(1).masked_fill(truth < 0, MISSED)


def deepest(lineages: Tensor) -> tuple[Tensor, Tensor]:
    """Return the deepest known rank of lineages int64 [N, R] and the taxon there, int64 [N] each; -1 = unknown."""
    ranks = torch.arange(lineages.shape[1], device=lineages.device)
    rank = torch.where(lineages >= 0, ranks, -1).amax(1)
    taxon = lineages.gather(1, rank.clamp(min=0)[:, None])[:, 0]
    return rank, torch.where(rank >= 0, taxon, -1)


class Scorer:
    """Ranks unit features against a taxonomy with a model's text tower; the text features are computed once.

    Args:
        model: has `encode_text(tokens [U, T]) -> [U, D]` and `logit_scale`, one over the temperature.
        taxonomy: the model's own, never that of the file under test.
        tokenizer: captions -> int64 [U, T].
        device: where the text features and the scores live.
        text: features of all candidates [all, D] that were made before, None = they are made when they are needed.
    """

    def __init__(
        self,
        model: Any,
        taxonomy: Taxonomy,
        tokenizer: Callable[[list[str]], Tensor],
        device: torch.device | str = "cpu",
        text: Tensor | None = None,
    ) -> None:
        self.model, self.taxonomy, self.tokenizer, self.device = model, taxonomy, tokenizer, torch.device(device)
        cuts = [np.asarray(taxonomy.candidates(rank), dtype=np.int64) for rank in range(len(RANKS))]
        self.sizes = [len(cut) for cut in cuts]
        if not sum(self.sizes):
            raise ValueError("the taxonomy knows no taxon, so there is nothing to rank a query against")
        self.candidates = torch.from_numpy(np.concatenate(cuts)).to(self.device)  # [all, R], coarse ranks first
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])[:-1]  # of each rank among them
        self.leaves = torch.from_numpy(np.asarray(taxonomy.leaves(), dtype=np.int64)).to(self.device)
        rank, taxon = deepest(self.leaves)
        self.leaf_candidate = torch.as_tensor(self.first, device=self.device)[rank] + taxon  # [leaves], row of `all`
        self.leaf_of = torch.full((len(self.candidates),), -1, device=self.device)
        self.leaf_of[self.leaf_candidate] = torch.arange(len(self.leaves), device=self.device)
        self._text = text

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions -> unit features [U, D] on `device`, in batches."""
        parts = []
        for first in range(0, len(captions), TEXT_BATCH):
            tokens = self.tokenizer(list(captions[first : first + TEXT_BATCH])).to(self.device)
            parts.append(self.model.encode_text(tokens).float())
        return torch.cat(parts)

    @cached_property
    def text(self) -> Tensor:
        """Features of the captions of all candidates, [all, D]."""
        if self._text is not None:
            return self._text.to(self.device)
        return self.encode([caption(self.taxonomy.lineage_names(row)) for row in self.candidates.tolist()])

    @cached_property
    def leaf_text(self) -> Tensor:
        """Features of the captions of the complete lineages, [leaves, D]."""
        return self.text[self.leaf_candidate]

    @cached_property
    def parent(self) -> Tensor:
        """int64 [all]: the row among `candidates` of the taxon that each lies in, -1 = none."""
        parent = torch.full((len(self.candidates),), -1, device=self.device)
        for above in range(len(RANKS) - 1):
            rank_of = torch.arange(len(self.candidates), device=self.device) >= int(self.first[above + 1])
            lies_in = self.candidates[:, above]
            parent = torch.where(rank_of & (lies_in >= 0), int(self.first[above]) + lies_in, parent)
        return parent

    def chunks(self, count: int) -> Iterator[slice]:
        """Rows that are scored together."""
        step = max(1, int(CHUNK_BYTES / (4 * len(self.candidates))))
        return (slice(first, min(count, first + step)) for first in range(0, count, step))

    def sum_descendants(self, probabilities: Tensor) -> list[Tensor]:
        """[b, leaves] -> per rank [b, T_r]."""
        columns = probabilities.T  # index_add_ along rows is an order of magnitude faster on a CPU
        result = []
        for rank, size in enumerate(self.sizes):
            known = self.leaves[:, rank] >= 0
            total = columns.new_zeros(size, columns.shape[1])
            result.append(total.index_add_(0, self.leaves[known, rank], columns[known]).T)
        return result

    @torch.inference_mode()
    def leaf_probabilities(self, features: Tensor | np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        """Chunks of (rows, probability of each complete lineage [b, leaves])."""
        for rows in self.chunks(len(features)):
            chunk = torch.as_tensor(features[rows]).to(self.device).float()
            yield rows, (chunk @ self.leaf_text.T * float(self.model.logit_scale)).softmax(1)

    def rollup(self, features: Tensor | np.ndarray) -> Iterator[list[Tensor]]:
        """Chunks, in order, of the probabilities of the taxa of every rank, [b, T_r] each.

        Args:
            features: unit rows [N, D].
        """
        for _, probabilities in self.leaf_probabilities(features):
            yield self.sum_descendants(probabilities)

    @torch.inference_mode()
    def prompt(self, features: Tensor | np.ndarray) -> Iterator[list[Tensor]]:
        """Chunks, in order, of the cosines to the captions of the taxa of every rank, [b, T_r] each."""
        for rows in self.chunks(len(features)):
            cosines = torch.as_tensor(features[rows]).to(self.device).float() @ self.text.T
            yield list(cosines.split(self.sizes, dim=1))

    @torch.inference_mode()
    def rank(self, features: Tensor | np.ndarray, labels: np.ndarray, scoring: str = "rollup") -> Ranking:
        """Where the truth stands for each specimen, and what stands first.

        The globals (`metrics.COLUMNS`) compare whole lineages. With `prompt` the taxa of all ranks compete; with
        `rollup` the complete lineages do. `global_exact`: the specimen's deepest labelled taxon itself.
        `global_compatible`: any candidate that agrees with it at every labelled rank.

        Args:
            features: unit rows [N, D].
            labels: int64 [N, R], -1 = unknown.
            scoring: one of SCORINGS.

        Raises:
            ValueError: for an unknown scoring.
        """
        if scoring not in SCORINGS:
            raise ValueError(f"unknown scoring {scoring!r}; allowed: {', '.join(SCORINGS)}")
        result = Ranking.empty(len(features))
        truth = torch.from_numpy(np.ascontiguousarray(labels)).to(self.device)
        rollup = scoring == "rollup"
        if rollup:
            scored = ((p, self.sum_descendants(p)) for _, p in self.leaf_probabilities(features))
        else:
            scored = ((torch.cat(per_rank, dim=1), per_rank) for per_rank in self.prompt(features))
        for rows, (whole, per_rank) in zip(self.chunks(len(features)), scored, strict=True):
            self._rank_taxa(result, rows, truth[rows], per_rank)
            self._rank_lineages(result, rows, truth[rows], whole, rollup)
        return result

    def _rank_taxa(self, result: Ranking, rows: slice, truth: Tensor, per_rank: list[Tensor]) -> None:
        for rank, scores in enumerate(per_rank):
            if not scores.shape[1]:
                continue
            at = positions(scores, truth[:, rank])
            result.position[rows, rank] = torch.where(truth[:, rank] >= 0, at, UNSCORED).cpu().numpy()
            best, taxon = scores.max(1)
            result.taxon[rows, rank], result.score[rows, rank] = taxon.cpu().numpy(), best.cpu().numpy()

    def _rank_lineages(self, result: Ranking, rows: slice, truth: Tensor, whole: Tensor, rollup: bool) -> None:
        lineages = self.leaves if rollup else self.candidates
        depth, taxon = deepest(truth)
        exact = torch.as_tensor(self.first, device=self.device)[depth] + taxon
        agrees = torch.ones_like(whole, dtype=torch.bool)
        for rank in range(truth.shape[1]):
            own = truth[:, rank, None]
            agrees &= (own < 0) | (lineages[:, rank] == own)
        best, near = whole.masked_fill(~agrees, -torch.inf).max(1)
        near = torch.where(torch.isfinite(best), near, -1)
        for column, target in ((-2, self.leaf_of[exact] if rollup else exact), (-1, near)):
            at = torch.where(depth >= 0, positions(whole, target), UNSCORED)
            result.position[rows, column] = at.cpu().numpy()
