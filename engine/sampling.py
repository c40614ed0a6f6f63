"""Which specimens a training step sees, and in which order: a pure function of (labels, seed, epoch).

The order never depends on the number of workers. An epoch is written in V *lanes*; a step takes one micro-batch of
global_batch_size / V specimens from each lane, and the lanes one after another are the global batch. Worker r of W
runs the consecutive lanes r*V/W ... (r+1)*V/W - 1, so that features gathered in rank order stand in the same row order
for every W.

Legend: N specimens, V lanes, M specimens of a micro-batch, R ranks.
"""

import dataclasses
from functools import cached_property

import numpy as np

from engine.schema import rng_for
from engine.taxonomy import RANKS


def partner_order(labels: np.ndarray, window_of: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Order specimens so that relatives of the same window stand together, windows kept apart.

    Four rounds of random matching, finest rank first: specimens of one species are paired at random, the pairs (and
    the unpaired) of one genus are paired, then of one family, then of one order; an odd one out joins a pair. A group
    of about 2^R = 16 specimens thus brings each of its members a partner at every rank at which its window has one,
    and partners at a coarse rank come from another finer taxon where there is one. Groups, and windows, follow in
    random order.

    Args:
        labels: int64 [N, R], -1 = unknown.
        window_of: int64 [N], the window of each specimen.
        rng: the only source of randomness.

    Returns:
        int64 [N], a permutation of 0..N-1. Cost: R + 1 sorts of N keys.
    """
    leader = np.arange(len(labels))
    nested = [leader]  # finest groups first
    for rank in reversed(range(labels.shape[1])):
        units = np.unique(leader)
        units = units[labels[units, rank] >= 0]
        units = units[np.lexsort((rng.random(len(units)), labels[units, rank], window_of[units]))]
        same = (np.diff(labels[units, rank]) == 0) & (np.diff(window_of[units]) == 0)
        starts = np.flatnonzero(np.concatenate(([True], ~same)))[: len(units)]
        sizes = np.diff(np.append(starts, len(units)))
        position, size = np.arange(len(units)) - np.repeat(starts, sizes), np.repeat(sizes, sizes)
        pair = position // 2
        pair[(position == size - 1) & (size % 2 == 1) & (size > 1)] -= 1  # the odd one joins the last pair
        merged = np.arange(len(labels))
        merged[units] = units[np.repeat(starts, sizes) + 2 * pair]
        leader = merged[leader]
        nested.append(leader)
    window_priority = rng.permutation(int(window_of.max(initial=-1)) + 1)
    return np.lexsort((*nested[:-1], rng.random(len(labels))[leader], window_priority[window_of]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The order of every epoch of a training run.

    Each epoch has floor(N / global_batch_size) steps. The remainder of an epoch is left out of it and comes first in
    the next: of one fixed random permutation, epoch e leaves out the e-th cyclic block, so no specimen is left out
    twice in a row and no earlier epoch has to be computed.
    """

    labels: np.ndarray  # int64 [N, R], rows in stored order
    seed: int
    global_batch_size: int
    lanes: int = 8
    window: int = 4096
    partners: bool = True

    def __post_init__(self) -> None:
        if self.global_batch_size % self.lanes:
            raise ValueError(
                f"run.global_batch_size must be a multiple of data.lanes={self.lanes}, got {self.global_batch_size}"
            )
        if len(self.labels) < self.global_batch_size:
            raise ValueError(
                f"the train split has {len(self.labels)} specimens, fewer than one batch; "
                f"run.global_batch_size must be at most that, got {self.global_batch_size}"
            )
        assert self.labels.shape[1] == len(RANKS)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.labels) // self.global_batch_size

    @property
    def num_left_out(self) -> int:
        """Specimens that an epoch leaves to the start of the next."""
        return len(self.labels) - self.steps_per_epoch * self.global_batch_size

    @cached_property
    def _permutation(self) -> np.ndarray:
        return rng_for(self.seed, 0, "", "left-out").permutation(len(self.labels))

    def left_out(self, epoch: int) -> np.ndarray:
        """Rows that `epoch` does not visit, int64 [num_left_out]."""
        if epoch < 0 or not self.num_left_out:
            return np.empty(0, dtype=np.int64)
        first = epoch * self.num_left_out
        return self._permutation[np.arange(first, first + self.num_left_out) % len(self.labels)]

    def order(self, epoch: int) -> np.ndarray:
        """Rows of one epoch, int64 [steps, V, M]; each row at most once, the previous epoch's remainder first."""
        rng = rng_for(self.seed, epoch, "", "order")
        window_of = np.arange(len(self.labels)) // self.window
        if self.partners:
            sequence = partner_order(self.labels, window_of, rng)
        else:
            priority = rng.permutation(int(window_of.max()) + 1)
            sequence = np.lexsort((rng.random(len(window_of)), priority[window_of]))
        first = self.left_out(epoch - 1)
        excluded = np.zeros(len(self.labels), dtype=bool)
        excluded[first] = True
        excluded[self.left_out(epoch)] = True
        sequence = sequence[~excluded[sequence]]
        lane_length = self.steps_per_epoch * self.global_batch_size // self.lanes
        heads = np.array_split(first, self.lanes)
        ends = np.cumsum([lane_length - len(head) for head in heads])
        bodies = np.split(sequence, ends[:-1])
        lanes = np.stack([np.concatenate(parts) for parts in zip(heads, bodies, strict=True)])
        return lanes.reshape(self.lanes, self.steps_per_epoch, -1).transpose(1, 0, 2)

    def worker_order(self, epoch: int, rank: int, world_size: int) -> np.ndarray:
        """The share of one worker, int64 [steps, batch of the worker].

        Raises ValueError when the number of workers does not divide the number of lanes.
        """
        if self.lanes % world_size:
            allowed = [count for count in range(1, self.lanes + 1) if self.lanes % count == 0]
            raise ValueError(f"run.num_workers must divide data.lanes={self.lanes}: one of {allowed}, got {world_size}")
        share = self.lanes // world_size
        own = self.order(epoch)[:, rank * share : (rank + 1) * share]
        return own.reshape(self.steps_per_epoch, -1)
