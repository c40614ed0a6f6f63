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
from train.inference.calibration import CERTAIN, logit
from train.inference.experts import Inputs, Opinion, mixed, opinions
from train.inference.pool import Pool
from train.inference.scoring import Scorer

INPUTS = ("probability", "margin", "cosine")
AGREED = "agreed"  # of a pool: the lowest logit that any of its experts gives the answer
AGREEMENTS = tuple(f"agreement_{rank}" for rank in RANKS)
FLOOR = 1e-9


@dataclass(frozen=True)
class Answers:
    """Answered lineages and their evidence."""

    path: np.ndarray  # int64 [N, R], -1 = no taxon
    evidence: dict[str, np.ndarray]  # float64, INPUTS and what `pooled` adds

    @classmethod
    def concatenate(cls, parts: list["Answers"]) -> "Answers":
        """Join parts, in order."""
        names = parts[0].evidence
        whole = {name: np.concatenate([part.evidence[name] for part in parts]) for name in names}
        return cls(np.concatenate([part.path for part in parts]), whole)


@dataclass(frozen=True)
class Voice:
    """What one expert of a pool says of b queries by itself."""

    expert: str
    weight: np.ndarray  # float64 [b], in the pool; 0 = it did not count
    species: np.ndarray  # int64 [b], the most probable; -1 = it read or found nothing
    probability: np.ndarray  # float64 [b], of that species, at the expert's temperature


@dataclass(frozen=True)
class Scored:
    """Some queries, scored: b rows."""

    probabilities: list[Tensor]  # per rank [b, T_r], rolled up
    answers: Answers
    voices: tuple[Voice, ...] = ()  # of a pool


@torch.inference_mode()
def scored(
    scorer: Scorer,
    features: np.ndarray | Tensor,
    *,
    without: np.ndarray | None = None,
    among: np.ndarray | None = None,
) -> Iterator[Scored]:
    """Score queries against the taxonomy in chunks, in order; a chunk without rows where there is no query.

    Args:
        scorer: of the taxa that may be answered.
        features: unit rows float32 [N, D].
        without: int64 [N], a species that is taken from the candidates of each query, as if the model did not know
            it; -1 = none.
        among: bool [L], the lineages that compete, at least one; None = all.
    """
    for rows in list(scorer.chunks(len(features))) or [slice(0, 0)]:  # no query has evidence of the right shape
        chunk = torch.as_tensor(features[rows]).to(scorer.device).float()
        cosine = chunk @ scorer.leaf_text.T
        if without is not None:
            _withhold(scorer, cosine, torch.as_tensor(without[rows]).to(scorer.device))
        if among is not None:
            cosine[:, torch.as_tensor(~among).to(scorer.device)] = -torch.inf
        probabilities = scorer.sum_descendants((cosine * float(scorer.model.logit_scale)).softmax(1))
        path, share, rival = descend(scorer, probabilities)
        cosines = cosine.amax(1).double().cpu().numpy()
        yield Scored(probabilities, Answers(path.cpu().numpy(), _told(share, rival) | {"cosine": cosines}))


@torch.inference_mode()
def pooled(
    scorer: Scorer,
    inputs: Inputs,
    pool: Pool,
    *,
    without: np.ndarray | None = None,
    among: np.ndarray | None = None,
) -> Iterator[Scored]:
    """Score specimens by the pool of what their inputs say; arguments else as of `scored`.

    Evidence: that of INPUTS (cosine: the mean over the towers), AGREED, the logarithm of the barcode's known
    nucleotides as `length`; where a library was asked LIBRARY_INPUTS and `far`, the most edits per letter to the taxon.
    """
    for rows in list(scorer.chunks(len(inputs))) or [slice(0, 0)]:
        said = opinions(scorer, inputs, rows, without=without, among=among)
        measured = {name: inputs.of(name, rows) for name in (inputs.measured or {})}
        counts = pool.counts([one.quality for one in said], [one.speaks for one in said], measured)
        tempered = [
            one.log_p if weight.temperature == 1.0 else (one.log_p / weight.temperature).log_softmax(1)
            for one, weight in zip(said, pool.weights, strict=True)
        ]
        whole = mixed(tempered, torch.from_numpy(counts).to(scorer.device))
        probabilities = scorer.sum_descendants(whole.exp())
        path, share, rival = descend(scorer, probabilities)
        answered = path.cpu().numpy()
        each = [scorer.sum_descendants(one.exp()) for one in tempered]
        told = _told(share, rival) | _pool_evidence(inputs, rows, answered, said, each)
        yield Scored(probabilities, Answers(answered, told), tuple(_voices(said, counts, each)))


def _pool_evidence(
    inputs: Inputs, rows: slice, path: np.ndarray, said: Sequence[Opinion], each: Sequence[list[Tensor]]
) -> dict[str, np.ndarray]:
    """Return what `pooled` tells of answered lineages int64 [b, R] beside probability and margin."""
    own = [logit(of_path(one, path), CERTAIN) for one in each]
    heard = [np.where(one.speaks[:, None], of, np.inf) for one, of in zip(said, own, strict=True)]
    told = {
        "cosine": np.mean([one.cosine for one in said if one.cosine is not None], axis=0),
        AGREED: np.minimum(np.min(heard, axis=0), -logit(np.array(0.0), CERTAIN)),
        "length": inputs.of("length", rows),
    }
    if inputs.nearest is not None:
        told |= inputs.nearest.evidence(path, rows.start)
        told["far"] = inputs.nearest.far(path, told["edits"], rows.start)
    return told


def _told(share: Tensor, rival: Tensor) -> dict[str, np.ndarray]:
    """Return `probability` and `margin` of answers, float64 [b, R] each."""
    return {
        "probability": torch.logit(share.clamp(CERTAIN, 1 - CERTAIN)).cpu().numpy(),
        "margin": torch.log(share.clamp(min=FLOOR) / rival.clamp(min=FLOOR)).cpu().numpy(),
    }


def _voices(said: Sequence[Opinion], counts: np.ndarray, each: Sequence[list[Tensor]]) -> Iterator[Voice]:
    for number, (one, ranks) in enumerate(zip(said, each, strict=True)):
        best = ranks[-1].max(1) if ranks[-1].shape[1] else None
        taxon = np.full(len(counts), -1) if best is None else best.indices.cpu().numpy()
        chance = np.zeros(len(counts)) if best is None else best.values.double().cpu().numpy()
        yield Voice(one.expert, counts[:, number], np.where(one.speaks, taxon, -1), chance)


def answers(scorer: Scorer, features: np.ndarray, without: np.ndarray | None = None) -> Answers:
    """Answer queries and gather evidence; arguments as of `scored`.

    probability [N, R]: logit of the answer's rolled-up probability; margin [N, R]: log of its ratio to the most
    probable other taxon of the rank (0 or less where that one is more probable); cosine [N]: highest with any lineage.
    """
    return Answers.concatenate([chunk.answers for chunk in scored(scorer, features, without=without)])


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
