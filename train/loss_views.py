"""The two views of every specimen as vectors, and what HiR needs of them without looking at single pairs.

Legend: B rows of this worker, G candidate rows, D embedding, R taxonomic ranks, A some anchors, S sets of columns. A
row is two vectors, one per view, in the order [all first views; all second views].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from train.config import LossConfig
from train.loss_masks import Targets, World, over_parts


@dataclass(frozen=True)
class Views:
    """Anchors of this rank against candidates."""

    anchors: Tensor  # [2B, D], over the root of the temperature
    candidates: Tensor  # [2G, D], the same; the same tensor when this worker is alone
    labels: Tensor  # int64 [G, R]
    stays: Tensor  # bool [R, G]: the specimens that take part at each rank
    own_rows: Tensor  # int64 [B]: this rank's rows among the G

    @property
    def num_ranks(self) -> int:
        return self.labels.shape[1]

    def places(self, anchor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of anchors [A]: their specimens among the G, their own vectors and their other views among the 2G."""
        view = anchor // len(self.own_rows)
        row = self.own_rows[anchor % len(self.own_rows)]
        return row, row + view * len(self.labels), row + (1 - view) * len(self.labels)

    def num_known(self) -> Tensor:
        """[R]: this rank's specimens that take part with a known label."""
        return (self.stays.T & (self.labels >= 0))[self.own_rows].sum(dim=0)


def make_views(world: World, config: LossConfig) -> Views:
    gathered = config.hierarchy_gather
    columns, targets = (world.columns, world.all_targets) if gathered else (world.local, world.targets)
    own_rows = torch.arange(len(world.targets.bin), device=targets.bin.device) + (world.offset if gathered else 0)
    root = config.hierarchy_temperature**-0.5
    anchors = torch.cat([world.local["image"], world.local["image_view2"]]) * root
    alone = columns is world.local
    return Views(
        anchors=anchors,
        candidates=anchors if alone else torch.cat([columns["image"], columns["image_view2"]]) * root,
        labels=targets.labels,
        stays=_stays(targets, config),
        own_rows=own_rows,
    )


def _stays(targets: Targets, config: LossConfig) -> Tensor:
    """bool [R, G]: who takes part at each rank; `one_per_label` thins out from the finest rank upwards."""
    stays = [targets.has_image]
    for labels in reversed(targets.labels.T[1:].unbind()):
        thins = config.representatives == "one_per_label"
        stays.append(_first_per_label(labels, stays[-1]) if thins else stays[-1])
    return torch.stack(stays[::-1])


def _first_per_label(labels: Tensor, stays: Tensor) -> Tensor:
    """[G], bool [G] -> bool [G]: of those that stay, all unlabelled ones and the first of each label."""
    row = torch.arange(len(labels), device=labels.device)
    candidate = stays & (labels >= 0)
    _, group = torch.unique(labels, return_inverse=True)
    first = torch.full_like(row, len(row)).scatter_reduce_(0, group[candidate], row[candidate], "amin")
    return stays & ((labels < 0) | (first[group] == row))


def over_anchors(views: Views, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of `function(anchor)` over parts of the anchors."""
    device = views.anchors.device

    def part(start: int, stop: int) -> Tensor:
        return function(torch.arange(start, stop, device=device))

    return over_parts(part, len(views.anchors), len(views.candidates), device.type)


class LogSums(torch.autograd.Function):
    """log of the sum of exp(a_i . c_j) over j != itself_i, j of each column set: [A], from [A, D] and [2G, D].

    Touches the matrix of pairs as few times as there are: once for each of max, exp, sums, and once in backward.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, candidates: Tensor, sets: Tensor, itself: Tensor) -> Tensor:
        """sets: 0 or 1 [2G, S], in the features' type; itself: int64 [A]. Returns [A, S]."""
        powers = anchors @ candidates.T
        place = torch.arange(len(itself), device=itself.device)
        powers[place, itself] = -torch.inf
        largest = powers.amax(dim=1, keepdim=True)
        powers.sub_(largest).exp_()
        sums = powers @ sets
        ctx.save_for_backward(anchors, candidates, sets, powers, sums)
        ctx.alone = anchors is candidates
        return largest + sums.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """An anchor that no set gives a partner has sums of 0; its gradient must be 0, too."""
        anchors, candidates, sets, powers, sums = ctx.saved_tensors
        share = torch.where(sums > 0, grads[0] / sums, 0.0)
        pairs = powers * (share @ sets.T if sets.shape[1] > 1 else share * sets[:, 0])
        if ctx.alone:  # one product instead of two
            return (pairs + pairs.T) @ anchors, None, None, None
        return pairs @ candidates, pairs.T @ anchors, None, None
