"""What the towers have in common: a stack of blocks, a head after it, and what of the two trains.

Freezing, unfreezing the last blocks and gradient checkpointing work on any tower of the model: open_clip's own, those
that open_clip takes from timm and transformers, and ours.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from train.config import ModelConfig

STACKS = (  # where a tower keeps its blocks
    "transformer.resblocks",  # open_clip
    "trunk.blocks",  # timm inside open_clip, and our convolutional trunk
    "transformer.encoder.layer",  # BERT and its kin inside open_clip
    "transformer.encoder.block",  # T5 inside open_clip
    "bert.encoder.layer",  # DNABERT-2, BarcodeBERT
    "blocks",  # ours
)
PROJECTIONS = ("proj", "text_projection", "head", "project")  # the last layer of a tower: into the shared space
TRUNK_NORMS = ("trunk.norm", "trunk.fc_norm", "trunk.attn_pool")
NORMS = ("ln_post", "ln_final", "attn_pool", "norm", *TRUNK_NORMS)  # between stack and projection


class Checkpointing(Protocol):
    """A tower that can forget activations and compute them again in the backward pass."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them, or stop doing so."""


def find_blocks(tower: nn.Module) -> list[nn.Module]:
    """List the tower's blocks from input to output; [] where it has no stack that we know."""
    for path in STACKS:
        try:
            stack = tower.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(stack, nn.ModuleList | nn.Sequential):
            return list(stack)
    return []


def head_parameters(tower: nn.Module, places: tuple[str, ...]) -> Iterator[nn.Parameter]:
    """Yield the parameters at or below the named places of the tower."""
    for name, parameter in tower.named_parameters():
        if any(name == place or name.startswith(place + ".") for place in places):
            yield parameter


def run_block(block: nn.Module, forget: bool, *inputs: Tensor) -> Tensor:
    """Return block(*inputs); with `forget` its activations are not kept but computed again in the backward pass."""
    if forget and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
    return block(*inputs)


def freeze(tower: nn.Module, unfrozen: int, option: str) -> bool:
    """Freeze all but the last `unfrozen` blocks, the norm and projection after them; return whether anything trains.

    Raises ValueError, naming `option`, when the tower has not that many blocks.
    """
    tower.requires_grad_(False)
    blocks = find_blocks(tower)
    if unfrozen > len(blocks):
        raise ValueError(f"{option}: got {unfrozen}, allowed 0..{len(blocks)}, the blocks of this tower")
    if not unfrozen:
        return False
    for block in blocks[-unfrozen:]:
        block.requires_grad_(True)
    for parameter in head_parameters(tower, PROJECTIONS + NORMS):
        parameter.requires_grad_(True)
    return True


def forget_activations(tower: nn.Module, name: str) -> None:
    """Switch on gradient checkpointing of every block. Raises ValueError, naming the tower, when it cannot."""
    transformer = getattr(tower, "transformer", None)
    enable: Callable[..., Any] | None = getattr(transformer, "gradient_checkpointing_enable", None)
    if enable is not None:  # a Hugging Face model; open_clip would switch on the reentrant form, which needs an input
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # with gradient and so stops at frozen weights
        return
    trunk = getattr(tower, "trunk", tower)  # open_clip only warns when a timm trunk cannot
    if not find_blocks(tower) or not hasattr(trunk, "set_grad_checkpointing"):
        raise ValueError(
            f"model.gradient_checkpointing: the {name} tower ({type(trunk).__name__}) cannot; allowed: false"
        )
    cast(Checkpointing, trunk).set_grad_checkpointing(True)


def check_options(config: ModelConfig) -> None:
    """Raise ValueError for options that contradict one another, before any tower is built."""
    for tower, frozen, unfrozen in (
        ("image", config.freeze_image, config.unfreeze_image_blocks),
        ("text", config.freeze_text, config.unfreeze_text_blocks),
    ):
        if unfrozen and not frozen:
            raise ValueError(
                f"model.unfreeze_{tower}_blocks: got {unfrozen} with model.freeze_{tower}=false, "
                f"allowed 0, or freeze_{tower}=true"
            )
        if config.lora_rank and frozen and tower in config.lora_towers:
            others = ",".join(name for name in config.lora_towers if name != tower)
            raise ValueError(
                f"model.lora_towers: got {','.join(config.lora_towers)} with model.freeze_{tower}=true, "
                f"allowed {others or 'other towers, or model.lora_rank=0'}"
            )
    if config.lora_rank and not config.lora_towers:
        raise ValueError(f"model.lora_towers: got none with model.lora_rank={config.lora_rank}, allowed image,text,dna")
    if config.lora_rank and not config.lora_targets:
        raise ValueError(f"model.lora_targets: got none with model.lora_rank={config.lora_rank}, allowed q,k,v,out,mlp")
    if config.dna_pretrained and config.dna not in ("dnabert2", "barcodebert"):
        raise ValueError(
            f"model.dna_pretrained: got {config.dna_pretrained!r} with model.dna={config.dna}, "
            f"allowed '' or model.dna=dnabert2, barcodebert"
        )
