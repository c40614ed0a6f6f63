"""What a query's scores say about its answer: one lineage, and the numbers that a calibrated rule reads.

The answered lineage is found from the coarsest rank down: at each rank the most probable taxon inside the one above.

Legend: N queries, D embedding, R ranks, T_r taxa of rank r, L leaves (complete lineages).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.specimens.taxonomy import RANKS
from train.inference.calibration import Combination, logit
from train.inference.combination import Nearest
from train.inference.scoring import Scorer

INPUTS = ("probability", "margin", "cosine")
MODEL = "model"  # beside a library: the logit of the model's own probability of the answer
AGREEMENTS = tuple(f"agreement_{rank}" for rank in RANKS)
FLOOR = 1e-9
CERTAIN = 1e-5  # a probability counts as so far from 0 and 1 at least: float32 does not resolve what is nearer to 1


@dataclass(frozen=True)
class Answers:
    """Answered lineages and their evidence."""

    path: np.ndarray  # int64 [N, R], -1 = no taxon
    evidence: dict[str, np.ndarray]  # float64, INPUTS and, with a library, MODEL and LIBRARY_INPUTS

    @classmethod
    def concatenate(cls, parts: list["Answers"]) -> "Answers":
        """Join parts, in order."""
        names = parts[0].evidence
        whole = {name: np.concatenate([part.evidence[name] for part in parts]) for name in names}
        return cls(np.concatenate([part.path for part in parts]), whole)


@dataclass(frozen=True)
class Scored:
    """Some queries, scored: b rows."""

    probabilities: list[Tensor]  # per rank [b, T_r], rolled up
    answers: Answers


@torch.inference_mode()
def scored(
    scorer: Scorer,
    features: np.ndarray | Tensor,
    *,
    without: np.ndarray | None = None,
    among: np.ndarray | None = None,
    library: tuple[Nearest, Combination] | None = None,
) -> Iterator[Scored]:
    """Score queries against the taxonomy in chunks, in order; a chunk without rows where there is no query.

    Args:
        scorer: of the taxa that may be answered.
        features: unit rows float32 [N, D].
        without: int64 [N], a species that is taken from the candidates of each query, as if the model did not know
            it; -1 = none.
        among: bool [L], the lineages that compete, at least one; None = all.
        library: what was found for these queries, and how much it counts; MODEL and LIBRARY_INPUTS are evidence then.
    """
    for rows in list(scorer.chunks(len(features))) or [slice(0, 0)]:  # no query has evidence of the right shape
        chunk = torch.as_tensor(features[rows]).to(scorer.device).float()
        cosine = chunk @ scorer.leaf_text.T
        if without is not None:
            _withhold(scorer, cosine, torch.as_tensor(without[rows]).to(scorer.device))
        if among is not None:
            cosine[:, torch.as_tensor(~among).to(scorer.device)] = -torch.inf
        logits = cosine * float(scorer.model.logit_scale)
        alone = probabilities = scorer.sum_descendants(logits.softmax(1))
        if library is not None:
            nearest, how = library
            moved = logits - how.per_edit * nearest.leaf_distances(scorer, rows, how.step)
            probabilities = scorer.sum_descendants(moved.softmax(1))
        path, share, rival = descend(scorer, probabilities)
        whole = {
            "probability": torch.logit(share.clamp(CERTAIN, 1 - CERTAIN)),
            "margin": torch.log(share.clamp(min=FLOOR) / rival.clamp(min=FLOOR)),
            "cosine": cosine.amax(1),
        }
        found = Answers(path.cpu().numpy(), {name: value.cpu().numpy() for name, value in whole.items()})
        if library is not None:
            found.evidence[MODEL] = logit(of_path(alone, found.path), CERTAIN)
            found.evidence.update(library[0].evidence(found.path, rows.start))
        yield Scored(probabilities, found)


def answers(
    scorer: Scorer,
    features: np.ndarray,
    without: np.ndarray | None = None,
    library: tuple[Nearest, Combination] | None = None,
) -> Answers:
    """Answer queries and gather evidence; arguments as of `scored`.

    probability [N, R]: logit of the answer's rolled-up probability; margin [N, R]: log of its ratio to the most
    probable other taxon of the rank (0 or less where that one is more probable); cosine [N]: highest with any lineage.
    """
    parts = scored(scorer, features, without=without, library=library)
    return Answers.concatenate([chunk.answers for chunk in parts])


def _withhold(scorer: Scorer, cosine: Tensor, species: Tensor) -> None:
    """Take the leaf of each query's species away, in place; a query keeps its last leaf."""
    leaf = scorer.leaf_of[int(scorer.first[-1]) + species.clamp(min=0)]
    rows = ((species >= 0) & (leaf >= 0)).nonzero()[:, 0]
    if cosine.shape[1] > 1:
        cosine[rows, leaf[rows]] = -torch.inf


def descend(scorer: Scorer, probabilities: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the path int64 [N, R], its probability and that of the best other taxon, float64 [N, R] each."""
    count = len(probabilities[0])
    path = torch.full((count, len(RANKS)), -1, device=scorer.device)
    share = torch.zeros(count, len(RANKS), dtype=torch.float64, device=scorer.device)
    rival = torch.zeros_like(share)
    for rank, values in enumerate(probabilities):
        if not values.shape[1]:
            continue
        first = int(scorer.first[rank])
        lineages = scorer.candidates[first : first + values.shape[1]]
        fits = torch.ones_like(values, dtype=torch.bool)
        for above in range(rank):
            own = path[:, above, None]
            fits &= (lineages[:, above] < 0) | (own < 0) | (lineages[:, above] == own)
        best, taxon = values.masked_fill(~fits, -1.0).max(1)
        found = best >= 0
        path[:, rank] = torch.where(found, taxon, -1)
        share[:, rank] = best.clamp(min=0).double()
        others = values.scatter(1, taxon[:, None], -1.0)
        rival[:, rank] = others.amax(1).clamp(min=0).double()
    return path, share, rival


def of_path(probabilities: Sequence[Tensor], path: np.ndarray) -> np.ndarray:
    """Probabilities (per rank [b, T_r]) of the taxa of lineages int64 [b, R]: float64 [b, R], 0 where there is none."""
    taxa = torch.from_numpy(path)
    result = np.zeros(path.shape)
    for rank, values in enumerate(probabilities):
        if values.shape[1]:
            taxon = taxa[:, rank].to(values.device)
            found = values.gather(1, taxon.clamp(min=0)[:, None])[:, 0].double()
            result[:, rank] = torch.where(taxon >= 0, found, 0.0).cpu().numpy()
    return result


@torch.inference_mode()
def agreement(scorer: Scorer, image: np.ndarray, dna: np.ndarray) -> dict[str, np.ndarray]:
    """Return how much the answers of photo and barcode overlap at each rank: AGREEMENTS -> float64 [N].

    It is the log of the sum over taxa of the product of both probabilities.

    Args:
        scorer: of the taxa that may be answered.
        image: unit rows float32 [N, D] of the photos.
        dna: those of the same specimens' barcodes.
    """
    found: list[list[np.ndarray]] = [[] for _ in RANKS]
    pairs = zip(scorer.rollup(image), scorer.rollup(dna), strict=True)
    for one, other in pairs:
        for rank, (first, second) in enumerate(zip(one, other, strict=True)):
            found[rank].append(torch.log((first * second).sum(1).double().clamp(min=FLOOR)).cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in zip(AGREEMENTS, found, strict=True)}
