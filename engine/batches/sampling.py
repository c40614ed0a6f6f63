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

from engine.errors import UserError
from engine.specimens.schema import rng_for
from engine.specimens.taxonomy import RANKS

READ_TOGETHER = 1024  # stored rows that stay in one window: an object store is asked for megabytes, not photos
BLOCK_ROWS = 1 << 17  # rows ordered at once: whole windows whose arrays stay in the processor's cache


def partner_order(labels: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """Order specimens so that relatives of the same window stand together; every window keeps its place.

    Four rounds of random matching, finest rank first: specimens of one species are paired at random, the pairs (and
    the unpaired) of one genus are paired, then of one family, then of one order; an odd one out joins a pair. A group
    of about 2^R = 16 specimens thus brings each of its members a partner at every rank at which its window has one,
    and partners at a coarse rank come from another finer taxon where there is one. Groups follow in random order.

    Args:
        labels: integers [N, R], -1 = unknown; every `window` rows in succession are a window, the last may be shorter.
        window: specimens.
        rng: the only source of randomness.

    Returns:
        int64 [N], a permutation of 0..N-1. Cost: R + 1 sorts of at most N keys.
    """
    rows = np.arange(len(labels))
    window_of = rows // window
    leader = rows  # of the unit that a row belongs to
    size = np.ones(len(labels), dtype=np.int64)  # of a unit, at its leader
    place = np.zeros(len(labels), dtype=np.int64)  # of a row inside its unit
    for rank in reversed(range(labels.shape[1])):
        label = labels[:, rank].astype(np.int64)
        units = np.flatnonzero((leader == rows) & (label >= 0))
        taxon = window_of[units] * (int(label.max(initial=0)) + 1) + label[units]
        units, taxon = _shuffled_sort(units, taxon, rng)
        if not len(units):
            continue
        heads = _heads(taxon)
        head = np.repeat(heads, np.diff(heads, append=len(units)))
        before = np.cumsum(size[units]) - size[units]
        shift, merged = np.zeros(len(labels), dtype=np.int64), rows.copy()
        shift[units], merged[units] = before - before[head], units[head]
        place += shift[leader]
        size[units[heads]] = np.add.reduceat(size[units], heads)
        leader = merged[leader]
    tops = np.flatnonzero(leader == rows)
    tops, _ = _shuffled_sort(tops, window_of[tops], rng)
    start = np.empty(len(labels), dtype=np.int64)
    start[tops] = np.cumsum(size[tops]) - size[tops]
    order = np.empty(len(labels), dtype=np.int64)
    order[start[leader] + place] = rows
    return order


def _shuffled_sort(units: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sort by group, at random inside each; returns both sorted. Keys are unique: no machine's sort can tell ties."""
    bits = len(units).bit_length()
    assert int(group.max(initial=0)).bit_length() + bits < 64
    ticket = rng.permutation(len(units))
    holder = np.empty(len(units), dtype=np.int64)
    holder[ticket] = np.arange(len(units))
    key = np.sort((group << bits) | ticket)
    return units[holder[key & ((1 << bits) - 1)]], key >> bits


def _heads(group: np.ndarray) -> np.ndarray:
    """Return where each pair of a sorted run starts; the odd one out of a run belongs to its last pair."""
    index = np.arange(len(group))
    new = np.diff(group, prepend=-1) != 0
    position = index - np.maximum.accumulate(np.where(new, index, 0))
    last = np.append(new[1:], True)
    return np.flatnonzero((position % 2 == 0) & ~(last & (position > 0)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The order of every epoch of a training run.

    Each epoch has floor(N / global_batch_size) steps. The remainder of an epoch is left out of it and comes first in
    the next: of one fixed random permutation, epoch e leaves out the e-th cyclic block, so no specimen is left out
    twice in a row and no earlier epoch has to be computed.
    """

    labels: np.ndarray  # int64 [N, R], rows in stored order
    seed: int
    global_batch_size: int
    lanes: int = 8
    window: int = 4096  # specimens, within a half: N is split into equal windows
    partners: bool = True

    def __post_init__(self) -> None:
        if self.global_batch_size % self.lanes:
            allowed = f"a multiple of data.lanes={self.lanes}"
            raise UserError("run.global_batch_size", self.global_batch_size, allowed)
        if len(self.labels) < self.global_batch_size:
            allowed = f"at most the {len(self.labels)} specimens of the train split"
            raise UserError("run.global_batch_size", self.global_batch_size, allowed)
        assert self.labels.shape[1] == len(RANKS)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch, each whole."""
        return len(self.labels) // self.global_batch_size

    @property
    def num_left_out(self) -> int:
        """Specimens that an epoch leaves to the start of the next."""
        return len(self.labels) - self.steps_per_epoch * self.global_batch_size

    @cached_property
    def _permutation(self) -> np.ndarray:
        return rng_for(self.seed, 0, "", "left-out").permutation(np.arange(len(self.labels), dtype=np.int32))

    def left_out(self, epoch: int) -> np.ndarray:
        """Return rows that `epoch` does not visit, int32 [num_left_out]."""
        if epoch < 0 or not self.num_left_out:
            return np.empty(0, dtype=np.int32)
        first = epoch * self.num_left_out
        return self._permutation[np.arange(first, first + self.num_left_out) % len(self.labels)]

    @property
    def window_rows(self) -> int:
        """Rows of every window but the last: about `window`, so that no short window is left at the end."""
        return -(-len(self.labels) // max(1, round(len(self.labels) / self.window)))

    def reading(self, epoch: int) -> np.ndarray:
        """Return rows in the order in which an epoch opens them, int32 [N]: windows of `window_rows`.

        Stored runs of READ_TOGETHER rows in random order, so that windows mix differently in every epoch.
        """
        count, run = len(self.labels), min(READ_TOGETHER, self.window_rows)
        runs = rng_for(self.seed, epoch, "", "reading").permutation(np.arange(-(-count // run), dtype=np.int32))
        rows = (runs[:, None] * np.int32(run) + np.arange(run, dtype=np.int32)).reshape(-1)
        return rows[rows < count]

    def _sequence(self, epoch: int) -> np.ndarray:
        """Return all rows, windows as they are read, each in its final order; int32 [N]."""
        rows = self.reading(epoch)
        window = self.window_rows
        block = max(1, BLOCK_ROWS // window) * window
        for first in range(0, len(rows), block):
            rng = rng_for(self.seed, epoch, str(first // block), "order")
            part = rows[first : first + block]
            labels = self.labels[part] if self.partners else self.labels[part, :0]
            rows[first : first + block] = part[partner_order(labels, window, rng)]
        return rows

    def order(self, epoch: int) -> np.ndarray:
        """Return rows of one epoch, int32 [steps, V, M].

        Each row at most once, the previous epoch's remainder first.
        """
        sequence = self._sequence(epoch)
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
        """Return the share of one worker, int32 [steps, batch of the worker].

        Raises ValueError when the number of workers does not divide the number of lanes.
        """
        if self.lanes % world_size:
            allowed = [count for count in range(1, self.lanes + 1) if self.lanes % count == 0]
            raise UserError("run.num_workers", world_size, f"a divisor of data.lanes={self.lanes}: one of {allowed}")
        share = self.lanes // world_size
        own = self.order(epoch)[:, rank * share : (rank + 1) * share]
        return own.reshape(self.steps_per_epoch, -1)
