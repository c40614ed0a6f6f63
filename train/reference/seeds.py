"""Which references share the most telling k-mers with a query: an inverted index, read by compiled code.

One k-mer in three, chosen by its letters alone, is a *seed*; every seed of every reference is kept with the reference's
number and its place, so that a lookup returns, beside how many seeds a reference shares, where the query lies on it.
(Every third place instead would make the seeds of those references rare that begin elsewhere than most, and the rarest
seeds would choose them.) A query looks up its seeds, the rarest first, until `entries` are read: a seed that half the
library has costs much and says little. A wrong letter makes k k-mers that are rare by chance; k grows with the library,
so that they hold few entries and do not eat the budget.

Legend: K references, P entries, C candidates, L letters of the query.
"""

from typing import Any

import numpy as np

from engine.signals.nucleotides import CODES
from train.reference.clusters import MAX_LENGTH
from train.reference.compiled import entry, inner, least_first

_PLACE = 11  # bits of an entry: the place; the others are the reference
MAX_REFERENCES = 1 << (32 - _PLACE)
_BY_CHANCE = 12  # letters of the library that a k-mer may have by chance: above, k is one more
_KMERS = range(11, 14)
_NONE = 1 << 34  # entries of what is no seed: more than any has
_MOST = 254  # seeds counted of a reference
_READ_AGAIN = 50_000  # entries at least, for where the query lies on the chosen


class Scratch:
    """What lookups of one thread write on: of no meaning between them."""

    def __init__(self, references: int) -> None:
        """Make room for `references`, K of the index."""
        self.shared = np.zeros(references, dtype=np.uint8)  # zeros between lookups
        self.row = np.empty(references, dtype=np.int32)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """As compiled code takes them."""
        return self.shared, self.row


class SeedIndex:
    """The inverted index. Its arrays may be memory maps: a lookup reads only what it needs."""

    def __init__(self, k: int, offsets: np.ndarray, postings: np.ndarray) -> None:
        """`offsets` uint32 [4**k + 1]: where the entries of each k-mer begin; `postings` uint32 [P]: see _PLACE."""
        self.k, self.offsets, self.postings = k, read_only(offsets), read_only(postings)

    @classmethod
    def build(cls, letters: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> "SeedIndex":
        """Index the first MAX_LENGTH letters of references.

        Args:
            letters: uint8, ASCII.
            begins: int64 [K], where each reference begins.
            ends: int64 [K].

        Raises:
            ValueError: more than MAX_REFERENCES, or than 2^32 entries.
        """
        if len(begins) > MAX_REFERENCES:
            raise ValueError(f"reference library: got {len(begins):,} leading barcodes, allowed {MAX_REFERENCES:,}")
        total = int((ends - begins).sum())
        k = next((k for k in _KMERS if total <= _BY_CHANCE * 4**k), _KMERS[-1])
        offsets = np.zeros(4**k + 2, dtype=np.int64)
        given = read_only(letters), (begins, ends), CODES, k
        _count(*given, offsets)
        np.cumsum(offsets, out=offsets)
        if offsets[-1] >= 1 << 32:
            raise ValueError(f"reference library: got {offsets[-1]:,} k-mers to index, allowed {1 << 32:,}")
        postings = np.empty(int(offsets[-1]), dtype=np.uint32)
        _fill(*given, offsets, postings)
        return cls(k, offsets[:-1].astype(np.uint32), postings)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """As compiled code takes them."""
        return self.offsets, self.postings, self.k


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a plain view that cannot be written, so that compiled code sees one type whether it is mapped or not."""
    if type(array) is np.ndarray and not array.flags.writeable:
        return array
    view = array.view(np.ndarray)
    view.flags.writeable = False
    return view


@inner
def _is_seed(number):  # type: ignore[no-untyped-def]
    """Say whether a k-mer is a seed: one in three, by Fibonacci hashing (Knuth, volume 3, 6.4)."""
    return np.uint64(number) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32) < np.uint64(0x55555555)


@entry
def _count(letters, spans, table, k, offsets):  # type: ignore[no-untyped-def]
    """Count the entries of each k-mer two places behind its own."""
    begins, ends = spans
    mask = (1 << (2 * k)) - 1
    for reference in range(len(begins)):
        number, good = 0, 0
        for place in range(min(ends[reference] - begins[reference], MAX_LENGTH)):
            code = table[letters[begins[reference] + place]]
            number, good = (number << 2 | code & 3) & mask, good + 1 if code < 4 else 0
            if good >= k and _is_seed(number):
                offsets[number + 2] += 1


@entry
def _fill(letters, spans, table, k, offsets, postings):  # type: ignore[no-untyped-def]
    """Write the entries, by k-mer, then by reference; `offsets` [n + 1] ends as the end of each k-mer's."""
    begins, ends = spans
    mask = (1 << (2 * k)) - 1
    for reference in range(len(begins)):
        number, good = 0, 0
        for place in range(min(ends[reference] - begins[reference], MAX_LENGTH)):
            code = table[letters[begins[reference] + place]]
            number, good = (number << 2 | code & 3) & mask, good + 1 if code < 4 else 0
            if good >= k and _is_seed(number):
                postings[offsets[number + 1]] = reference << _PLACE | (place - k + 1)
                offsets[number + 1] += 1


@entry
def lookup(query, index, budget, scratch, chosen):  # type: ignore[no-untyped-def]
    """Find the references that share the most of a query's rarest k-mers; none where it shares no k-mer.

    Args:
        query: codes uint8 [L].
        index: `SeedIndex.arrays`.
        budget: (entries read at most, seeds read at least).
        scratch: `Scratch.arrays`.
        chosen: int32 [C, 3] to be written: reference, seeds in common, where the query begins on it; the most shared
            first.

    Returns:
        how many are written; seeds read.
    """
    offsets, _, k = index
    numbers = np.full(max(0, min(len(query), MAX_LENGTH) - k + 1), -1, dtype=np.int64)
    held = np.full(len(numbers), _NONE)
    number, good = 0, 0
    for place in range(min(len(query), MAX_LENGTH)):
        number, good = (number << 2 | query[place] & 3) & ((1 << (2 * k)) - 1), good + 1 if query[place] < 4 else 0
        if good >= k and _is_seed(number):
            numbers[place - k + 1] = number
            held[place - k + 1] = np.int64(offsets[number + 1]) - np.int64(offsets[number])
    seeds, total = 0, 0
    order = least_first(held, _NONE - 1)
    for rank in range(len(order)):
        entries = held[order[rank]]
        if total + entries > budget[0] and seeds >= budget[1]:
            order = order[:rank]
            break
        total, seeds = total + entries, seeds + (entries > 0)
    least, wanted = _count_shared(numbers, order, index, scratch, len(chosen))
    written = _choose(numbers, order, index, scratch, (least, wanted, chosen))
    _sort(chosen[:written])
    return written, seeds


@inner
def _count_shared(numbers, places, index, scratch, room):  # type: ignore[no-untyped-def]
    """Count the seeds of every reference; return how many to ask for, so that about `room` have them, and who has."""
    offsets, postings, _ = index
    shared = scratch[0]
    having = np.zeros(_MOST + 2, dtype=np.int64)  # references with so many seeds or more
    for place in places:
        for at in range(offsets[numbers[place]], offsets[numbers[place] + 1]):
            reference = postings[at] >> np.uint32(_PLACE)
            seeds = shared[reference]
            if seeds < _MOST:
                shared[reference] = seeds + 1
                having[seeds + 1] += 1
    least = 1
    while having[least] > room:
        least += 1
    least = least if having[least] or least == 1 else least - 1
    return least, min(having[least], room)


@inner
def _choose(numbers, places, index, scratch, wanted):  # type: ignore[no-untyped-def]
    """Write the references with enough seeds, as many as there is room for, and what most of their seeds say of them.

    Of a reference's diagonals the majority's stays, where one has it (Boyer and Moore 1991).
    """
    offsets, postings, _ = index
    shared, row = scratch
    least, enough, chosen = wanted
    votes = np.zeros(len(chosen), dtype=np.int64)
    written, read = 0, 0
    for place in places:
        if written == enough and read > _READ_AGAIN:
            break
        read += offsets[numbers[place] + 1] - offsets[numbers[place]]
        for at in range(offsets[numbers[place]], offsets[numbers[place] + 1]):
            reference = postings[at] >> np.uint32(_PLACE)
            if shared[reference] < least:
                continue
            diagonal = np.int64(postings[at] & np.uint32((1 << _PLACE) - 1)) - place
            slot = row[reference]
            if not (0 <= slot < written and chosen[slot, 0] == reference):
                if written == len(chosen):
                    continue
                slot, written = written, written + 1
                row[reference] = slot
                chosen[slot, 0], chosen[slot, 1], chosen[slot, 2] = reference, shared[reference], diagonal
            if chosen[slot, 2] == diagonal:
                votes[slot] += 1
            elif votes[slot]:
                votes[slot] -= 1
            else:
                chosen[slot, 2], votes[slot] = diagonal, 1
    shared[:] = 0
    return written


@inner
def _sort(chosen):  # type: ignore[no-untyped-def]
    """Put the references that share the most seeds first."""
    before = chosen.copy()
    order = least_first(-before[:, 1], 0)
    for rank in range(len(order)):
        for column in range(3):
            chosen[rank, column] = before[order[rank], column]
