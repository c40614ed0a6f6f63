"""Experts: what photo, barcode and library each say of the same lineages, and how good the input is that each read.

An expert's opinion is a distribution over the complete lineages. Its qualities are numbers that say how far to trust
it: `sharpness` of the photo; `length` and `n_share` of the barcode; `rate` (edits per letter to the nearest reference)
and `references` (specimens of the species nearest) of the library; and of every opinion its own `margin` and `entropy`.

Legend: N specimens, b of a chunk, D embedding, L lineages, Q qualities, S image side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from train.inference.nearest import FAR, Nearest
from train.inference.scoring import Scorer

PHOTO, BARCODE, LIBRARY = "photo", "barcode", "library"
QUALITIES = {
    PHOTO: ("sharpness", "margin", "entropy"),
    BARCODE: ("length", "n_share", "margin", "entropy"),
    LIBRARY: ("length", "n_share", "rate", "references", "margin", "entropy"),
}
PER_EDIT = 2.0  # log probability that a lineage loses for each edit, before the pool's temperature
STEP = 8.0  # edits by which a taxon without references is farther than the one that it lies in
_MOST = 20.0  # nats: a greater margin says no more
_NEVER = -1e4  # log probability of what is not a candidate, while opinions are weighed


@dataclass(frozen=True)
class Inputs:
    """What N specimens are asked with; None = without it."""

    image: np.ndarray | None = None  # float32 [N, D], unit rows
    dna: np.ndarray | None = None  # float32 [N, D]
    nearest: Nearest | None = None
    measured: Mapping[str, np.ndarray] | None = None  # float64 [N]: length, n_share, sharpness

    def __len__(self) -> int:
        given = self.dna if self.dna is not None else self.image
        return len(given) if given is not None else len(self.nearest.length) if self.nearest is not None else 0

    def of(self, name: str, rows: slice) -> np.ndarray:
        """Return what was measured of some inputs, float64 [b]; 0 where nothing was."""
        values = (self.measured or {}).get(name)
        return np.zeros(rows.stop - rows.start) if values is None else values[rows]


@dataclass(frozen=True)
class Opinion:
    """What one expert says of b specimens."""

    expert: str
    log_p: Tensor  # float32 [b, L]
    quality: np.ndarray  # float64 [b, Q], in the order of QUALITIES
    speaks: np.ndarray  # bool [b]; False = it read nothing, or found nothing
    cosine: np.ndarray | None = None  # float64 [b], highest with any lineage; None = no cosines


def sharpness(view: np.ndarray) -> float:
    """Return the log of a photo's differences between neighbouring pixels, relative to its contrast.

    Blur takes the fine differences and leaves the contrast: a mean filter of side k lowers it by about 2 log k.

    Args:
        view: uint8 [S, S, 3].
    """
    grey = view[:, :, 0].astype(np.float32)
    grey += view[:, :, 1]
    grey += view[:, :, 2]
    grey /= 3
    fine = sum(
        float(np.vdot(step, step)) / max(1, step.size) for step in (grey[1:] - grey[:-1], grey[:, 1:] - grey[:, :-1])
    )
    return float(np.log((fine + 1e-2) / (grey.var() + 1.0)))


def barcode_quality(barcodes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return `length` (log of the known nucleotides) and `n_share` of clean barcodes, float64 [N]; "" = none."""
    letters = np.array([len(one) for one in barcodes], dtype=np.float64)
    unknown = np.array([one.count("N") for one in barcodes], dtype=np.float64)
    return {"length": np.log(np.maximum(letters - unknown, 1.0)), "n_share": unknown / np.maximum(letters, 1.0)}


@torch.inference_mode()
def opinions(
    scorer: Scorer, inputs: Inputs, rows: slice, *, without: np.ndarray | None = None, among: np.ndarray | None = None
) -> list[Opinion]:
    """Return what each expert says that has an input, in the order photo, barcode, library.

    Args:
        scorer: of the taxa that may be answered.
        inputs: of N specimens.
        rows: those that are asked about.
        without: int64 [N], a species that is no candidate, as if the model did not know it; -1 = none.
        among: bool [L], the lineages that compete; None = all.
    """
    never = _not_candidates(scorer, rows, without, among)
    found = []
    for expert, features in ((PHOTO, inputs.image), (BARCODE, inputs.dna)):
        if features is not None:
            chunk = torch.as_tensor(features[rows]).to(scorer.device).float()
            cosine = chunk @ scorer.leaf_text.T
            speaks = chunk.any(dim=1).cpu().numpy()
            if never is not None:
                cosine = cosine.masked_fill(never, -torch.inf)
            opinion = _opinion(expert, cosine * float(scorer.model.logit_scale), speaks, inputs, rows)
            found.append(replace(opinion, cosine=cosine.amax(1).double().cpu().numpy()))
    if inputs.nearest is not None:
        logits = -PER_EDIT * inputs.nearest.leaf_distances(scorer, rows, STEP)
        if never is not None:
            logits = logits.masked_fill(never, -torch.inf)
        found.append(_opinion(LIBRARY, logits, np.isfinite(inputs.nearest.least[rows]), inputs, rows))
    return found


def _not_candidates(scorer: Scorer, rows: slice, without: np.ndarray | None, among: np.ndarray | None) -> Tensor | None:
    """Return the lineages that may not be answered, bool [b, L]; None = all may. A query keeps its last lineage."""
    if without is None and among is None:
        return None
    never = torch.zeros(rows.stop - rows.start, len(scorer.leaves), dtype=torch.bool, device=scorer.device)
    if without is not None and never.shape[1] > 1:
        species = torch.as_tensor(without[rows]).to(scorer.device)
        leaf = scorer.leaf_of[int(scorer.first[-1]) + species.clamp(min=0)]
        gone = ((species >= 0) & (leaf >= 0)).nonzero()[:, 0]
        never[gone, leaf[gone]] = True
    if among is not None:
        never |= torch.as_tensor(~among).to(scorer.device)
    return never


def _opinion(expert: str, logits: Tensor, speaks: np.ndarray, inputs: Inputs, rows: slice) -> Opinion:
    log_p = logits.log_softmax(1)
    best = log_p.topk(min(2, log_p.shape[1]), dim=1).values.double().clamp(min=-_MOST)
    margin = best[:, 0] - best[:, 1] if best.shape[1] > 1 else torch.full_like(best[:, 0], _MOST)
    entropy = -(log_p.exp() * log_p.clamp(min=_NEVER)).sum(1).double() / np.log(max(2, log_p.shape[1]))
    own = {"margin": margin.cpu().numpy(), "entropy": entropy.cpu().numpy()}
    if expert == LIBRARY and inputs.nearest is not None:
        letters = np.maximum(inputs.nearest.length[rows], 1)
        own["rate"] = np.minimum(inputs.nearest.least[rows] / letters, FAR)
        own["references"] = np.log1p(inputs.nearest.references[rows])
    quality = np.column_stack([own[name] if name in own else inputs.of(name, rows) for name in QUALITIES[expert]])
    return Opinion(expert, log_p, quality, speaks)


def mixed(log_p: Sequence[Tensor], counts: Tensor) -> Tensor:
    """Return the log-linear pool of opinions: the normalised sum of weight times log probability, [b, L].

    Args:
        log_p: of M experts, [b, L] each; -inf = not a candidate.
        counts: [b, M], weights; an expert of weight 0 counts nothing.
    """
    total = torch.zeros_like(log_p[0])
    for number, one in enumerate(log_p):
        total = total + counts[:, number, None].to(one) * one.clamp(min=_NEVER)
    return total.masked_fill(torch.isneginf(log_p[0]), -torch.inf).log_softmax(1)
