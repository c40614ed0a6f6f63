"""DNABERT-2's architecture with the published parameter names: a post-norm BERT with ALiBi and gated feed-forward.

A pair of tokens i, j differs by |i - j| alone: each head lowers its attention by slope * |i - j| (ALiBi, made
symmetric), so there are no position embeddings and no longest barcode. Written for torch's
scaled_dot_product_attention; equal to the published modelling code to 1e-4 (tests/train/models/test_dnabert2.py).

Shapes: B barcodes, L tokens, V vocabulary, W width, H heads, D embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.bert_folder import BertShape, masked_mean
from train.models.towers import run_block

MULTIPLE = 32  # tokens; rows are cut to the longest barcode rounded up to this, so that few shapes occur


def alibi_slopes(heads: int) -> list[float]:
    """Return one slope per head: the powers of 2^(-8/n) for n heads, n a power of two.

    Between two powers: those of the smaller n, then every second one of the larger.
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    if power == heads:
        return slopes
    return slopes + alibi_slopes(2 * power)[0::2][: heads - power]


class Embeddings(nn.Module):
    """int64 [B, L] -> [B, L, W]: token plus the one sentence type there is, normalised."""

    def __init__(self, shape: BertShape, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.token_type_embeddings = nn.Embedding(shape.type_vocab_size, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed int64 [B, L], ids of the file: [B, L, W]."""
        return self.dropout(self.LayerNorm(self.word_embeddings(tokens) + self.token_type_embeddings.weight[0]))


class SelfAttention(nn.Module):
    """[B, L, W] and bias [B or 1, H, L, L] -> [B, L, W]."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads = shape.num_attention_heads
        self.Wqkv = nn.Linear(shape.hidden_size, 3 * shape.hidden_size)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Attend over [B, L, W], bias [B or 1, H, L, L] in the attention's precision: heads side by side, [B, L, W]."""
        batch, length, width = x.shape
        q, k, v = self.Wqkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return mixed.transpose(1, 2).reshape(batch, length, width)


class SelfOutput(nn.Module):
    """Attention's result [B, L, W] and its input [B, L, W] -> [B, L, W]."""

    def __init__(self, shape: BertShape, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Return the normalised sum of the attention's result and its input, [B, L, W]."""
        return self.LayerNorm(self.dropout(self.dense(mixed)) + x)


class GatedMlp(nn.Module):
    """[B, L, W] -> [B, L, W]: gelu of one half of `gated_layers` times the other half."""

    def __init__(self, shape: BertShape, dropout: float) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(shape.hidden_size, 2 * shape.intermediate_size, bias=False)
        self.wo = nn.Linear(shape.intermediate_size, shape.hidden_size)
        self.layernorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, L, W] to [B, L, W], its input added, normalised."""
        gate, value = self.gated_layers(x).chunk(2, dim=-1)
        return self.layernorm(self.wo(self.dropout(F.gelu(gate) * value)) + x)


class Layer(nn.Module):
    """One block: [B, L, W] and bias [B or 1, H, L, L] -> [B, L, W]."""

    def __init__(self, shape: BertShape, dropout: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(shape), "output": SelfOutput(shape, dropout)})
        self.mlp = GatedMlp(shape, dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Map [B, L, W] with bias [B or 1, H, L, L] to [B, L, W]."""
        return self.mlp(self.attention["output"](self.attention["self"](x, bias), x))


class Bert(nn.Module):
    """int64 [B, L] and bool [B, L] -> the last hidden states [B, L, W]; what stands at padding means nothing."""

    def __init__(self, shape: BertShape, dropout: float) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape, dropout)
        layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.grad_checkpointing = False
        self.register_buffer("slopes", torch.tensor(alibi_slopes(shape.num_attention_heads)), persistent=False)
        self.apply(_initialise)

    slopes: Tensor

    def bias(self, mask: Tensor) -> Tensor:
        """Return what is added to the attention scores, float32 [B, H, L, L]: distance times slope, -inf at padding."""
        place = torch.arange(mask.shape[1], device=mask.device)
        distance = (place[None, :] - place[:, None]).abs().float()
        bias = -self.slopes[:, None, None] * distance
        # a row without real tokens looks at its padding: attention over nothing would be NaN
        hidden = ~(mask | ~mask.any(1, keepdim=True))
        return bias[None].masked_fill(hidden[:, None, None, :], -math.inf)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Encode int64 [B, L], ids of the file, with a bool mask [B, L] of the real tokens: [B, L, W]."""
        x = self.embeddings(tokens)
        kind = x.device.type  # in the precision of the attention, and converted to it once, not in every layer
        bias = self.bias(mask).to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype)
        for layer in self.encoder["layer"]:  # type: ignore[attr-defined]
            x = run_block(layer, self.grad_checkpointing, x, bias)
        return x


def _initialise(module: nn.Module) -> None:
    """Start as BERT does: normal weights of deviation 0.02, zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


@torch.compiler.disable
def _longest(mask: Tensor) -> int:
    """Count the columns of [B, L] that hold real tokens, rounded up to MULTIPLE; the call's one wait for the device."""
    last = int((mask.any(0) * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax())
    return min(max(1, -(-last // MULTIPLE)) * MULTIPLE, mask.shape[1])


class Dnabert2Encoder(nn.Module):
    """int64 tokens [B, L] of engine.signals.barcodes (0 = padding, else a file's id + 1) and mask [B, L] -> [B, D].

    The mean runs over real tokens only, the special tokens that the tokenizer adds among them.
    """

    def __init__(self, shape: BertShape, dropout: float, embed_dim: int) -> None:
        super().__init__()
        self.shape = shape
        self.bert = Bert(shape, dropout)
        self.project = nn.Linear(shape.hidden_size, embed_dim)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them, or stop doing so."""
        self.bert.grad_checkpointing = enable

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Encode int64 tokens [B, L], bool mask [B, L] of the real ones: [B, D], not normalised; padding is free."""
        length = _longest(mask)
        tokens, mask = tokens[:, :length], mask[:, :length]
        hidden = self.bert((tokens - 1).clamp(min=0), mask)
        return self.project(masked_mean(hidden, mask))
