"""Random batches for the tests of the losses: labels with gaps and holes, missing modalities, padded rows."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from train.losses import Targets

if TYPE_CHECKING:
    from train.models.trimodal import Features  # not at run time: it loads open_clip, seconds for each spawned rank

NUM_TAXA = (2, 3, 4, 6)
NAMES = ("image", "image_view2", "dna", "text", "fused")


def random_targets(seed: int, num_rows: int = 9, hole: float = 0.2, missing: float = 0.2) -> Targets:
    """Few taxa, so that positives, negatives and compatible pairs all occur; about one padded row in ten."""
    rng = np.random.default_rng(seed)
    species = rng.integers(0, NUM_TAXA[3], num_rows)
    genus = species * NUM_TAXA[2] // NUM_TAXA[3]
    family = genus * NUM_TAXA[1] // NUM_TAXA[2]
    labels = np.stack([family * NUM_TAXA[0] // NUM_TAXA[1], family, genus, species], axis=1)
    depth = rng.integers(0, 5, num_rows)  # most stop above species
    labels[(np.arange(4) >= depth[:, None]) & (rng.random(num_rows) < 0.5)[:, None]] = -1
    labels[rng.random(labels.shape) < hole] = -1
    caption = labels.copy()
    caption[(np.arange(4) >= rng.integers(1, 5, num_rows)[:, None]) & (rng.random(num_rows) < 0.3)[:, None]] = -1
    bins = np.where(rng.random(num_rows) < 0.5, species * 2 + rng.integers(0, 2, num_rows), -1)
    valid = rng.random(num_rows) > 0.1
    has = [valid & (rng.random(num_rows) >= missing) for _ in range(3)]
    barcode = np.where(has[1], rng.integers(0, 2 * num_rows, num_rows), -1)
    has_text = has[2] & (caption >= 0).any(axis=1)
    arrays = (labels, caption, bins, barcode, has[0], has[1], has_text)
    return Targets(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def presence(targets: Targets) -> dict[str, Tensor]:
    """Which rows of each feature exist."""
    image, dna = targets.has_image, targets.has_dna
    return {"image": image, "image_view2": image, "dna": dna, "text": targets.has_text, "fused": image | dna}


def random_features(seed: int, targets: Targets, dim: int = 5, dtype: torch.dtype = torch.float64) -> "Features":
    """Unit rows, zero rows where missing, logits of heads; leaves that collect gradient."""
    generator = torch.Generator().manual_seed(seed)
    leaves = {}
    for name, present in presence(targets).items():
        rows = functional.normalize(torch.randn(len(present), dim, generator=generator, dtype=torch.float64), dim=1)
        leaves[name] = (rows * present[:, None]).to(dtype).requires_grad_()
    heads = tuple(
        torch.randn(len(targets.bin), taxa, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for taxa in NUM_TAXA
    )
    scale = torch.tensor(1 / 0.07, dtype=dtype).requires_grad_()
    return cast("Features", SimpleNamespace(**leaves, logit_scale=scale, rank_logits=heads))


def gradients(features: "Features", loss: Tensor) -> dict[str, Tensor]:
    """d loss / d every feature (zeros where the loss does not depend on it)."""
    leaves = {name: getattr(features, name) for name in (*NAMES, "logit_scale")}
    leaves |= {f"head{level}": head for level, head in enumerate(features.rank_logits or ())}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found, strict=True)
    }
