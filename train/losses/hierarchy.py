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

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from engine.specimens.taxonomy import RANKS
from train import dist
from train.config import LossConfig
from train.losses.masks import Targets, World, gather_world
from train.losses.sums import LogSums, NearSums
from train.losses.views import Views, make_views, over_anchors

if TYPE_CHECKING:
    from train.models.trimodal import Features


@dataclass(frozen=True)
class _Level:
    """Some anchors at one taxonomic rank, before rectification."""

    pair_loss: Tensor  # [A, 2G], meaningful where positive
    positive: Tensor  # bool [A, 2G]

    def num_positive(self) -> Tensor:
        return self.positive.sum(dim=1)

    def anchor_sum(self, pair_loss: Tensor) -> Tensor:
        """Sum over anchors of the mean over their positives."""
        return ((pair_loss * self.positive).sum(dim=1) / self.num_positive().clamp(min=1)).sum()


def _log_sum(logits: Tensor, mask: Tensor) -> Tensor:
    # A finite fill, so that rows without any candidate have finite values and gradients.
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min / 4).logsumexp(dim=1, keepdim=True)


def _levels(views: Views, config: LossConfig, anchor: Tensor) -> list[_Level]:
    """Raw pair losses of some anchors at every rank, coarsest first. `anchor` int64 [A]: rows of `views.anchors`."""
    logits = views.anchors[anchor] @ views.candidates.T
    row, itself, other_view = views.places(anchor)
    place = torch.arange(len(anchor), device=anchor.device)
    levels: list[_Level] = []
    over_all = None  # pair losses that ranks share while nothing is thinned out
    for labels, stays in zip(views.labels.T, views.stays, strict=True):
        mine, stay = labels[row, None], stays[row]
        both = stay[:, None] & stays
        known = both & (mine >= 0) & (labels >= 0)
        same = mine == labels
        positive = (known & same).repeat(1, 2)
        positive[place, itself] = False
        positive[place, other_view] = stay
        if config.denominator == "negatives":
            negative = (known & ~same).repeat(1, 2)
            # -log(e^s / (e^s + sum over negatives)); threshold: exact to float64, and exp(60) is finite in float32
            pair_loss = functional.softplus(_log_sum(logits, negative) - logits, threshold=60.0)
        else:
            if over_all is None or config.representatives == "one_per_label":
                candidate = both.repeat(1, 2)
                candidate[place, itself] = False
                over_all = _log_sum(logits, candidate) - logits
            pair_loss = over_all
        levels.append(_Level(pair_loss, positive))
    return levels


def _batch_maximum(views: Views, config: LossConfig) -> Tensor:
    """[R]: the largest raw pair loss per rank, with the gradient of the first pair that reaches it.

    With `hierarchy_gather` over all workers' anchors, otherwise over this worker's. "First" is the order of one
    process: anchors by view, then row. Finite where there is no pair at all.
    """
    best = views.anchors.new_full((views.num_ranks,), -torch.inf)
    where = torch.zeros(views.num_ranks, 2, dtype=torch.int64, device=best.device)  # anchor, candidate

    def look(anchor: Tensor) -> Tensor:
        """Keep the first largest pair loss of each rank over these anchors."""
        for rank, level in enumerate(_levels(views, config, anchor)):
            values = level.pair_loss.masked_fill(~level.positive, -torch.inf)
            place = values.flatten().argmax()  # the first
            if values.flatten()[place] > best[rank]:
                best[rank] = values.flatten()[place]
                where[rank, 0], where[rank, 1] = anchor[place // values.shape[1]], place % values.shape[1]
        return best.new_zeros(())

    with torch.no_grad():
        over_anchors(views, look)
    rows = _levels(views, config, where[:, 0])
    again = torch.stack([level.pair_loss[rank, where[rank, 1]] for rank, level in enumerate(rows)])
    # The value is that of the look, bit for bit, or a pair could fall below itself; the gradient is of the second.
    values = torch.where(best.isfinite(), best, 0.0) + (again - again.detach())
    if not config.hierarchy_gather or dist.world_size() == 1:
        return values
    _, order, _ = views.places(where[:, 0])
    all_values = dist.gather(values[None])  # [W, R]
    all_keys, all_places = dist.gather(torch.stack([best.double(), order.double()])[None]).unbind(dim=1)
    first = torch.where(all_keys == all_keys.amax(dim=0), all_places, torch.inf).argmin(dim=0, keepdim=True)
    return all_values.gather(0, first)[0]


def _direction(count: int, config: LossConfig) -> list[int]:
    """Ranks in the order in which one bounds the next."""
    return list(range(count)) if config.rectify == "coarse_to_fine" else list(reversed(range(count)))


def _floors(views: Views, occurs: Tensor, config: LossConfig) -> Tensor:
    """[R]: what bounds the pairs of each rank from below (unit pair): the largest pair loss of the neighbour."""
    maxima = _batch_maximum(views, config)
    floors, floor = [maxima[0]] * views.num_ranks, torch.full_like(maxima[0], -torch.inf)
    for index in _direction(views.num_ranks, config):
        floors[index] = floor
        floor = torch.where(occurs[index], maxima[index], floor)  # a rank that does not occur is no neighbour
    return torch.stack(floors)


def _rectify_means(means: Tensor, values: Tensor, occurs: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Each rank's mean = the largest of itself and all that occur before it, [R]; whether it was replaced, bool [R].

    `values` [R]: the same means over the global batch, which decide, while `means` carry this worker's gradient.
    """
    order = torch.tensor(_direction(len(means), config), device=means.device)
    largest = torch.where(occurs, values, -torch.inf)[order].cummax(dim=0).indices  # of equal ones the later
    source = order[largest][order]
    return means[source], occurs & (source != torch.arange(len(means), device=means.device))


def _is_summable(config: LossConfig, dtype: torch.dtype) -> bool:
    """Whether no pair has to be looked at alone, so that sums over classes do.

    Thinned out, the exponentials of all ranks share the anchor's largest logit, 2 / temperature above the smallest.
    """
    by_pair = config.rectify != "none" and config.rectify_unit == "pair"
    fits = 2 / config.hierarchy_temperature < -math.log(torch.finfo(dtype).tiny) - 7
    return config.denominator == "all" and not by_pair and (config.representatives == "all" or fits)


def _sums_by_class(views: Views, config: LossConfig) -> Tensor:
    """Return `_sums` without floors, for `_is_summable` options.

    What an anchor's positives add up to is known from the sums of the classes: a rank costs B x D instead of B x G.
    """
    thinned = config.representatives == "one_per_label"
    dtype, own = views.anchors.dtype, views.own_rows
    sets = (views.stays if thinned else views.stays[:1]).repeat(1, 2).to(dtype)
    stays = views.stays[:, own].repeat(1, 2)  # [R, 2B]

    def part(anchor: Tensor) -> Tensor:
        mine = views.anchors if len(anchor) == len(views.anchors) else views.anchors[anchor]
        _, itself, _ = views.places(anchor)
        log_sums = LogSums.apply(mine, views.candidates, sets, itself).T  # [1 or R, A]
        return torch.where(stays[:, anchor], log_sums, 0.0).sum(dim=1)

    classes = torch.where(views.stays, views.classes + 1, 0)
    others = 2 * torch.bincount(classes.flatten())[classes] - 1  # [R, G]: positives of a vector
    near = NearSums.apply(views.anchors, views.candidates, classes, views.stays.to(dtype) / others, own)
    num_pairs = 2 * (views.stays * others)[:, own].sum(dim=1)
    raw = over_anchors(views, part) - near
    return torch.stack([raw, raw, stays.sum(dim=1), num_pairs, raw.detach() * 0.0])


def _sums(views: Views, config: LossConfig, floors: Tensor | None) -> Tensor:
    """[5, R] over this rank's anchors: raw sum, sum with pairs clamped to `floors`, anchors, pairs, clamped pairs."""
    if _is_summable(config, views.anchors.dtype):
        return _sums_by_class(views, config)

    def part(anchor: Tensor) -> Tensor:
        columns = []
        for rank, level in enumerate(_levels(views, config, anchor)):
            raw = level.anchor_sum(level.pair_loss)
            rectified, clamped = raw, raw.detach() * 0.0
            if floors is not None:
                below = level.positive & (level.pair_loss < floors[rank])
                rectified, clamped = level.anchor_sum(torch.where(below, floors[rank], level.pair_loss)), below.sum()
            counts = level.num_positive()
            columns.append(torch.stack([raw, rectified, counts.gt(0).sum(), counts.sum(), clamped]))
        return torch.stack(columns, dim=1)

    return over_anchors(views, part)


def _rank_terms(views: Views, config: LossConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each [R]: rectified mean (this worker's share x W), whether the rank occurs, global raw mean, clamped share."""
    occurs = dist.all_reduce_sum(views.num_known()) > 0
    by_pair = config.rectify != "none" and config.rectify_unit == "pair"
    sums = _sums(views, config, _floors(views, occurs, config) if by_pair else None)
    raw_sum, _, num_anchors, num_pairs, num_clamped = dist.all_reduce_sum(sums.double())
    raw = raw_sum / num_anchors.clamp(min=1)
    scale = (dist.world_size() / num_anchors.clamp(min=1)).to(sums.dtype)
    if config.rectify == "none" or by_pair:
        return sums[1] * scale, occurs, raw, num_clamped / num_pairs.clamp(min=1)
    means, clamped = _rectify_means(sums[0] * scale, raw, occurs, config)
    return means, occurs, raw, clamped.double()


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
        terms, occurs, raw, clamped_share = _rank_terms(make_views(world, config), config)
        weights = terms.new_tensor(config.rank_weights) * occurs
        loss = (terms * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    metrics = {"hierarchy/loss": raw * occurs, "hierarchy/clamped_share": clamped_share * occurs}
    per_rank = {f"{key}/{name}": v for key, vs in metrics.items() for name, v in zip(RANKS, vs, strict=True)}
    return {"loss/hierarchy": loss} | per_rank
