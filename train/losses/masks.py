"""Who is compared with whom: a batch's targets, features gathered over workers, positive and negative masks.

Where anchors x candidates would not fit, the losses go through the anchors a part at a time (`over_parts`) and compute
each part again for its gradient, so that memory grows with G, not with B x G.

Legend: B rows of this worker, G = B x world size rows of the whole step, D embedding, R taxonomic ranks. Rows of all
workers stand in order, so row i of this worker is row `offset + i` of the G. Missing labels are -1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from train import dist

if TYPE_CHECKING:
    from train.models.trimodal import Features

PAIRS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 27}  # anchors x candidates: 16 MB (about a cache) and 512 MB a matrix

Positives = Literal["masked", "caption", "bin", "specimen"]


class Targets(NamedTuple):
    """What the losses know about each specimen. `has_*` are False in padded and corrupt rows."""

    labels: Tensor  # int64 [B, R]
    caption: Tensor  # int64 [B, R]: the labels that the caption shows
    bin: Tensor  # int64 [B]
    barcode: Tensor  # int64 [B]: identity of the cleaned barcode
    has_image: Tensor  # bool [B]
    has_dna: Tensor  # bool [B]
    has_text: Tensor  # bool [B]

    @classmethod
    def from_batch(cls, batch: Mapping[str, Any]) -> "Targets":
        """Of an engine Batch. A row has text when its caption knows a rank (and `text_index`, if there, is not -1)."""
        valid, caption = batch["valid"], batch["caption"]
        has_text = valid & (caption >= 0).any(dim=1)
        if "text_index" in batch:
            has_text = has_text & (batch["text_index"] >= 0)
        has_image, has_dna = batch["has_image"] & valid, batch["has_dna"] & valid
        return cls(batch["labels"], caption, batch["bin"], batch["barcode"], has_image, has_dna, has_text)

    def gather(self) -> "Targets":
        """Gather the targets of all ranks, [G, ...], in one collective."""
        if dist.world_size() == 1:
            return self
        parts = [part.reshape(len(part), -1) for part in self]
        packed = dist.gather(torch.cat([part.long() for part in parts], dim=1))
        columns = packed.split([part.shape[1] for part in parts], dim=1)
        return Targets(*(c.reshape(-1, *own.shape[1:]).to(own.dtype) for c, own in zip(columns, self, strict=True)))


class Pairs(NamedTuple):
    """Relation of anchors to candidates. What is in neither mask is left out of the softmax."""

    positive: Tensor  # bool [B, G]
    candidate: Tensor  # bool [B, G]: positives and negatives


@dataclass(frozen=True)
class World:
    """This rank's features and targets beside those of all ranks, features in float32 (float64 stays float64)."""

    local: dict[str, Tensor]  # feature name -> [B, D]
    columns: dict[str, Tensor]  # feature name -> [G, D]; the same object as `local` when this worker is alone
    logit_scale: Tensor  # scalar, 1 / temperature
    targets: Targets  # [B, ...]
    all_targets: Targets  # [G, ...]
    offset: int  # row of the G that is this rank's first

    def part(self, start: int, stop: int) -> "World":
        """Rows start..stop of this rank's anchors against all candidates."""
        local = {name: rows[start:stop] for name, rows in self.local.items()}
        targets = Targets(*(column[start:stop] for column in self.targets))
        return replace(self, local=local, targets=targets, offset=self.offset + start)

    def detached(self, name: str) -> "World":
        """Return the same without gradient into one feature."""
        local = self.local | {name: self.local[name].detach()}
        alone = self.columns is self.local
        columns = local if alone else self.columns | {name: self.columns[name].detach()}
        return replace(self, local=local, columns=columns)

    def itself(self) -> Tensor:
        """Return bool [B, G]: the candidate is the anchor's own specimen."""
        rows = torch.arange(len(self.targets.bin), device=self.targets.bin.device) + self.offset
        return rows[:, None] == torch.arange(len(self.all_targets.bin), device=rows.device)


def over_parts(function: Callable[[int, int], Tensor], num_anchors: int, num_candidates: int, device: str) -> Tensor:
    """Sum of `function(start, stop)` over parts of the anchors, each with at most PAIRS_AT_ONCE pairs.

    One part is a plain call. With several, no part keeps what it computed: its backward computes it again. `function`
    must not communicate between ranks, because ranks may have different numbers of parts.
    """
    size = max(1, PAIRS_AT_ONCE[device] // max(1, num_candidates))
    if size >= num_anchors:
        return function(0, num_anchors)
    bounds = [(start, min(num_anchors, start + size)) for start in range(0, num_anchors, size)]
    total: Tensor | None = None
    for start, stop in bounds:
        result: Tensor = checkpoint(function, start, stop, use_reentrant=False, preserve_rng_state=False)
        total = result if total is None else total + result
    assert total is not None
    return total


def gather_world(features: "Features", targets: Targets, names: Sequence[str]) -> World:
    """Gather the named features in one collective (one in backward, too: its order is the same on all ranks).

    Raises ValueError when one of them is None.
    """
    given = {name: getattr(features, name) for name in names}
    missing = [name for name, tensor in given.items() if tensor is None]
    if missing:
        raise ValueError(f"the loss needs features.{missing[0]}, got None; it is computed from training batches only")
    double = any(tensor.dtype == torch.float64 for tensor in given.values())
    dtype = torch.float64 if double else torch.float32
    local = {name: tensor.to(dtype) for name, tensor in given.items()}
    columns = local
    if dist.world_size() > 1:
        packed = dist.gather(torch.cat(list(local.values()), dim=1))
        widths = [tensor.shape[1] for tensor in local.values()]
        columns = dict(zip(local, packed.split(widths, dim=1), strict=True))
    offset = dist.rank() * len(targets.bin)
    return World(local, columns, features.logit_scale.to(dtype), targets, targets.gather(), offset)


def _same(mine: Tensor, all_: Tensor) -> Tensor:
    """[B], [G] -> bool [B, G]: equal and known."""
    return (mine[:, None] == all_) & (mine[:, None] >= 0)


def _differ(mine: Tensor, all_: Tensor) -> Tensor:
    """[B], [G] -> bool [B, G]: known on both sides and different."""
    return (mine[:, None] != all_) & (mine[:, None] >= 0) & (all_ >= 0)


def _conflict(mine: Tensor, all_: Tensor) -> Tensor:
    """[B, R], [G, R] -> bool [B, G]: different at some rank that both know."""
    return reduce(or_, (_differ(a, b) for a, b in zip(mine.T, all_.T, strict=True)))


def _same_caption(world: World) -> Tensor:
    mine, all_ = world.targets.caption, world.all_targets.caption
    equal = reduce(and_, (a[:, None] == b for a, b in zip(mine.T, all_.T, strict=True)))
    return equal & (mine >= 0).any(dim=1)[:, None]


def _plain_pairs(world: World, positives: Positives) -> Pairs:
    """Return the forms of CLIBD and of the release: whatever is not a positive is a negative."""
    positive = world.itself()
    if positives == "caption":
        positive = positive | _same_caption(world)
    elif positives == "bin":
        positive = positive | _same(world.targets.bin, world.all_targets.bin)
    return Pairs(positive, torch.ones_like(positive))


def text_pairs(world: World, positives: Positives) -> Pairs:
    """Return who is whose text.

    `masked`: same caption = positive; captions that differ at a rank known to both = negative; captions that differ
    without contradiction ("Diptera Chironomidae" for a Chironomus; holes) take no part.
    """
    if positives != "masked":
        return _plain_pairs(world, positives)
    positive = _same_caption(world)
    return Pairs(positive, positive | _conflict(world.targets.caption, world.all_targets.caption))


def image_dna_pairs(world: World, positives: Positives) -> Pairs:
    """Return whose image belongs to whose DNA.

    `masked`: same specimen, species, BIN or barcode = positive; otherwise different BINs, or labels that
    differ at a rank known to both = negative; what the labels leave open takes no part.
    """
    if positives != "masked":
        return _plain_pairs(world, positives)
    mine, all_ = world.targets, world.all_targets
    positive = world.itself() | _same(mine.labels[:, -1], all_.labels[:, -1])
    positive = positive | _same(mine.bin, all_.bin) | _same(mine.barcode, all_.barcode)
    return Pairs(positive, positive | _differ(mine.bin, all_.bin) | _conflict(mine.labels, all_.labels))
