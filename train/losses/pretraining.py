"""Which tokens a pretraining hides, and the cross-entropy of naming them.

Shapes: B barcodes, L tokens, K = 4^k.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from engine.specimens.schema import uniforms_for
from train.losses.total import global_means

if TYPE_CHECKING:
    from train.models.pretraining import Predicted

FIRST_KMER = 2  # as in engine.signals.barcodes: tokens below are padding and k-mers with N, which nobody can name


def hidden_tokens(tokens: Tensor, keys: Sequence[str], share: float, seed: int, step: int) -> Tensor:
    """Choose the tokens to hide: bool [B, L], `share` of the k-mers of each row, at least one and never all.

    Drawn from (seed, step, key) of each specimen: no worker, batch or restart changes them. tokens: int64 [B, L].
    """
    real = tokens.numpy() >= FIRST_KMER
    draws = uniforms_for(seed, step, keys, "hidden", tokens.shape[1])
    rank = np.where(real, draws, 2.0).argsort(axis=1).argsort(axis=1)
    count = real.sum(axis=1)
    wanted = np.clip(np.round(share * count), 1, np.maximum(count - 1, 0))
    return torch.from_numpy((rank < wanted[:, None]) & real)


def token_loss(predicted: "Predicted") -> dict[str, Tensor]:
    """Return the mean cross-entropy over the tokens of the global batch that count, and the share of hidden ones named.

    Scalars "loss/total" (the one to backward) and "loss/named". Collective.
    """
    logits = predicted.logits.float()
    each = functional.cross_entropy(logits.flatten(0, 1), predicted.kmers.flatten(), reduction="none")
    counted, hidden = predicted.counted.flatten(), predicted.hidden.flatten()
    right = logits.detach().argmax(-1).flatten() == predicted.kmers.flatten()
    sums = torch.stack([(each * counted).sum(), (right & hidden).sum().float()])
    total, named = global_means(torch.stack([sums, torch.stack([counted.sum(), hidden.sum()])]))
    return {"loss/total": total, "loss/named": named.detach()}
