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

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from train import dist
from train.config import LossConfig
from train.loss_hierarchy import hierarchy_loss
from train.loss_masks import Pairs, Targets, World, gather_world, image_dna_pairs, text_pairs

if TYPE_CHECKING:
    from train.models.trimodal import Features

__all__ = ["Targets", "contrastive_loss", "fusion_loss", "hierarchy_loss", "total_loss"]


class _Term(NamedTuple):
    total: Tensor  # scalar: sum over this rank's anchors
    num_anchors: Tensor  # scalar: this rank's anchors


def _global_means(terms: list[_Term]) -> list[Tensor]:
    """Each term as local sum x W / global count (0 where the count is 0); one collective for all."""
    counts = dist.all_reduce_sum(torch.stack([term.num_anchors for term in terms]))
    scales = dist.world_size() / counts.clamp(min=1).double()
    return [term.total * scale.to(term.total.dtype) for term, scale in zip(terms, scales, strict=True)]


def _directed(logits: Tensor, pairs: Pairs, present: tuple[Tensor, Tensor]) -> _Term:
    """Sum over anchors of the mean over positives of -log softmax over the candidates (eq. 1, many positives).

    logits [B, G] of anchors against candidates; `present`: bool [B] and bool [G], which of them exist. A row without a
    positive is no anchor.
    """
    both = present[0][:, None] & present[1]
    positive, candidate = pairs.positive & both, pairs.candidate & both
    # A finite fill: rows without any candidate stay finite, so that dropping them leaves no NaN in the gradient.
    log_total = logits.masked_fill(~candidate, torch.finfo(logits.dtype).min / 4).logsumexp(dim=1)
    num_positive = positive.sum(dim=1)
    mean_positive = (logits * positive.to(logits.dtype)).sum(dim=1) / num_positive.clamp(min=1)
    is_anchor = num_positive > 0
    return _Term(torch.where(is_anchor, log_total - mean_positive, 0.0).sum(), is_anchor.sum())


def _logits(world: World, anchor: str, candidate: str) -> Tensor:
    """[B, G] of this worker's rows of one modality against all rows of another."""
    return world.logit_scale * (world.local[anchor] @ world.columns[candidate].T)


def _both_directions(world: World, names: tuple[str, str], pairs: Pairs, has: tuple[str, str]) -> list[_Term]:
    (a, b), terms = names, []
    logits = _logits(world, a, b)
    back = logits.T if world.columns is world.local else _logits(world, b, a)
    for similarity, (has_anchor, has_candidate) in ((logits, has), (back, has[::-1])):
        present = (getattr(world.targets, has_anchor), getattr(world.all_targets, has_candidate))
        terms.append(_directed(similarity, pairs, present))
    return terms


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
    with _full_precision(features):
        world = world or gather_world(features, targets, ("image", "dna", "text"))
        with_text = text_pairs(world, config.positives)
        terms = _both_directions(world, ("image", "text"), with_text, ("has_image", "has_text"))
        terms += _both_directions(world, ("dna", "text"), with_text, ("has_dna", "has_text"))
        if config.detach_dna:
            world = world.detached("dna")
        barcodes = image_dna_pairs(world, config.positives)
        terms += _both_directions(world, ("image", "dna"), barcodes, ("has_image", "has_dna"))
        means = _global_means(terms)
        image_text, dna_text, image_dna = ((a + b) / 2 for a, b in zip(means[::2], means[1::2], strict=True))
        total = image_text + dna_text + config.image_dna_weight * image_dna
    return {
        "loss/contrastive": total,
        "loss/image_text": image_text,
        "loss/dna_text": dna_text,
        "loss/image_dna": image_dna,
    }


def _head_terms(features: "Features", targets: Targets) -> list[_Term]:
    """Cross-entropy of each rank's head over specimens with image, DNA and a label at that rank (eq. 11)."""
    if features.rank_logits is None:
        raise ValueError("loss.rank_heads_weight > 0, but the model was built without classification heads")
    terms = []
    for level, logits in enumerate(features.rank_logits):
        known = targets.has_image & targets.has_dna & (targets.labels[:, level] >= 0)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        labels = torch.where(known, targets.labels[:, level], -1)
        terms.append(_Term(functional.cross_entropy(wide, labels, ignore_index=-1, reduction="sum"), known.sum()))
    return terms


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
    with _full_precision(features):
        world = world or gather_world(features, targets, ("fused", "text"))
        pairs = text_pairs(world, config.positives)
        mine, all_ = (t.has_image & t.has_dna for t in (world.targets, world.all_targets))
        terms = []
        if config.fused_direction != "text_to_fused":
            terms.append(_directed(_logits(world, "fused", "text"), pairs, (mine, world.all_targets.has_text)))
        if config.fused_direction != "fused_to_text":
            terms.append(_directed(_logits(world, "text", "fused"), pairs, (world.targets.has_text, all_)))
        heads = _head_terms(features, targets) if config.rank_heads_weight > 0 else []
        means = _global_means(terms + heads)
        result = {"loss/fusion": torch.stack(means[: len(terms)]).mean()}
        if heads:
            occurs = (world.all_targets.labels[all_] >= 0).any(dim=0).sum()
            result["loss/rank_heads"] = torch.stack(means[len(terms) :]).sum() / occurs.clamp(min=1)
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
