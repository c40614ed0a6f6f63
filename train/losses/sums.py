"""Sums over many pairs of vectors without looking at single pairs, with gradients of their own.

Legend: B rows of this worker, G candidate rows, D embedding, R taxonomic ranks, A some anchors, S sets of candidates, K
classes. A row is two vectors, one per view, in the order [all first views; all second views].
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Gradients = tuple[Tensor | None, ...]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right.T. On AMD processors oneDNN's float32 product takes half the time of MKL's."""
    if left.device.type == "cpu" and left.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return functional.linear(left.to_mkldnn(), right).to_dense()
    return left @ right.T


class LogSums(torch.autograd.Function):
    """log of the sum of exp(a_i . c_j) over j != itself_i, j of each set: [A, S], from [A, D] and [2G, D].

    Touches the matrix of pairs as few times as there are: once for each of max, exp, sums, and once in backward.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, candidates: Tensor, sets: Tensor, itself: Tensor) -> Tensor:
        """Return [A, S]. sets: 0 or 1 [S, 2G], in the features' type; itself: int64 [A]."""
        powers = _product(anchors, candidates).scatter_(1, itself[:, None], -torch.inf)
        largest = powers.amax(dim=1, keepdim=True)
        powers.sub_(largest).exp_()
        sums = powers @ sets.T
        ctx.save_for_backward(anchors, candidates, sets, powers, sums)
        ctx.alone = anchors is candidates
        return largest + sums.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        """Return the gradients: 0, like the sums, for an anchor that no set gives a partner."""
        anchors, candidates, sets, powers, sums = ctx.saved_tensors
        pairs = (torch.where(sums > 0, grads[0] / sums, 0.0) @ sets).mul_(powers)
        if ctx.alone:  # one product instead of two
            pairs = pairs + pairs.T
            return _product(pairs, anchors.T), None, None, None
        return pairs @ candidates, pairs.T @ anchors, None, None


class NearSums(torch.autograd.Function):
    """For each rank the sum of weight * a_i . (the other vectors of i's class) over this worker's vectors i: [R].

    From the sums T of the classes, sum_i weight_i (T_i - a_i) . a_i, so that a rank costs B x D instead of B x G.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, candidates: Tensor, classes: Tensor, weight: Tensor, own: Tensor) -> Tensor:
        """Take what all ranks share.

        anchors [2B, D]; candidates [2G, D], the same tensor when this worker is alone; classes int64 [R, G], none of
        two ranks; weight [R, G], one value a class; own int64 [B]: this worker's rows among the G.
        """
        members = torch.bincount(classes.flatten())
        ctx.alone = anchors is candidates
        sums = _class_sums(candidates, classes, len(members))
        mine = sums if ctx.alone else _class_sums(anchors, classes[:, own], len(members))
        ctx.save_for_backward(anchors, candidates, classes, weight, own, mine, sums)
        squares = torch.linalg.vector_norm(anchors, dim=1).square().view(2, -1).sum(dim=0)
        dots = torch.linalg.vecdot(mine, sums) / members
        return (weight * dots[classes]).sum(dim=1) - weight[:, own] @ squares

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        """[R] -> [2B, D] and [2G, D]; alone, both parts at once, in the first."""
        anchors, candidates, classes, weight, own, mine, sums = ctx.saved_tensors
        share = weight * grads[0][:, None]
        if ctx.alone:
            return _toward(sums, classes, 2 * share, anchors), None, None, None, None
        itself = candidates.unflatten(0, (2, -1))
        to_anchors = _toward(sums, classes[:, own], share[:, own], itself[:, own])
        only_mine = torch.zeros_like(itself).index_copy_(1, own, anchors.unflatten(0, (2, -1)))
        return to_anchors, _toward(mine, classes, share, only_mine), None, None, None


def _class_sums(vectors: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """[2n, D], int64 [R, n] -> [K, D]: the sum of both views of all members of each class."""
    both = torch.add(*vectors.chunk(2))
    sums = both.new_zeros(num_classes, both.shape[1])
    for members in classes:
        sums.index_add_(0, members, both)
    return sums


def _toward(sums: Tensor, classes: Tensor, share: Tensor, itself: Tensor) -> Tensor:
    """[2n, D]: the sum over ranks of share [R, n] * (sums [K, D] of the row's class - itself [2n, D])."""
    both = functional.embedding_bag(classes.T, sums, mode="sum", per_sample_weights=share.T)
    return torch.addcmul(both, itself.view(2, *both.shape), share.sum(dim=0)[:, None], value=-1).flatten(0, 1)
