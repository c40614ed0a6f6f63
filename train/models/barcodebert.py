"""BarcodeBERT's layout: a Hugging Face BERT over k-mers that do not overlap, under its published parameter names.

Its vocabulary is its special tokens, then the k-mers of A, C, G, T in alphabetic order. The last special token is the
unknown one (k-mers with N); the first releases have two before it (mask, class), the later ones one (mask).

Shapes: B barcodes, L tokens, W width, D embedding.
"""

from typing import Any

import torch
from torch import Tensor, nn

from engine.signals.barcodes import UNKNOWN
from train.models.bert_folder import OPTION, BertShape, masked_mean

SPECIALS = (2, 3)  # special tokens that published vocabularies begin with


def num_specials(shape: BertShape, k: int, length: int) -> int:
    """Count the special tokens before the k-mers. Raises ValueError when the vocabulary is not one of this k."""
    specials = shape.vocab_size - 4**k
    if specials not in SPECIALS:
        raise ValueError(
            f"{OPTION}: a vocabulary of {shape.vocab_size} does not fit data.kmer={k}, "
            f"allowed {' or '.join(str(4**k + extra) for extra in SPECIALS)}"
        )
    if length > shape.max_position_embeddings:
        raise ValueError(
            f"{OPTION}: {length} tokens of data.max_nucleotides do not fit {shape.max_position_embeddings} positions"
        )
    return specials


class BarcodeBertEncoder(nn.Module):
    """int64 tokens [B, L] of signals.barcodes (0 = padding, 1 = unknown, 2.. = k-mers) and mask [B, L] -> [B, D]."""

    def __init__(self, shape: BertShape, specials: int, dropout: float, embed_dim: int) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel  # slow to import

        self.shape = shape
        self.shift = specials - 1 - UNKNOWN  # from our unknown token to the published one
        config = BertConfig(
            **shape.to_dict(), hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, pad_token_id=None
        )
        config._attn_implementation = "sdpa"
        self.bert: Any = BertModel(config, add_pooling_layer=False)
        self.project = nn.Linear(shape.hidden_size, embed_dim)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them, or stop doing so."""
        if enable:
            self.bert.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.bert.gradient_checkpointing_disable()

    def states(self, tokens: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the last layer's output [B, L, W]; `positions` int64 [B, L], None = 0, 1, .. (see `forward`).

        Padding that the mask calls real is read as [MASK], whose id it has.
        """
        # a row without real tokens looks at its padding: attention over nothing would be NaN
        attend = mask | ~mask.any(1, keepdim=True)
        ids = torch.where(tokens >= UNKNOWN, tokens + self.shift, 0)
        states: Tensor = self.bert(input_ids=ids, attention_mask=attend.long(), position_ids=positions)[0]
        return states

    def pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the last layer's output over the real tokens: [B, W], what pretraining leaves."""
        return masked_mean(self.states(tokens, mask), mask)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Encode int64 tokens [B, L] with a bool mask [B, L] of the real ones: [B, D], not normalised."""
        return self.project(self.pooled(tokens, mask))
