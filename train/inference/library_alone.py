"""Answers of a reference library without any model: scores of its own taxa, and what its rules read.

A complete lineage scores exp(-PER_EDIT x edits) of its nearest reference; one of which no reference was found scores 0.
Scores are rolled up as a model's are, and the answered lineage is the most probable taxon inside the one above.

Legend: N queries, b of a chunk, R ranks, T_r taxa of a rank, L lineages.
"""

from collections.abc import Iterator

import numpy as np
import torch

from train.inference.calibration import CERTAIN, logit
from train.inference.evidence import Answers, Scored, descend
from train.inference.nearest import Combiner, Nearest, most_edits
from train.inference.scoring import Scorer
from train.reference import Library

QUERY = "library"  # its name among the queries of a calibration
INPUTS = ("edits", "edits_to_other", "length", "gap", "rate")
PER_EDIT = 2.0  # log score
FARTHEST = 0.5  # edits per letter: counts as nothing found
_GAP = 10.0  # edits by which another taxon is farther: more says no more


class LibraryScorer:
    """A library as the source of scores for its own taxonomy."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.combiner = Combiner(library, library.taxonomy)
        self.scorer = Scorer(None, library.taxonomy, lambda captions: torch.zeros(0))

    def scored(self, nearest: Nearest, among: np.ndarray | None = None) -> Iterator[Scored]:
        """Score N queries in chunks, in order, from what a search found; evidence: INPUTS, `probability` and `far`.

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
        """Return the evidence for answered lineages int64 [b, R]: float64 [b, R] each, `length` [b]."""
        found = nearest.evidence(path, first)
        own, other = np.expm1(found["edits"]), np.expm1(found["edits_to_other"])
        length = np.maximum(np.exp(found["length"]), 1.0)[:, None]
        return {
            "probability": logit(share, CERTAIN),
            **found,
            "rate": np.where(path >= 0, np.minimum(own / length, FARTHEST), FARTHEST),
            "gap": np.clip(other - own, -_GAP, _GAP),
            "far": np.where(path >= 0, most_edits(own) / length, FARTHEST),
        }
