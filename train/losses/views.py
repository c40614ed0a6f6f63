"""The two views of every specimen as vectors, and what HiR needs of them without looking at single pairs.

Legend: B rows of this worker, G candidate rows, D embedding, R taxonomic ranks, A some anchors. A
row is two vectors, one per view, in the order [all first views; all second views].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from train.config import LossConfig
from train.losses.masks import World, over_parts


@dataclass(frozen=True)
class Views:
    """Anchors of this rank against candidates."""

    anchors: Tensor  # [2B, D], over the root of the temperature
    candidates: Tensor  # [2G, D], the same; the same tensor when this worker is alone
    labels: Tensor  # int64 [G, R]
    classes: Tensor  # int64 [R, G]: the same for the same known label; an unlabelled specimen is a class of its own
    stays: Tensor  # bool [R, G]: the specimens that take part at each rank
    own_rows: Tensor  # int64 [B]: this rank's rows among the G

    @property
    def num_ranks(self) -> int:
        """R."""
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
    """Both views beside the candidates that `hierarchy_gather` asks for; `world` has image and image_view2."""
    gathered = config.hierarchy_gather
    columns, targets = (world.columns, world.all_targets) if gathered else (world.local, world.targets)
    own_rows = torch.arange(len(world.targets.bin), device=targets.bin.device) + (world.offset if gathered else 0)
    classes = _classes(targets.labels)
    root = config.hierarchy_temperature**-0.5
    anchors = torch.cat([world.local["image"], world.local["image_view2"]]).mul_(root)
    alone = columns is world.local
    return Views(
        anchors=anchors,
        candidates=anchors if alone else torch.cat([columns["image"], columns["image_view2"]]).mul_(root),
        labels=targets.labels,
        classes=classes,
        stays=_stays(targets.has_image, classes, config),
        own_rows=own_rows,
    )


def _classes(labels: Tensor) -> Tensor:
    """int64 [G, R] -> [R, G], numbered from 0 over all ranks: no class is of two ranks."""
    num_rows, num_ranks = labels.shape
    alone = -1 - torch.arange(num_rows, device=labels.device)
    names = torch.where(labels >= 0, labels, alone[:, None]) * num_ranks
    return torch.unique((names + torch.arange(num_ranks, device=labels.device)).T, return_inverse=True)[1]


def _stays(has_image: Tensor, classes: Tensor, config: LossConfig) -> Tensor:
    """Return bool [R, G]: who takes part at each rank; `one_per_label` thins out from the finest rank upwards."""
    stays = [has_image]
    for finer in reversed(classes[1:].unbind()):
        thins = config.representatives == "one_per_label"
        stays.append(_first_of_class(finer, stays[-1], classes.numel()) if thins else stays[-1])
    return torch.stack(stays[::-1])


def _first_of_class(classes: Tensor, stays: Tensor, num_classes: int) -> Tensor:
    """[G], bool [G] -> bool [G]: of those that stay, the first of each class."""
    row = torch.arange(len(classes), device=classes.device)
    candidate = torch.where(stays, row, len(row))
    first = row.new_full((num_classes,), len(row)).scatter_reduce_(0, classes, candidate, "amin")
    return stays & (first[classes] == row)


def over_anchors(views: Views, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Sum of `function(anchor)` over parts of the anchors."""
    device = views.anchors.device

    def part(start: int, stop: int) -> Tensor:
        return function(torch.arange(start, stop, device=device))

    return over_parts(part, len(views.anchors), len(views.candidates), device.type)
