"""HiR: the taxonomy as a hierarchical regularisation of the image space (eq. 3-7 and its authors' corrected forms).

Legend: B rows of this worker, G candidate rows (all workers' with `hierarchy_gather`, else this worker's), D embedding,
R taxonomic ranks, W world size. A row is two vectors, one per view, in the order [all first views; all second views].

For rank l and anchor vector i, P_l(i) = the other vectors with the same known label at l, and always i's other view:

    pair_l(i, p) = -log( exp(s_ip) / sum_{a in A} exp(s_ia) ),   s = cosine / hierarchy_temperature
    L_l = mean over anchors i of the mean over P_l(i) of pair_l(i, p)

`denominator=all`: A = everything but i. `negatives`: A = p and the vectors whose label at l is known and differs from
i's known one; an unlabelled anchor then has loss 0. Every vector is an anchor, as it has its other view. A rank occurs
when some vector that takes part in it has a known label (on any worker); other ranks are skipped, so "next" below means
the next that occurs. M_l = the largest raw pair_l of the batch, other views included.

    rectify          rectify_unit=pair                                     rectify_unit=rank
    coarse_to_fine   pair'_l = max(pair_l, M_(next coarser))  [form 1]     L'_l = max(L_l, L_k of all coarser k)
    fine_to_coarse   pair'_l = max(pair_l, M_(next finer))    [form 2]     L'_l = max(L_l, L_k of all finer k)  [form 3]

The first rank in the direction stays as it is; with unit pair, L'_l is the mean of pair'_l. The gradient flows through
the maximum: M's to the first pair that reaches it (by anchor, then candidate); on a tie a loss counts as not clamped.

`one_per_label`: after each rank, finest first in either direction, only the first specimen per label and all
unlabelled ones stay in, as anchors and as candidates, with both views. `hierarchy_gather=False`: vectors, M and first
specimens are those of one worker; means over anchors, and which ranks occur, stay global.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from engine.taxonomy import RANKS
from train import dist
from train.config import LossConfig
from train.loss_masks import Targets, World, gather_world

if TYPE_CHECKING:
    from train.models.trimodal import Features


@dataclass(frozen=True)
class _Views:
    """Anchors of this rank against candidates."""

    logits: Tensor  # [2B, 2G], cosine / hierarchy_temperature
    labels: Tensor  # int64 [G, R]
    has_image: Tensor  # bool [G]
    own_rows: Tensor  # int64 [B]: this rank's rows among the G
    anchor: Tensor  # int64 [2B]: the anchors' places among the 2G
    other_view: Tensor  # bool [2B, 2G]: the candidate is the anchor's other view
    is_other: Tensor  # bool [2B, 2G]: the candidate is not the anchor


@dataclass(frozen=True)
class _Level:
    """One taxonomic rank before rectification."""

    pair_loss: Tensor  # [2B, 2G], meaningful where positive
    positive: Tensor  # bool [2B, 2G]
    num_known: Tensor  # scalar: this rank's specimens that take part here with a known label

    def num_positive(self) -> Tensor:
        return self.positive.sum(dim=1)

    def anchor_sum(self, pair_loss: Tensor) -> Tensor:
        """Sum over anchors of the mean over their positives."""
        share = self.positive.to(pair_loss.dtype) / self.num_positive().clamp(min=1)[:, None]
        return (pair_loss * share).sum()


class _Rectified(NamedTuple):
    terms: list[Tensor]  # per rank: sum or mean after rectification, a scalar
    clamped: Tensor  # [R]: number of clamped pairs (unit pair), or whether the mean was replaced (unit rank)


def _views(world: World, config: LossConfig) -> _Views:
    gathered = config.hierarchy_gather
    columns, targets = (world.columns, world.all_targets) if gathered else (world.local, world.targets)
    anchors = torch.cat([world.local["image"], world.local["image_view2"]])
    candidates = torch.cat([columns["image"], columns["image_view2"]])
    num_rows, num_columns, device = len(anchors) // 2, len(candidates) // 2, anchors.device
    row = torch.arange(num_rows, device=device) + (world.offset if gathered else 0)
    anchor = torch.cat([row, row + num_columns])
    column = torch.arange(2 * num_columns, device=device)
    same_row = anchor[:, None] % num_columns == column % num_columns
    is_other = anchor[:, None] != column
    return _Views(
        logits=anchors @ candidates.T / config.hierarchy_temperature,
        labels=targets.labels,
        has_image=targets.has_image,
        own_rows=row,
        anchor=anchor,
        other_view=same_row & is_other,
        is_other=is_other,
    )


def _tile(rows: Tensor) -> Tensor:
    """[B, G] of specimens -> [2B, 2G] of views."""
    return rows.repeat(2, 2)


def _first_per_label(labels: Tensor, stays: Tensor) -> Tensor:
    """[G], bool [G] -> bool [G]: of those that stay, all unlabelled ones and the first of each label."""
    same = (labels[:, None] == labels) & stays & (labels >= 0)[:, None]
    return stays & ~same.tril(diagonal=-1).any(dim=1)


def _log_sum(logits: Tensor, mask: Tensor) -> Tensor:
    # A finite fill, so that rows without any candidate have finite values and gradients.
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min / 4).logsumexp(dim=1, keepdim=True)


def _levels(views: _Views, config: LossConfig) -> list[_Level]:
    """Raw pair losses of every rank, coarsest first; `one_per_label` thins out from the finest rank upwards."""
    levels: list[_Level] = []
    stays, over_all = views.has_image, None  # over_all: pair losses that ranks share while nothing is thinned out
    for labels in reversed(views.labels.T.unbind()):
        mine, stay = labels[views.own_rows, None], stays[views.own_rows]
        candidate = _tile(stay[:, None] & stays) & views.is_other
        known = (mine >= 0) & (labels >= 0)
        positive = candidate & (_tile(known & (mine == labels)) | views.other_view)
        if config.denominator == "negatives":
            negative = candidate & _tile(known & (mine != labels))
            # -log(e^s / (e^s + sum over negatives)); threshold: exact to float64, and exp(60) is finite in float32
            pair_loss = functional.softplus(_log_sum(views.logits, negative) - views.logits, threshold=60.0)
        else:
            if over_all is None or config.representatives == "one_per_label":
                over_all = _log_sum(views.logits, candidate) - views.logits
            pair_loss = over_all
        levels.append(_Level(pair_loss, positive, (stay & (mine[:, 0] >= 0)).sum()))
        if config.representatives == "one_per_label":
            stays = _first_per_label(labels, stays)
    return levels[::-1]


def _batch_maximum(levels: list[_Level], views: _Views, gathered: bool) -> Tensor:
    """[R]: the largest raw pair loss per rank, with the gradient of the first pair that reaches it.

    With `gathered` over all workers' anchors, otherwise over this worker's. "First" is the order of one process:
    anchors by view, then row. Finite where there is no pair at all.
    """
    values, keys, places = [], [], []
    for level in levels:
        place = level.pair_loss.detach().masked_fill(~level.positive, -torch.inf).flatten().argmax()  # the first
        values.append(level.pair_loss.flatten()[place])
        keys.append(torch.where(level.positive.flatten()[place], values[-1].detach(), -torch.inf).double())
        places.append(views.anchor[place // level.pair_loss.shape[1]].double())
    if not gathered or dist.world_size() == 1:
        return torch.stack(values)
    all_values = dist.gather(torch.stack(values)[None])  # [W, R]
    all_keys, all_places = dist.gather(torch.stack([torch.stack(keys), torch.stack(places)])[None]).unbind(dim=1)
    first = torch.where(all_keys == all_keys.amax(dim=0), all_places, torch.inf).argmin(dim=0, keepdim=True)
    return all_values.gather(0, first)[0]


def _direction(count: int, config: LossConfig) -> list[int]:
    """Ranks in the order in which one bounds the next."""
    return list(range(count)) if config.rectify == "coarse_to_fine" else list(reversed(range(count)))


def _rectify_pairs(levels: list[_Level], views: _Views, occurs: Tensor, config: LossConfig) -> _Rectified:
    """Clamp each pair from below by the largest pair loss of the neighbour."""
    maxima = _batch_maximum(levels, views, config.hierarchy_gather)
    sums, clamped = [maxima[0]] * len(levels), [occurs[0]] * len(levels)
    floor = torch.full_like(maxima[0], -torch.inf)
    for index in _direction(len(levels), config):
        level = levels[index]
        below = level.positive & (level.pair_loss < floor)
        sums[index] = level.anchor_sum(torch.where(below, floor, level.pair_loss))
        clamped[index] = below.sum()
        floor = torch.where(occurs[index], maxima[index], floor)  # a rank that does not occur is no neighbour
    return _Rectified(sums, torch.stack(clamped))


def _rectify_means(means: list[Tensor], values: Tensor, occurs: Tensor, config: LossConfig) -> _Rectified:
    """Each rank's mean = the largest of itself and all ranks before it.

    `values` [R]: the same means over the global batch, which decide, while `means` carry this worker's gradient.
    """
    rectified, clamped = list(means), [occurs[0]] * len(means)
    running, running_value = means[0] * 0.0, torch.full_like(values[0], -torch.inf)
    for index in _direction(len(means), config):
        clamped[index] = occurs[index] & (running_value > values[index])
        rectified[index] = torch.where(clamped[index], running, means[index])
        takes_over = occurs[index] & ~clamped[index]
        running = torch.where(takes_over, means[index], running)
        running_value = torch.where(takes_over, values[index], running_value)
    return _Rectified(rectified, torch.stack(clamped))


def _rank_terms(views: _Views, config: LossConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each [R]: rectified mean (this worker's share x W), whether the rank occurs, global raw mean, clamped share."""
    levels = _levels(views, config)
    sums = [level.anchor_sum(level.pair_loss) for level in levels]
    rows = [
        torch.stack([sums[i].detach().double(), lv.num_positive().gt(0).sum(), lv.num_known, lv.positive.sum()])
        for i, lv in enumerate(levels)
    ]
    total, num_anchors, num_known, num_pairs = dist.all_reduce_sum(torch.stack(rows, dim=1))
    occurs, raw = num_known > 0, total / num_anchors.clamp(min=1)
    scale = (dist.world_size() / num_anchors.clamp(min=1)).to(sums[0].dtype)
    if config.rectify == "none":
        return torch.stack(sums) * scale, occurs, raw, torch.zeros_like(raw)
    if config.rectify_unit == "pair":
        result = _rectify_pairs(levels, views, occurs, config)
        return (
            torch.stack(result.terms) * scale,
            occurs,
            raw,
            result.clamped * dist.world_size() / num_pairs.clamp(min=1),
        )
    result = _rectify_means(list(torch.stack(sums) * scale), raw, occurs, config)
    return torch.stack(result.terms), occurs, raw, result.clamped.double()


def hierarchy_loss(
    features: "Features", targets: Targets, config: LossConfig, world: World | None = None
) -> dict[str, Tensor]:
    """Supervised contrast of the two image views at every rank, rectified between ranks (formulas: module docstring).

    Result = sum_l w_l L'_l / sum_l w_l over the ranks that occur. `world`: features already gathered (image,
    image_view2). Returns scalars "loss/hierarchy" and for each rank (0 when it does not occur) "hierarchy/loss/<rank>"
    = L_l before rectification and "hierarchy/clamped_share/<rank>" = the share of its pairs (unit rank: 0 or 1) that
    took another rank's value. ValueError when image_view2 is None.
    """
    with torch.autocast(device_type=features.image.device.type, enabled=False):
        world = world or gather_world(features, targets, ("image", "image_view2"))
        terms, occurs, raw, clamped_share = _rank_terms(_views(world, config), config)
        weights = terms.new_tensor(config.rank_weights) * occurs
        loss = (terms * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    metrics = {"hierarchy/loss": raw * occurs, "hierarchy/clamped_share": clamped_share * occurs}
    per_rank = {f"{key}/{name}": v for key, vs in metrics.items() for name, v in zip(RANKS, vs, strict=True)}
    return {"loss/hierarchy": loss} | per_rank
