"""The training losses: cross-modal contrast, hierarchical regularisation (HiR), fusion, and their sum.

Pure functions of (Features, Targets, LossConfig) -> named terms. `loss_masks` says which pairs count, `loss_hierarchy`
what HiR is. Equations are those of arXiv 2603.25573. Legend: B rows of this worker, G rows of all, D embedding, W
number of workers.

Distribution: anchors are this worker's rows, candidates the gathered ones. Each term is local sum x W / all-reduced
count of anchors, so a worker's value is not the global one, but the means over workers of the values
(`dist.reduce_metrics`) and of the gradients (DDP) are exactly those of one process with the whole batch. A term without
an anchor anywhere is 0, with a graph. Logits and log-softmax are float32 (float64 for float64 features), under autocast
too.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from engine.errors import UserError
from train import dist
from train.config import LossConfig
from train.losses.hierarchy import hierarchy_loss
from train.losses.masks import Pairs, Targets, World, gather_world, image_dna_pairs, over_parts, text_pairs

if TYPE_CHECKING:
    from train.models.trimodal import Features

__all__ = ["Targets", "contrastive_loss", "fusion_loss", "hierarchy_loss", "total_loss"]


Direction = tuple[str, str, Tensor, Tensor, Pairs]  # anchors, candidates, bool [B] and [G] who is there, who counts


def global_means(sums: Tensor) -> list[Tensor]:
    """[2, T], this rank's sums and numbers of anchors -> T means: local sum x W / global count (0 where it is 0)."""
    counts = dist.all_reduce_sum(sums[1])
    return list((sums[0] * (dist.world_size() / counts.clamp(min=1))).unbind())


def _directed(logits: Tensor, pairs: Pairs, present: tuple[Tensor, Tensor]) -> Tensor:
    """Return [2]: the sum over anchors of the contrastive loss (eq. 1, many positives), and the number of anchors.

    An anchor's loss is the mean over its positives of -log softmax over the candidates. logits [B, G]
    of anchors against candidates; `present`: bool [B] and bool [G], which of them exist. A row without a positive is no
    anchor.
    """
    both = present[0][:, None] & present[1]
    positive, candidate = pairs.positive & both, pairs.candidate & both
    # A finite fill: rows without any candidate stay finite, so that dropping them leaves no NaN in the gradient.
    log_total = logits.masked_fill(~candidate, torch.finfo(logits.dtype).min / 4).logsumexp(dim=1)
    num_positive = positive.sum(dim=1)
    mean_positive = (logits * positive).sum(dim=1) / num_positive.clamp(min=1)
    is_anchor = num_positive > 0
    return torch.stack([torch.where(is_anchor, log_total - mean_positive, 0.0).sum(), is_anchor.sum()])


def _sums(world: World, directions: Callable[[World], list[Direction]]) -> Tensor:
    """[2, T] over this rank's anchors for each of T directions of comparison, in the order given."""

    def part(start: int, stop: int) -> Tensor:
        whole = stop - start == len(world.targets.bin)
        mine = world if whole else world.part(start, stop)
        results, known = [], dict[tuple[str, str], Tensor]()
        for anchor, candidate, has_anchor, has_candidate, pairs in directions(mine):
            if whole and mine.columns is mine.local and (candidate, anchor) in known:
                logits = known[candidate, anchor].T  # alone, the way back is the transpose
            else:
                logits = mine.logit_scale * (mine.local[anchor] @ mine.columns[candidate].T)
            known[anchor, candidate] = logits
            results.append(_directed(logits, pairs, (has_anchor, has_candidate)))
        return torch.stack(results, dim=1)

    device = world.logit_scale.device.type
    return over_parts(part, len(world.targets.bin), len(world.all_targets.bin), device)


def _both_ways(names: tuple[str, str], has: tuple[str, str], pairs: Pairs, world: World) -> list[Direction]:
    (a, b), mine, all_ = names, world.targets, world.all_targets
    there, back = has, has[::-1]
    return [
        (a, b, getattr(mine, there[0]), getattr(all_, there[1]), pairs),
        (b, a, getattr(mine, back[0]), getattr(all_, back[1]), pairs),
    ]


def _full_precision(features: "Features") -> torch.autocast:
    return torch.autocast(device_type=features.image.device.type, enabled=False)


def contrastive_loss(
    features: "Features", targets: Targets, config: LossConfig, world: World | None = None
) -> dict[str, Tensor]:
    """Cross-modal InfoNCE (eq. 1-2): sym(image, text) + sym(dna, text) + image_dna_weight * sym(image, dna).

    A pair of rows takes part when the anchor's modality and the candidate's are there, whatever else the two specimens
    lack: the image of one finds the barcode of another of its species. `sym` is the mean of both directions, each
    the mean over its anchors. `detach_dna` stops the gradient into DNA in the image-dna term.

    `world`: features already gathered (image, dna, text), to share them between losses. Returns scalars
    "loss/contrastive", "loss/image_text", "loss/dna_text", "loss/image_dna".
    """

    def with_text(part: World) -> list[Direction]:
        pairs = text_pairs(part, config.positives)
        image_text = _both_ways(("image", "text"), ("has_image", "has_text"), pairs, part)
        return image_text + _both_ways(("dna", "text"), ("has_dna", "has_text"), pairs, part)

    def image_dna(part: World) -> list[Direction]:
        pairs = image_dna_pairs(part, config.positives)
        return _both_ways(("image", "dna"), ("has_image", "has_dna"), pairs, part)

    with _full_precision(features):
        world = world or gather_world(features, targets, ("image", "dna", "text"))
        barcodes = world.detached("dna") if config.detach_dna else world
        means = global_means(torch.cat([_sums(world, with_text), _sums(barcodes, image_dna)], dim=1))
        image_text, dna_text, image_to_dna = ((a + b) / 2 for a, b in zip(means[::2], means[1::2], strict=True))
        total = image_text + dna_text + config.image_dna_weight * image_to_dna
    return {
        "loss/contrastive": total,
        "loss/image_text": image_text,
        "loss/dna_text": dna_text,
        "loss/image_dna": image_to_dna,
    }


def _head_sums(features: "Features", targets: Targets) -> Tensor:
    """[2, R]: cross-entropy of each rank's head over specimens with image, DNA and a label there (eq. 11); how many."""
    if features.rank_logits is None:
        raise UserError("loss.rank_heads_weight", "more than 0 for a model built without classification heads", "0")
    sums = []
    for level, logits in enumerate(features.rank_logits):
        known = targets.has_image & targets.has_dna & (targets.labels[:, level] >= 0)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        labels = torch.where(known, targets.labels[:, level], -1)
        sums.append(
            torch.stack([functional.cross_entropy(wide, labels, ignore_index=-1, reduction="sum"), known.sum()])
        )
    return torch.stack(sums, dim=1)


def fusion_loss(
    features: "Features", targets: Targets, config: LossConfig, world: World | None = None
) -> dict[str, Tensor]:
    """InfoNCE between fused features and text, over specimens that have image and DNA (eq. 10-11 as the text has it).

    `fused_direction`: fused_to_text ranks texts for each fused row (what evaluation does), text_to_fused the other way
    round (the authors' release), symmetric the mean. Texts of specimens without image or DNA are candidates like any
    other, as in `contrastive_loss`. `detach_dna_in_fusion` acts in the model (`Trimodal.forward`), not here. With
    `rank_heads_weight` > 0 also "loss/rank_heads": the heads' cross-entropy, mean over the ranks that have a label;
    a model without heads is then a ValueError.

    `world`: features already gathered (fused, text). Returns scalars "loss/fusion" [and "loss/rank_heads"].
    """

    def directions(part: World) -> list[Direction]:
        pairs, mine, all_ = text_pairs(part, config.positives), part.targets, part.all_targets
        to_text = ("fused", "text", mine.has_image & mine.has_dna, all_.has_text, pairs)
        from_text = ("text", "fused", mine.has_text, all_.has_image & all_.has_dna, pairs)
        chosen = {"fused_to_text": [to_text], "text_to_fused": [from_text], "symmetric": [to_text, from_text]}
        return chosen[config.fused_direction]

    with _full_precision(features):
        world = world or gather_world(features, targets, ("fused", "text"))
        sums = _sums(world, directions)
        num_directions = sums.shape[1]
        if config.rank_heads_weight > 0:
            sums = torch.cat([sums, _head_sums(features, targets)], dim=1)
        means = global_means(sums)
        result = {"loss/fusion": torch.stack(means[:num_directions]).mean()}
        if config.rank_heads_weight > 0:
            both = world.all_targets.has_image & world.all_targets.has_dna
            occurs = (world.all_targets.labels[both] >= 0).any(dim=0).sum()
            result["loss/rank_heads"] = torch.stack(means[num_directions:]).sum() / occurs.clamp(min=1)
    return result


def _zero_with_graph(features: "Features", local: list[Tensor]) -> Tensor:
    """0, depending on every feature: each parameter then takes part in each step on each rank, as DDP demands."""
    tensors = [features.image, features.image_view2, features.dna, features.text, features.fused, features.logit_scale]
    tensors += list(features.rank_logits or ()) + local
    return torch.stack([tensor.float().sum() * 0.0 for tensor in tensors if tensor is not None]).sum()


def total_loss(features: "Features", targets: Targets, config: LossConfig) -> dict[str, Tensor]:
    """Algorithm 2: contrastive + hierarchy_weight * HiR + fusion_weight * fusion + rank_heads_weight * heads.

    features: [B, D] unit rows, zero rows where missing; targets: the same B rows. A term of weight 0 is not computed
    (`hierarchy_weight` = 0 is CLIBD). Collective: all ranks call it with the same config and the same B.

    Returns scalars; "loss/total" is the one to backward, the others are detached. For logging take
    `dist.reduce_metrics(result)`: the mean over ranks is the value over the global batch.
    """
    with_fusion = config.fusion_weight > 0 or config.rank_heads_weight > 0
    names = ["image", "dna", "text"]
    names += ["image_view2"] if config.hierarchy_weight > 0 else []
    names += ["fused"] if with_fusion else []
    world = gather_world(features, targets, names)
    terms = contrastive_loss(features, targets, config, world)
    # The gathered features take part by all means: a backward that only some ranks reach would hang the others.
    total = terms["loss/contrastive"] + _zero_with_graph(features, list(world.columns.values()))
    if config.hierarchy_weight > 0:
        terms |= hierarchy_loss(features, targets, config, world)
        total = total + config.hierarchy_weight * terms["loss/hierarchy"]
    if with_fusion:
        terms |= fusion_loss(features, targets, config, world)
        total = total + config.fusion_weight * terms["loss/fusion"]
        if "loss/rank_heads" in terms:
            total = total + config.rank_heads_weight * terms["loss/rank_heads"]
    return {"loss/total": total} | {name: term.detach() for name, term in terms.items()}
