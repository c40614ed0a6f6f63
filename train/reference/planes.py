"""References on the columns of COI as bit planes, in clusters of like ones that are compared as a whole.

A set of references is halved until its members are alike: two that differ much are taken, and each of the others goes
with the one that it is more like. What the members of a cluster have in common bounds from below how much a query
differs from each of them.

Legend: H references (different barcodes), S slots (the references that have a place, in the clusters' order),
C clusters, W words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from engine.signals.columns import Placer
from engine.signals.placing import HIGH, KNOWN, LOW, MARGIN

SAMPLE = 10_000  # barcodes that the places of k-mers are learned from without gaps,
TAUGHT = 60_000  # and all in all
ALIKE = 24  # differences between the members of a cluster and one of them
LARGEST = 32  # members of a cluster
SURVEYED = 4  # words of the third codon positions, by which clusters are compared
_DRAWN = 12  # of a large set, among which two are chosen
_CHUNK = 1 << 15  # barcodes placed at a time
_SMALL = 512  # larger sets are cut at an eighth at least, so that halving ends soon


@dataclass(frozen=True)
class Planes:
    """The references that stand on columns."""

    planes: np.ndarray  # uint64 [S, W, 3]: LOW, HIGH, KNOWN
    shared: np.ndarray  # uint64 [SURVEYED, 3, C]: LOW and HIGH of the letters that all members have, and where
    begin: np.ndarray  # int64 [C + 1], each cluster's first slot
    reference: np.ndarray  # int32 [S], one of H
    first: np.ndarray  # int32 [S], column of the first letter on the coding strand
    turned: np.ndarray  # bool [S], stored on the other strand
    gaps: np.ndarray  # int32 [S], letters inserted and columns left out
    rest: np.ndarray  # int32, references of which no or not every letter has a column: they are searched by seeds, too
    table: np.ndarray  # int16, of the Placer
    profile: np.ndarray  # int16, of the Placer

    @classmethod
    def build(cls, barcodes: Sequence[str]) -> "Planes":
        """Place barcodes on their coding strands and cluster them."""
        placer = _learn(barcodes)
        parts = [placer.place(barcodes[start : start + _CHUNK]) for start in range(0, max(1, len(barcodes)), _CHUNK)]
        strand, first, gaps, beyond = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("strand", "first", "gaps", "beyond")
        )
        planes = np.concatenate([part.planes for part in parts])
        slots = np.flatnonzero(strand).astype(np.int32)
        cut = np.zeros(len(slots) + 1, dtype=np.bool_)
        _halve(planes, slots, cut)
        begin = np.flatnonzero(cut)
        planes = np.ascontiguousarray(planes[slots].transpose(0, 2, 1))
        shared = np.zeros((SURVEYED, 3, len(begin) - 1), dtype=np.uint64)
        _share(planes, begin, shared)
        rest = np.flatnonzero((strand == 0) | (beyond > MARGIN)).astype(np.int32)
        return cls(
            planes,
            shared,
            begin,
            slots,
            first[slots],
            strand[slots] < 0,
            gaps[slots],
            rest,
            placer.table,
            placer.profile,
        )

    @property
    def placer(self) -> Placer:
        """What places queries as the references were."""
        return Placer(self.table, self.profile)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by its name: what a library keeps."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _learn(barcodes: Sequence[str]) -> Placer:
    """Learn places of k-mers from barcodes drawn at even distances: a few without gaps, more by k-mers."""
    drawn = [
        barcodes[row] for row in np.linspace(0, len(barcodes) - 1, min(len(barcodes), TAUGHT)).astype(int).tolist()
    ]
    return Placer.learn(drawn[:: max(1, len(drawn) // SAMPLE)]).taught(drawn)


@intrinsic
def ones(typing, word):  # type: ignore[no-untyped-def]
    """Count the bits that are set."""
    return types.uint64(types.uint64), lambda context, builder, signature, values: builder.ctpop(values[0])


@njit(nogil=True, cache=True)
def _halve(planes, order, cut):  # type: ignore[no-untyped-def]
    """Order references by clusters and mark where each begins; `planes` uint64 [H, 3, W]."""
    cut[0] = cut[-1] = True
    stack = [(0, len(order))]
    key = np.empty(len(order), dtype=np.int32)
    ordered = np.empty_like(order)
    while len(stack):
        low, high = stack.pop()
        size = high - low
        if size < 2:
            continue
        if size <= LARGEST:
            one, far = _farthest(planes, order, low, high, order[(low + high) // 2])
            if far <= ALIKE:
                continue
            other, _ = _farthest(planes, order, low, high, one)
        else:
            one, other = _unlike(planes, order, low, high)
        count = np.zeros(1410, dtype=np.int64)
        natural = 0
        for place in range(low, high):
            key[place] = 704 + differences(planes, order[place], one) - differences(planes, order[place], other)
            count[key[place] + 1] += 1
            natural += key[place] < 704
        for value in range(1409):
            count[value + 1] += count[value]
        for place in range(low, high):
            ordered[low + count[key[place]]] = order[place]
            count[key[place]] += 1
        order[low:high] = ordered[low:high]
        least = 1 if size < _SMALL else size // 8
        half = low + min(max(natural, least), size - least)
        cut[half] = True
        stack.append((low, half))
        stack.append((half, high))


@njit(nogil=True, cache=True)
def _farthest(planes, order, low, high, row):  # type: ignore[no-untyped-def]
    best, found = -1, row
    for place in range(low, high):
        value = differences(planes, order[place], row)
        if value > best:
            best, found = value, order[place]
    return found, best


@njit(nogil=True, cache=True)
def _unlike(planes, order, low, high):  # type: ignore[no-untyped-def]
    """Return two references that differ much, of a few: the two that differ most of all are seldom like the others."""
    step = (high - low) // _DRAWN
    one, other, most = order[low], order[high - 1], -1
    for first in range(low, low + _DRAWN * step, step):
        for second in range(first + step, low + _DRAWN * step, step):
            value = differences(planes, order[first], order[second])
            if value > most:
                one, other, most = order[first], order[second], value
    return one, other


@njit(nogil=True, cache=True)
def differences(planes, one, other):  # type: ignore[no-untyped-def]
    """Count the columns on which two barcodes of planes uint64 [H, 3, W] have different letters."""
    first, second = planes[one], planes[other]
    total = np.uint64(0)
    for word in range(planes.shape[2]):
        unlike = (first[LOW, word] ^ second[LOW, word]) | (first[HIGH, word] ^ second[HIGH, word])
        total += ones(unlike & first[KNOWN, word] & second[KNOWN, word])
    return np.int64(total)


@njit(nogil=True, cache=True)
def _share(planes, begin, shared):  # type: ignore[no-untyped-def]
    """Write the letters that all members of each cluster have."""
    for cluster in range(len(begin) - 1):
        one = planes[begin[cluster]]
        for word in range(SURVEYED):
            low, high, same = one[word, LOW], one[word, HIGH], one[word, KNOWN]
            for slot in range(begin[cluster] + 1, begin[cluster + 1]):
                same &= planes[slot, word, KNOWN] & ~(
                    (planes[slot, word, LOW] ^ low) | (planes[slot, word, HIGH] ^ high)
                )
            shared[word, LOW, cluster], shared[word, HIGH, cluster], shared[word, KNOWN, cluster] = low, high, same
