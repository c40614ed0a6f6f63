"""Low-rank adaptation: each adapted matrix W gets an update (alpha / rank) * up @ down, and W itself stays fixed.

open_clip's blocks keep q, k and v in one matrix of an `nn.MultiheadAttention` that reads its weights without calling
a layer. So the attention is replaced by one that computes the same with a low-rank branch for each of the three, and
every other layer by a linear layer with a branch. Both keep the base weights under their old names, which
`torch.nn.utils.parametrize` would not, and build no full matrix for an update.

Shapes: B rows, L tokens, W width, r rank.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import ModelConfig
from train.models.towers import PROJECTIONS, find_blocks, head_parameters

QKV = ("q", "k", "v")
# layers of a block by name, and the target each is; "qkv" = three matrices in one, one above the other
LAYERS = {
    "mlp.c_fc": "mlp",
    "mlp.c_proj": "mlp",  # open_clip, beside its attention
    "attn.qkv": "qkv",
    "attn.proj": "out",
    "mlp.fc1": "mlp",
    "mlp.fc2": "mlp",  # timm
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",  # BERT
    "attention.output.dense": "out",
    "intermediate.dense": "mlp",
    "output.dense": "mlp",
    "attention.self.Wqkv": "qkv",
    "mlp.gated_layers": "mlp",
    "mlp.wo": "mlp",  # DNABERT-2
    "qkv": "qkv",
    "out": "out",
    "up": "mlp",
    "down": "mlp",  # ours
}


class LowRank(nn.Module):
    """The update of one matrix [out, in]: [..., in] -> [..., out]; zero until it is trained."""

    def __init__(self, width_in: int, width_out: int, config: ModelConfig, like: Tensor) -> None:
        super().__init__()
        self.scale = config.lora_alpha / config.lora_rank
        self.dropout = nn.Dropout(config.lora_dropout)
        self.down = nn.Parameter(torch.empty(config.lora_rank, width_in, dtype=like.dtype, device=like.device))
        self.up = nn.Parameter(torch.zeros(width_out, config.lora_rank, dtype=like.dtype, device=like.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to the base layer's result: [..., in] to [..., out]."""
        return F.linear(F.linear(self.dropout(x), self.down), self.up) * self.scale


class LoraLinear(nn.Linear):
    """A linear layer with an update for each of its `parts`: one, or q, k and v one above the other."""

    def __init__(self, base: nn.Linear, parts: Iterable[str | None], config: ModelConfig) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.parts = tuple(parts)  # from first row to last; None = not adapted
        rows = base.out_features // len(self.parts)
        self.lora = nn.ModuleDict(
            {part: LowRank(base.in_features, rows, config, base.weight) for part in self.parts if part}
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out], updates included."""
        y = super().forward(x)
        if len(self.parts) == 1:
            return y + self.lora[self.parts[0] or ""](x)
        chunks = y.chunk(len(self.parts), dim=-1)
        return torch.cat([c + self.lora[p](x) if p else c for c, p in zip(chunks, self.parts, strict=True)], dim=-1)


class LoraAttention(nn.Module):
    """An `nn.MultiheadAttention` (self-attention of one width, as in open_clip's blocks) with updates of q, k, v."""

    def __init__(self, base: nn.MultiheadAttention, config: ModelConfig) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.batch_first = base.embed_dim, base.num_heads, base.batch_first
        self.attention_dropout = base.dropout
        self.in_proj_weight, self.in_proj_bias, self.out_proj = base.in_proj_weight, base.in_proj_bias, base.out_proj
        self.parts = tuple(part if part in config.lora_targets else None for part in QKV)
        width, like = base.embed_dim, base.in_proj_weight
        self.lora = nn.ModuleDict({part: LowRank(width, width, config, like) for part in self.parts if part})

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend as `nn.MultiheadAttention` where key and value are the query ([B, L, W] when batch_first)."""
        assert query is key and key is value and not need_weights, "self-attention without weights only"
        x = query if self.batch_first else query.transpose(0, 1)
        batch, length, width = x.shape
        chunks = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        chunks = tuple(c + self.lora[p](x) if p else c for c, p in zip(chunks, self.parts, strict=True))
        q, k, v = (c.view(batch, length, self.num_heads, -1).transpose(1, 2) for c in chunks)
        if attn_mask is not None:
            # MultiheadAttention hides what is True, scaled_dot_product_attention shows it
            attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(q.dtype)
            if attn_mask.ndim == 3:  # [B * heads, L, L]
                attn_mask = attn_mask.view(batch, self.num_heads, length, length)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)
        out = self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return (out if self.batch_first else out.transpose(0, 1)), None


def _adaptable(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.MultiheadAttention)
        and module.in_proj_weight is not None
        and module.bias_k is None
        and not module.add_zero_attn
    )


def _adapt_block(block: nn.Module, config: ModelConfig) -> tuple[int, bool]:
    """Adapt one block in place: (matrices adapted, whether it has q, k and v that we know)."""
    adapted, known = 0, set[str]()
    targets: tuple[str, ...] = config.lora_targets
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and _adaptable(module):
            known |= set(QKV)
            if "out" in targets:
                module.out_proj = LoraLinear(module.out_proj, ["out"], config)  # type: ignore[assignment]
                adapted += 1
            attention = LoraAttention(module, config)
            adapted += len(attention.lora)
            if attention.lora or "out" in targets:  # plain attention would read out_proj's weight past its update
                block.set_submodule(name, attention)
        elif isinstance(module, nn.Linear) and name in LAYERS:
            role = LAYERS[name]
            known |= set(QKV if role == "qkv" else [role])
            parts = [part if part in targets else None for part in (QKV if role == "qkv" else [role])]
            if any(parts):
                layer = LoraLinear(module, parts, config)
                block.set_submodule(name, layer)
                adapted += len(layer.lora)
    return adapted, known >= set(QKV)


def adapt(tower: nn.Module, config: ModelConfig, name: str) -> int:
    """Freeze the tower but its projection and add updates to every block, in place: the count of adapted matrices.

    Raises ValueError, naming the tower, when it has no blocks with an attention that we know.
    """
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    tower.requires_grad_(False)
    count = 0
    trunk = getattr(tower, "trunk", None)  # of timm's attentions not all call their layers; this one's do
    known = trunk is None or isinstance(trunk, TimmVisionTransformer)
    for block in find_blocks(tower) if known else []:
        adapted, attends = _adapt_block(block, config)
        if not attends:
            count = 0
            break
        count += adapted
    if not count:
        kind = type(getattr(tower, "trunk", tower)).__name__
        others = ",".join(other for other in config.lora_towers if other != name) or "none, with model.lora_rank=0"
        raise ValueError(
            f"model.lora_towers: the {name} tower ({kind}) has no attention that can be adapted, allowed {others}"
        )
    for parameter in head_parameters(tower, PROJECTIONS):
        parameter.requires_grad_(True)
    return count
