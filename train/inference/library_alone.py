"""Answers of a reference library without any model: scores of its own taxa, and what its rules read.

A complete lineage scores exp(-PER_EDIT x edits) of its nearest reference; one of which no reference was found scores 0.
Scores are rolled up as a model's are, and the answered lineage is the most probable taxon inside the one above.

Legend: N queries, b of a chunk, R ranks, T_r taxa of a rank, L lineages.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch

from train.inference.calibration import CERTAIN, logit
from train.inference.evidence import Answers, Scored, descend
from train.inference.nearest import Combiner, Nearest, most_edits
from train.inference.scoring import Scorer
from train.reference import Library

QUERY = "library"  # its name among the queries of a calibration
INPUTS = (
    "probability",
    "edits",
    "edits_to_other",
    "length",
    "rate",
    "rate_above",
    "gap",
    "share_of_gap",
    "records",
)
PER_EDIT = 2.0  # log score
FARTHEST = 0.5  # edits per letter: counts as nothing found
_GAP = 10.0  # edits by which another taxon is farther: more says no more


class LibraryScorer:
    """A library as the source of scores for its own taxonomy."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.combiner = Combiner(library, library.taxonomy)
        self.scorer = Scorer(None, library.taxonomy, lambda captions: torch.zeros(0))

    @cached_property
    def _records(self) -> list[np.ndarray]:
        """Specimens, log1p, per taxon of each rank."""
        labels, sizes = self.library.labels, self.library.taxonomy.sizes
        return [np.log1p(np.bincount(labels[:, rank] + 1, minlength=size + 1)[1:]) for rank, size in enumerate(sizes)]

    def scored(self, nearest: Nearest, among: np.ndarray | None = None) -> Iterator[Scored]:
        """Score N queries in chunks, in order, from what a search found; evidence: INPUTS, and `far`.

        Args:
            nearest: of `combiner`.
            among: bool [L], the lineages that compete; None = all.
        """
        scorer = self.scorer
        for rows in list(scorer.chunks(len(nearest.length))) or [slice(0, 0)]:
            edits = torch.from_numpy(nearest.found(scorer, rows))[:, scorer.leaf_candidate]
            if among is not None:
                edits[:, torch.from_numpy(~among)] = torch.inf
            least = edits.amin(1, keepdim=True)
            anything = torch.isfinite(least)
            scores = torch.where(anything, (-PER_EDIT * (edits - torch.where(anything, least, 0.0))).exp(), 0.0)
            shares = scores / scores.sum(1, keepdim=True).clamp(min=1e-30)
            probabilities = scorer.sum_descendants(shares)
            path, share, _ = descend(scorer, probabilities)
            answered = torch.where(share > 0, path, -1).numpy()
            yield Scored(probabilities, Answers(answered, self._evidence(nearest, answered, share.numpy(), rows.start)))

    def _evidence(self, nearest: Nearest, path: np.ndarray, share: np.ndarray, first: int) -> dict[str, np.ndarray]:
        """Return INPUTS of answered lineages int64 [b, R]: float64 [b, R] each."""
        found = nearest.evidence(path, first)
        own, other = np.expm1(found["edits"]), np.expm1(found["edits_to_other"])
        length = np.maximum(np.exp(found["length"]), 1.0)[:, None]
        rate = np.where(path >= 0, np.minimum(own / length, FARTHEST), FARTHEST)
        gap = np.clip(other - own, -_GAP, _GAP)
        records = [_of(table, path[:, rank]) for rank, table in enumerate(self._records)]
        return {
            "probability": logit(share, CERTAIN),
            **found,
            "rate": rate,
            "rate_above": np.maximum(rate - 0.02, 0.0),
            "gap": gap,
            "share_of_gap": (other - own) / np.maximum(other + own, 1.0),
            "records": np.stack(records, axis=1),
            "far": np.where(path >= 0, most_edits(own) / length, FARTHEST),
        }


def _of(values: np.ndarray, taxa: np.ndarray) -> np.ndarray:
    """Values of taxa int64 [b], 0 where there is none: float64 [b]."""
    return np.where(taxa >= 0, values[np.maximum(taxa, 0)], 0.0) if len(values) else np.zeros(len(taxa))
