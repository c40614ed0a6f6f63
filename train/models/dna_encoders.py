"""Barcode tokens to features: a light bag of k-mers, a transformer in the style of BarcodeBERT, and published BERTs.

All take int64 tokens [B, L] (0 = padding, 1 = a k-mer with an unknown base, 2.. = k-mers) and a bool mask [B, L] of
real tokens, and give [B, D], not normalised. Padding changes nothing: a barcode alone equals itself in any batch.

Shapes: B barcodes, L tokens, V vocabulary, W width, D embedding.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import DataConfig
from engine.signals.barcodes import FIRST_KMER, make_tokenizer
from train.config import ModelConfig
from train.models import bert_folder
from train.models.barcodebert import BarcodeBertEncoder, num_specials
from train.models.bert_folder import BertShape, masked_mean
from train.models.dnabert2 import Dnabert2Encoder
from train.models.towers import run_block


class ResidualMlp(nn.Module):
    """[B, W] -> [B, W]: x + W2 gelu(W1 norm(x))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, W] to [B, W]."""
        return x + self.dropout(self.down(F.gelu(self.up(self.norm(x)))))


class KmerBag(nn.Module):
    """Counts of k-mers, square-rooted and scaled to unit length, through a residual MLP.

    Counting [B, L] into [B, V] and one dense product is several times faster on a CPU than summing L embedding rows.
    Position plays no part, so a fragment has k-mers of the barcode it comes from. Unknown k-mers are not counted.
    """

    def __init__(self, config: ModelConfig, vocabulary: int, embed_dim: int) -> None:
        super().__init__()
        width = config.dna_width
        self.vocabulary = vocabulary
        self.grad_checkpointing = False
        self.embed = nn.Linear(vocabulary, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.Sequential(*(ResidualMlp(width, config.dropout) for _ in range(config.dna_depth)))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embed_dim)
        # an input of unit length: rows of the embedding as long as those of a usual token embedding
        nn.init.normal_(self.embed.weight, std=1.0)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks' activations again in the backward pass instead of keeping them, or stop doing so."""
        self.grad_checkpointing = enable

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Encode int64 tokens [B, L] with a bool mask [B, L] of the real ones: [B, D], not normalised."""
        real = (mask & (tokens >= FIRST_KMER)).float()
        counts = torch.zeros(len(tokens), self.vocabulary, device=tokens.device)
        counts.scatter_add_(1, tokens, real)
        hidden = self.dropout(self.embed(F.normalize(counts.sqrt(), dim=1)))
        for block in self.blocks:
            hidden = run_block(block, self.grad_checkpointing, hidden)
        return self.project(self.norm(hidden))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP: [B, L, W] -> [B, L, W]; `attend` bool [B, 1, 1, L] marks the keys to look at."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        """Map [B, L, W] with bool [B, 1, 1, L] to [B, L, W]."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class KmerTransformer(nn.Module):
    """Tokens + learned positions -> pre-norm transformer -> mean over real tokens only."""

    def __init__(self, config: ModelConfig, vocabulary: int, length: int, embed_dim: int) -> None:
        super().__init__()
        width, heads = config.dna_width, config.dna_heads
        if width % heads:
            raise ValueError(f"model.dna_heads must divide model.dna_width, got {heads} and {width}")
        self.grad_checkpointing = False
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.position = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, config.dropout) for _ in range(config.dna_depth))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embed_dim)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks' activations again in the backward pass instead of keeping them, or stop doing so."""
        self.grad_checkpointing = enable

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Encode int64 tokens [B, L] with a bool mask [B, L] of the real ones: [B, D], not normalised."""
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        # a row without real tokens looks at its padding: attention over nothing would be NaN
        attend = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
        for block in self.blocks:
            x = run_block(block, self.grad_checkpointing, x, attend)
        return self.project(masked_mean(self.norm(x), mask))


def build_dna_encoder(
    config: ModelConfig, data: DataConfig, embed_dim: int, shape: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build the tower `model.dna` for the tokens of `data`.

    `shape` is what a checkpoint recorded of a published tower: with it `model.dna_pretrained` is not looked up and the
    caller loads the weights. Raises ValueError where tower and tokens do not fit.
    """
    if config.dna in ("dnabert2", "barcodebert"):
        return _build_bert(config, data, embed_dim, shape)
    tokenizer = make_tokenizer(data)
    if config.dna == "kmer_bag":
        return KmerBag(config, tokenizer.vocab_size, embed_dim)
    return KmerTransformer(config, tokenizer.vocab_size, tokenizer.length, embed_dim)


def _build_bert(
    config: ModelConfig, data: DataConfig, embed_dim: int, recorded: Mapping[str, Any] | None
) -> Dnabert2Encoder | BarcodeBertEncoder:
    tokenizer = make_tokenizer(data)
    weights: dict[str, Tensor] = {}
    if recorded is not None:
        shape = BertShape.from_dict(recorded)
    elif config.dna_pretrained:
        shape, weights = bert_folder.read(config.dna_pretrained)
    else:
        shape = BertShape(
            # BPE ids begin at 0 = token 1; BarcodeBERT's vocabulary has as many special tokens as ours
            vocab_size=tokenizer.vocab_size - (config.dna == "dnabert2"),
            hidden_size=config.dna_width,
            num_hidden_layers=config.dna_depth,
            num_attention_heads=config.dna_heads,
            intermediate_size=4 * config.dna_width,
            max_position_embeddings=max(512, tokenizer.length),
        )
    encoder: Dnabert2Encoder | BarcodeBertEncoder
    if config.dna == "dnabert2":
        if tokenizer.vocab_size - 1 != shape.vocab_size:
            raise ValueError(
                f"model.dna_pretrained: the tower has {shape.vocab_size} tokens, but data.tokenizer={data.tokenizer} "
                f"makes {tokenizer.vocab_size - 1}; allowed: data.tokenizer=bpe with the tower's own tokenizer.json"
            )
        encoder = Dnabert2Encoder(shape, config.dropout, embed_dim)
    else:
        if data.tokenizer != "kmer" or data.kmer_stride != data.kmer:
            raise ValueError(
                f"model.dna=barcodebert reads k-mers that do not overlap: got data.tokenizer={data.tokenizer}, "
                f"data.kmer={data.kmer}, data.kmer_stride={data.kmer_stride}; allowed kmer, kmer_stride equal to kmer"
            )
        specials = num_specials(shape, data.kmer, tokenizer.length)
        encoder = BarcodeBertEncoder(shape, specials, config.dropout, embed_dim)
    if weights:
        bert_folder.fill(encoder.bert, weights, config.dna_pretrained)
    return encoder
