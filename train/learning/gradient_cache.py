"""A batch larger than memory with the exact gradient of the whole: gradient caching (Gao et al., arXiv 2101.06983).

    encode    every part without a graph -> features of the whole batch, as leaves
    (loss)    the loss of the whole batch, backward as far as those leaves
    replay    every part again with a graph, backward from the leaves' gradients; replicas are averaged in the last

Costs one more forward; memory for activations is that of one part. Dropout is seeded per part, so both passes see the
same. Legend: B rows of this worker, n rows of a part, U unique captions, T text tokens.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.batches.collate import Batch
from train.models.trimodal import Features

Forward = Callable[[Batch], Features]
ROWS = ("image", "image_view2", "dna", "text", "fused")


def split(batch: Batch, rows: int) -> list[Batch]:
    """Parts of at most `rows` rows, in order, each with the captions that it uses."""
    size = len(batch["valid"])
    return [_part(batch, slice(start, start + rows)) for start in range(0, size, rows)]


def _part(batch: Batch, rows: slice) -> Batch:
    values: dict[str, Any] = dict(batch)
    part = {name: value[rows] for name, value in values.items() if name != "text_tokens"}
    if "text_tokens" in batch:
        used, index = torch.unique(part["text_index"], return_inverse=True)
        known = used >= 0  # -1, a row without a caption, is the smallest
        part["text_index"] = index - int((~known).sum())
        tokens = batch["text_tokens"]
        part["text_tokens"] = tokens[used[known]] if bool(known.any()) else tokens[:0]
    return part  # type: ignore[return-value]


def encode(forward: Forward, parts: list[Batch], seed: Callable[[int], None]) -> Features:
    """Features of the whole batch [B, D] without a graph behind them; they collect gradient."""
    found = []
    with torch.no_grad():
        for number, part in enumerate(parts):
            seed(number)
            found.append(forward(part))
    heads = zip(*(features.rank_logits or () for features in found), strict=True)
    return Features(
        **{name: _whole([getattr(features, name) for features in found]) for name in ROWS},
        logit_scale=found[0].logit_scale.detach().clone().requires_grad_(),
        rank_logits=tuple(_whole(list(level)) for level in heads) or None,
    )


def _whole(parts: list[Any]) -> Any:
    return None if parts[0] is None else torch.cat(parts).requires_grad_()


def replay(
    forward: Forward,
    parts: list[Batch],
    leaves: Features,
    seed: Callable[[int], None],
    quiet: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Backward through every part, from the gradients that the loss left in `leaves`.

    quiet: a context in which replicas are not averaged (DDP's no_sync); all parts but the last run in it.
    """
    start = 0
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with contextlib.nullcontext() if last else quiet():
            seed(number)
            features = forward(part)
            rows = slice(start, start + len(part["valid"]))
            # The temperature belongs to no row: its gradient goes in once, with the last part.
            total = features.logit_scale * (_gradient(leaves.logit_scale) if last else 0.0)
            for tensor, leaf in _pairs(features, leaves):
                total = total + (tensor * _gradient(leaf)[rows]).sum()
            if total.requires_grad:
                total.backward()
        start = rows.stop


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _pairs(features: Features, leaves: Features) -> list[tuple[Tensor, Tensor]]:
    both = [(getattr(features, name), getattr(leaves, name)) for name in ROWS]
    both += list(zip(features.rank_logits or (), leaves.rank_logits or (), strict=True))
    return [(tensor, leaf) for tensor, leaf in both if tensor is not None]
