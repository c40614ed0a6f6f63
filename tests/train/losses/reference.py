"""The losses as plain loops, written from their definitions and from nothing in `train`; float64, gradient by autograd.

A batch is features [N, D] per name and `Rows`, plain lists. Slow on purpose: one Python step per pair.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

POSITIVE, NEGATIVE, MASKED = "positive", "negative", "masked"
RANKS = ("order", "family", "genus", "species")
Pair = tuple[int, int]


@dataclass
class Rows:
    """Targets as lists; -1 = unknown."""

    labels: list[list[int]]
    caption: list[list[int]]
    bin: list[int]
    barcode: list[int]
    has_image: list[bool]
    has_dna: list[bool]
    has_text: list[bool]

    @classmethod
    def of(cls, targets: Any) -> "Rows":
        return cls(**{name: getattr(targets, name).tolist() for name in cls.__dataclass_fields__})


def contradict(a: Sequence[int], b: Sequence[int]) -> bool:
    return any(x >= 0 and y >= 0 and x != y for x, y in zip(a, b, strict=True))


def same(a: int, b: int) -> bool:
    return a >= 0 and a == b


def same_caption(rows: Rows, i: int, j: int) -> bool:
    return rows.caption[i] == rows.caption[j] and any(label >= 0 for label in rows.caption[i])


def plain_relation(rows: Rows, positives: str, i: int, j: int) -> str:
    if i == j:
        return POSITIVE
    if positives == "caption" and same_caption(rows, i, j):
        return POSITIVE
    if positives == "bin" and same(rows.bin[i], rows.bin[j]):
        return POSITIVE
    return NEGATIVE


def text_relation(rows: Rows, positives: str, i: int, j: int) -> str:
    if positives != "masked":
        return plain_relation(rows, positives, i, j)
    if same_caption(rows, i, j):
        return POSITIVE
    return NEGATIVE if contradict(rows.caption[i], rows.caption[j]) else MASKED


def image_dna_relation(rows: Rows, positives: str, i: int, j: int) -> str:
    if positives != "masked":
        return plain_relation(rows, positives, i, j)
    if i == j or same(rows.labels[i][3], rows.labels[j][3]):
        return POSITIVE
    if same(rows.bin[i], rows.bin[j]) or same(rows.barcode[i], rows.barcode[j]):
        return POSITIVE
    if rows.bin[i] >= 0 and rows.bin[j] >= 0:
        return NEGATIVE
    return NEGATIVE if contradict(rows.labels[i], rows.labels[j]) else MASKED


def mean(values: list[Tensor], zero: Tensor) -> Tensor:
    return torch.stack(values).sum() / len(values) if values else zero


def table(similarity: Tensor) -> list[list[Tensor]]:
    """A matrix as lists of scalars with gradient."""
    return [list(row.unbind()) for row in similarity.unbind()]


def log_sum(values: list[Tensor]) -> Tensor:
    return torch.log(torch.exp(torch.stack(values)).sum())


def directed(a: Tensor, b: Tensor, scale: Tensor, has: tuple[list[bool], list[bool]], relation: Callable) -> Tensor:
    """Mean over anchors a_i of the mean over positives of -log softmax over positives and negatives."""
    s, losses = table(scale * a @ b.T), []
    for i in range(len(a)):
        if not has[0][i]:
            continue
        kinds = {j: relation(i, j) for j in range(len(b)) if has[1][j]}
        candidates = [j for j, kind in kinds.items() if kind != MASKED]
        positives = [j for j, kind in kinds.items() if kind == POSITIVE]
        if positives:
            total = log_sum([s[i][j] for j in candidates])
            losses.append(mean([total - s[i][p] for p in positives], scale))
    return mean(losses, 0.0 * (a.sum() + b.sum()))


def contrastive(features: Any, rows: Rows, config: Any) -> dict[str, Tensor]:
    def symmetric(a: Tensor, b: Tensor, has_a: list[bool], has_b: list[bool], relation: Callable) -> Tensor:
        def related(i: int, j: int) -> str:
            return relation(rows, config.positives, i, j)

        scale = features.logit_scale
        return (directed(a, b, scale, (has_a, has_b), related) + directed(b, a, scale, (has_b, has_a), related)) / 2

    dna = features.dna.detach() if config.detach_dna else features.dna
    terms = {
        "loss/image_text": symmetric(features.image, features.text, rows.has_image, rows.has_text, text_relation),
        "loss/dna_text": symmetric(features.dna, features.text, rows.has_dna, rows.has_text, text_relation),
        "loss/image_dna": symmetric(features.image, dna, rows.has_image, rows.has_dna, image_dna_relation),
    }
    total = terms["loss/image_text"] + terms["loss/dna_text"] + config.image_dna_weight * terms["loss/image_dna"]
    return {"loss/contrastive": total} | terms


def fusion(features: Any, rows: Rows, config: Any) -> dict[str, Tensor]:
    def related(i: int, j: int) -> str:
        return text_relation(rows, config.positives, i, j)

    both = [i and d for i, d in zip(rows.has_image, rows.has_dna, strict=True)]
    forth = directed(features.fused, features.text, features.logit_scale, (both, rows.has_text), related)
    back = directed(features.text, features.fused, features.logit_scale, (rows.has_text, both), related)
    loss = {"fused_to_text": forth, "text_to_fused": back, "symmetric": (forth + back) / 2}[config.fused_direction]
    if config.rank_heads_weight == 0:
        return {"loss/fusion": loss}
    heads = []
    for level, logits in enumerate(features.rank_logits):
        known = [i for i in range(len(both)) if both[i] and rows.labels[i][level] >= 0]
        entropies = [log_sum(list(logits[i].unbind())) - logits[i][rows.labels[i][level]] for i in known]
        if entropies:
            heads.append(mean(entropies, loss))
    return {"loss/fusion": loss, "loss/rank_heads": mean(heads, 0.0 * features.fused.sum())}


class Hierarchy:
    """HiR over blocks of rows: one block = the whole batch; several = workers that do not gather."""

    def __init__(self, features: Any, rows: Rows, config: Any, blocks: list[list[int]]) -> None:
        self.rows, self.config, self.num_rows = rows, config, len(rows.bin)
        self.zero = 0.0 * (features.image.sum() + features.image_view2.sum())
        vectors = torch.cat([features.image, features.image_view2])  # vector v of view k = row v - k * num_rows
        self.s = table(vectors @ vectors.T / config.hierarchy_temperature)
        self.stays = [[row for row in block if rows.has_image[row]] for block in blocks]
        # pairs[rank][block][anchor, positive] = loss
        self.pairs: list[list[dict[Pair, Tensor]]] = [[] for _ in RANKS]
        self.occurs = [False] * 4
        for rank in (3, 2, 1, 0):
            for place, stays in enumerate(self.stays):
                self.pairs[rank].append(self.pair_losses(rank, stays))
                self.occurs[rank] |= any(rows.labels[row][rank] >= 0 for row in stays)
                if config.representatives == "one_per_label":
                    self.stays[place] = self.thinned(rank, stays)

    def thinned(self, rank: int, stays: list[int]) -> list[int]:
        seen: set[int] = set()
        kept = []
        for row in sorted(stays):
            label = self.rows.labels[row][rank]
            if label < 0 or label not in seen:
                kept.append(row)
            seen.add(label)
        return kept

    def pair_losses(self, rank: int, stays: list[int]) -> dict[Pair, Tensor]:
        vectors = [view * self.num_rows + row for view in (0, 1) for row in stays]
        label = {v: self.rows.labels[v % self.num_rows][rank] for v in vectors}
        losses: dict[Pair, Tensor] = {}
        for i in vectors:
            others = [a for a in vectors if a != i]
            different = [a for a in others if label[a] >= 0 and label[i] >= 0 and label[a] != label[i]]
            for p in others:
                if not (same(label[i], label[p]) or p % self.num_rows == i % self.num_rows):
                    continue
                candidates = others if self.config.denominator == "all" else [p, *different]
                losses[i, p] = log_sum([self.s[i][a] - self.s[i][p] for a in candidates])  # 0, not 1e-16, for p alone
        return losses

    def rank_mean(self, blocks: list[dict[Pair, Tensor]]) -> Tensor:
        anchors: dict[int, list[Tensor]] = {}
        for pairs in blocks:
            for (i, _), loss in pairs.items():
                anchors.setdefault(i, []).append(loss)
        return mean([mean(losses, self.zero) for losses in anchors.values()], self.zero)

    def order(self) -> list[int]:
        occurring = [rank for rank in range(4) if self.occurs[rank]]
        return occurring if self.config.rectify == "coarse_to_fine" else occurring[::-1]

    def clamp_pairs(self) -> tuple[dict[int, Tensor], dict[int, float]]:
        means, shares, order = {}, {}, self.order()
        for place, rank in enumerate(order):
            rectified: list[dict[Pair, Tensor]] = []
            clamped = 0
            for block, pairs in enumerate(self.pairs[rank]):
                maximum: Any = None  # the first pair of the largest loss at the neighbouring rank
                for loss in self.pairs[order[place - 1]][block].values() if place else ():
                    if maximum is None or loss.item() > maximum.item():
                        maximum = loss
                below = {k for k, loss in pairs.items() if maximum is not None and loss.item() < maximum.item()}
                rectified.append({k: maximum if k in below else loss for k, loss in pairs.items()})
                clamped += len(below)
            means[rank] = self.rank_mean(rectified)
            shares[rank] = clamped / max(1, sum(len(pairs) for pairs in self.pairs[rank]))
        return means, shares

    def clamp_means(self) -> tuple[dict[int, Tensor], dict[int, float]]:
        means, shares = {rank: self.rank_mean(self.pairs[rank]) for rank in self.order()}, {}
        largest: Any = None
        for rank in self.order():
            shares[rank] = float(largest is not None and largest.item() > means[rank].item())
            means[rank] = largest = largest if shares[rank] else means[rank]
        return means, shares

    def terms(self) -> dict[str, Any]:
        raw = {rank: self.rank_mean(self.pairs[rank]) for rank in self.order()}
        means, shares = raw, dict.fromkeys(raw, 0.0)
        if self.config.rectify != "none":
            means, shares = self.clamp_pairs() if self.config.rectify_unit == "pair" else self.clamp_means()
        weights = {rank: self.config.rank_weights[rank] for rank in means}
        total = sum((weights[rank] * means[rank] for rank in means), self.zero)
        result = {"loss/hierarchy": total / (math.fsum(weights.values()) or 1.0)}
        for rank, name in enumerate(RANKS):
            result[f"hierarchy/loss/{name}"] = raw.get(rank, 0.0)
            result[f"hierarchy/clamped_share/{name}"] = shares.get(rank, 0.0)
        return result


def hierarchy(features: Any, rows: Rows, config: Any, blocks: list[list[int]] | None = None) -> dict[str, Any]:
    return Hierarchy(features, rows, config, blocks or [list(range(len(rows.bin)))]).terms()


def total(features: Any, rows: Rows, config: Any, blocks: list[list[int]] | None = None) -> dict[str, Any]:
    """All terms and their weighted sum."""
    terms: dict[str, Any] = contrastive(features, rows, config)
    loss = terms["loss/contrastive"]
    if config.hierarchy_weight > 0:
        terms |= hierarchy(features, rows, config, None if config.hierarchy_gather else blocks)
        loss = loss + config.hierarchy_weight * terms["loss/hierarchy"]
    if config.fusion_weight > 0 or config.rank_heads_weight > 0:
        terms |= fusion(features, rows, config)
        loss = loss + config.fusion_weight * terms["loss/fusion"]
    if config.rank_heads_weight > 0:
        loss = loss + config.rank_heads_weight * terms["loss/rank_heads"]
    return {"loss/total": loss} | terms
