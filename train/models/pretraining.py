"""What pretrains a barcode encoder: a head that names hidden k-mers, put on the tower and left out of what others load.

`masked` is BarcodeBERT's objective (Millan Arias et al., 2023): hidden tokens are replaced by [MASK], and a linear
layer names every k-mer, hidden or not, from the encoder's output there. `mae` is BarcodeMAE's (Safari et al., 2025):
the encoder reads the tokens that are not hidden, at their own positions; a decoder, dropped afterwards, gets a learned
vector in the place of each hidden one and names it.

Shapes: B barcodes, L tokens, V tokens that are not hidden (at most, of any barcode of the batch), W width, K = 4^k.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.signals.barcodes import FIRST_KMER, PAD
from train.config import LossConfig
from train.models.barcodebert import BarcodeBertEncoder
from train.models.bert_folder import BertShape


@dataclass
class Predicted:
    """What a batch becomes: scores of every k-mer at every place, and which of the places count."""

    logits: Tensor  # [B, L, K]
    kmers: Tensor  # int64 [B, L], the true ones; 0 where none is hidden
    hidden: Tensor  # bool [B, L]
    counted: Tensor  # bool [B, L], the places that the loss counts


class MaskedTokens(nn.Module):
    """[MASK] in the place of each hidden token -> the encoder -> a linear layer."""

    counts_shown = True  # the loss takes in the tokens that are not hidden

    def __init__(self, shape: BertShape, kmers: int, loss: LossConfig) -> None:
        super().__init__()
        self.classify = nn.Linear(shape.hidden_size, kmers)

    def forward(self, encoder: BarcodeBertEncoder, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Map int64 tokens [B, L] and bool hidden [B, L] to [B, L, K]."""
        # the encoder's id of padding is that of [MASK]: what sets them apart is the mask of attention
        return self.classify(encoder.states(tokens.masked_fill(hidden, PAD), tokens != PAD))


class MaskedAutoencoder(nn.Module):
    """The tokens that are not hidden -> the encoder -> a decoder that is shown where the hidden ones are."""

    counts_shown = False

    def __init__(self, shape: BertShape, kmers: int, loss: LossConfig) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel  # slow to import

        sizes = shape.to_dict() | {"num_hidden_layers": loss.decoder_layers, "vocab_size": 1}
        config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=None)
        config._attn_implementation = "sdpa"
        self.decoder: Any = BertModel(config, add_pooling_layer=False)
        # fed with vectors, it reads no token: its table stays, because the layout has one, and never trains
        self.decoder.embeddings.word_embeddings.requires_grad_(False)
        self.stand_in = nn.Parameter(torch.randn(shape.hidden_size) * 0.02)
        self.classify = nn.Linear(shape.hidden_size, kmers)

    def forward(self, encoder: BarcodeBertEncoder, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Map int64 tokens [B, L] and bool hidden [B, L] to [B, L, K]."""
        real = tokens != PAD
        seen, places, shown = visible(tokens, real & ~hidden)
        states = encoder.states(seen, shown, places)
        whole = self.stand_in.to(states.dtype).expand(*tokens.shape, -1)
        # a row of `visible` ends with places that it does not show: what stands there goes to a column of its own
        target = torch.where(shown, places, tokens.shape[1])[..., None].expand_as(states)
        whole = torch.cat([whole, whole[:, :1]], dim=1).scatter(1, target, states)[:, :-1]
        attend = real | ~real.any(1, keepdim=True)
        decoded = self.decoder(inputs_embeds=whole, attention_mask=attend.long()).last_hidden_state
        return self.classify(decoded)


def visible(tokens: Tensor, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the shown tokens of each row, in order: tokens, their positions, which are real, [B, V] each."""
    count = shown.sum(1)
    width = max(1, int(count.max()))
    places = shown.long().sort(dim=1, descending=True, stable=True).indices[:, :width]
    real = torch.arange(width, device=tokens.device) < count[:, None]
    return tokens.gather(1, places).masked_fill(~real, PAD), places, real


OBJECTIVES: dict[str, Callable[[BertShape, int, LossConfig], nn.Module]] = {
    "masked": MaskedTokens,
    "mae": MaskedAutoencoder,
}
"""`loss.objective` -> what is put on the encoder."""


class Pretraining(nn.Module):
    """The objective of a run on the rows of a batch."""

    def __init__(self, encoder: nn.Module, kmer: int, loss: LossConfig) -> None:
        """Raise UserError when the tower is not one that pretrains."""
        if not isinstance(encoder, BarcodeBertEncoder):
            allowed = "contrastive, or model.dna=barcodebert"
            raise UserError("loss.objective", f"{loss.objective} with another DNA tower", allowed)
        super().__init__()
        self.objective = OBJECTIVES[loss.objective](encoder.shape, 4**kmer, loss)

    def forward(self, encoder: nn.Module, batch: Mapping[str, Any]) -> Predicted:
        """Run the objective on a `collate.Batch` with `hidden` bool [B, L]; rows without a barcode count nowhere."""
        present = batch["valid"] & batch["has_dna"]
        rows = present.nonzero().squeeze(1)
        rows = rows if len(rows) else rows.new_zeros(1)  # every parameter takes part in each step, as DDP demands
        tokens = batch["dna_tokens"][rows] * present[rows][:, None]
        hidden = batch["hidden"][rows] & present[rows][:, None]
        logits = cast(Tensor, self.objective(encoder, tokens, hidden))
        counted = tokens >= FIRST_KMER if self.objective.counts_shown else hidden
        return Predicted(logits, (tokens - FIRST_KMER).clamp(min=0), hidden, counted)
