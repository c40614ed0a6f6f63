"""One feature from two: a gate that weighs image against barcode, dimension by dimension.

Shapes: B specimens, D embedding, C taxa of a rank.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedFusion(nn.Module):
    """gate = sigmoid(Linear(dropout(relu(Linear([image; dna]))))); fused = normalise(gate * image + (1 - gate) * dna).

    The one implementation for training, evaluation and serving. A row of zeros means that the modality is missing:
    such a specimen's fused feature is the other modality, untouched by the gate, or zeros when it has neither.
    """

    def __init__(self, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * embed_dim, 2 * embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(2 * embed_dim, embed_dim)

    def gate(self, image: Tensor, dna: Tensor) -> Tensor:
        """Return the image's share in 0..1, [B, D], of two features [B, D]."""
        hidden = F.relu(self.hidden(torch.cat([image, dna], dim=1)))
        return torch.sigmoid(self.out(self.dropout(hidden)).float())

    def forward(self, image: Tensor, dna: Tensor) -> Tensor:
        """Fuse unit features [B, D] and [B, D] (zero rows = missing) into unit features [B, D], float32."""
        image, dna = image.float(), dna.float()
        both = image.ne(0).any(1, keepdim=True) & dna.ne(0).any(1, keepdim=True)
        gate = self.gate(image, dna)
        mixed = F.normalize(gate * image + (1.0 - gate) * dna, dim=1)
        return torch.where(both, mixed, image + dna)


class RankHeads(nn.Module):
    """One linear classifier per rank on the fused feature, [B, D] -> R tensors [B, C_r] (the paper's eq. 11)."""

    def __init__(self, embed_dim: int, num_taxa: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(embed_dim, max(1, count)) for count in num_taxa)

    def forward(self, fused: Tensor) -> tuple[Tensor, ...]:
        """Return logits [B, C_r] of features [B, D] for each rank, coarsest first."""
        return tuple(head(fused) for head in self.heads)
