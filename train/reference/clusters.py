"""References as what sets them apart from a leader like them, so that a search aligns leaders and counts the rest.

Most of a library's barcodes are near copies: of the 644,573 different ones of a million COI records 206,761 lead
clusters, and the others differ from their leader in 1.6 million letters together. A leader comes before its members in
the order of known letters, so it covers what they cover, but for a few letters.

Legend: H references, K leaders, D changed letters; a *place* is a letter's number on the leader, from 0, and may lie
before or behind it.
"""

from dataclasses import dataclass, fields

import numpy as np

from engine.signals.nucleotides import CODES
from train.reference.compiled import entry, inner, least_first

MAX_LENGTH = 2048  # letters of a reference that are searched
MOST = 14  # letters in which a member differs from its leader at most: 2% of a barcode
_WINDOW = 24  # letters: of the 27 windows of a leader a member leaves at least 13 unchanged
_BUCKETS = 22  # bits
_CHAIN, _LOOKS, _TRIES = 64, 40, 200  # entries of a bucket, windows of a reference, leaders compared: at most
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing (Knuth, volume 3, 6.4)
_NONE = 1 << 34  # entries of what is in no bucket
_N = ord("N")


@dataclass(frozen=True)
class Clusters:
    """Leaders with their members, the leader first among them. Arrays may be memory maps."""

    leader: np.ndarray  # int32 [K], a reference
    first: np.ndarray  # int64 [K + 1], where each leader's members begin
    member: np.ndarray  # int32 [H], references
    begin: np.ndarray  # int16 [H], place at which each member begins
    change: np.ndarray  # int32 [H + 1], where each member's changes begin
    place: np.ndarray  # int16 [D]
    letter: np.ndarray  # uint8 [D], ASCII, of the member

    @classmethod
    def build(cls, letters: np.ndarray, starts: np.ndarray) -> "Clusters":
        """Lead references by others like them: one pass, each joins the nearest leader that is found or leads itself.

        Args:
            letters: uint8, ASCII, one reference after another.
            starts: int64 [H + 1], where each begins.
        """
        known = np.add.reduceat(letters != _N, starts[:-1], dtype=np.int64) if len(letters) else np.empty(0, np.int64)
        order = np.argsort(-known, kind="stable")
        leader, begin = _lead(letters, starts, order, CODES)
        names, cluster = np.unique(leader, return_inverse=True)
        member = np.lexsort((leader != np.arange(len(leader)), cluster)).astype(np.int32)  # a leader first of its own
        first = np.searchsorted(cluster[member], np.arange(len(names) + 1))
        change, place, letter = _changes(letters, starts, leader, begin, member)
        return cls(names.astype(np.int32), first, member, begin[member], change, place, letter)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the arrays."""
        return tuple(field.name for field in fields(cls))


@inner
def _differing(letters, span, leader, begin, most):  # type: ignore[no-untyped-def]
    """Count the letters in which a reference that begins at a place of a leader differs; give up beyond `most`."""
    count = 0
    length = leader[1] - leader[0]
    for number in range(span[1] - span[0]):
        place = begin + number
        other = letters[leader[0] + place] if 0 <= place < length else _N
        if letters[span[0] + number] != other:
            count += 1
            if count > most:
                break
    return count


@inner
def _span(starts, reference):  # type: ignore[no-untyped-def]
    """Return where a reference begins, and where what is searched of it ends."""
    return starts[reference], min(starts[reference + 1], starts[reference] + MAX_LENGTH)


@inner
def _hashes(letters, span, table, out):  # type: ignore[no-untyped-def]
    """Write the hash of every window of a reference, by its place; 0 where a letter is unknown."""
    number, good = np.uint64(0), 0
    mask = np.uint64((1 << (2 * _WINDOW)) - 1)
    for place in range(span[1] - span[0]):
        code = table[letters[span[0] + place]]
        number = ((number << np.uint64(2)) | np.uint64(code & 3)) & mask
        good = good + 1 if code < 4 else 0
        if place >= _WINDOW - 1:
            out[place - _WINDOW + 1] = (number + np.uint64(1)) * _GOLDEN if good >= _WINDOW else np.uint64(0)
    return max(0, span[1] - span[0] - _WINDOW + 1)


@inner
def _part(hashed):  # type: ignore[no-untyped-def]
    """Return what tells windows of one bucket apart."""
    return np.int32(hashed & np.uint64(0x7FFFFFFF))


@inner
def _longer(rows):  # type: ignore[no-untyped-def]
    """Return rows with as much room again. Assigning slices takes seconds to compile, for their errors."""
    longer = np.empty((2 * len(rows), rows.shape[1]), rows.dtype)
    for row in range(len(rows)):
        for column in range(rows.shape[1]):
            longer[row, column] = rows[row, column]
    return longer


@entry
def _lead(letters, starts, order, table):  # type: ignore[no-untyped-def]
    """Return the leader of every reference, int32 [H], and its place there, int16 [H]."""
    total = len(starts) - 1
    leader, begin, seen = np.full(total, -1, np.int32), np.zeros(total, np.int16), np.full(total, -1, np.int32)
    head, held = np.full(1 << _BUCKETS, -1, np.int32), np.zeros(1 << _BUCKETS, np.int32)
    chain, used = np.empty((4096, 4), np.int32), 0  # next entry, leader, place of its window, a part of its hash
    hashes = np.empty(MAX_LENGTH, np.uint64)
    for reference in order:
        windows = hashes[: _hashes(letters, _span(starts, reference), table, hashes)]
        leader[reference], begin[reference] = _nearest(reference, (letters, starts), windows, (head, held, chain), seen)
        if leader[reference] >= 0:
            continue
        leader[reference] = reference
        for place in range(0, len(windows), _WINDOW):
            if windows[place]:
                if used == len(chain):
                    chain = _longer(chain)
                bucket, entry = windows[place] >> np.uint64(64 - _BUCKETS), chain[used]
                entry[0], entry[1], entry[2], entry[3] = head[bucket], reference, place, _part(windows[place])
                head[bucket], used = used, used + 1
                held[bucket] += 1
    return leader, begin


@inner
def _nearest(reference, texts, windows, buckets, seen):  # type: ignore[no-untyped-def]
    """Return the leader that is nearest to a reference, and its place there; -1 = none differs by MOST or less."""
    letters, starts = texts
    head, held, chain = buckets
    looks = np.empty(len(windows), np.int64)
    for place in range(len(windows)):
        bucket = windows[place] >> np.uint64(64 - _BUCKETS)
        looks[place] = held[bucket] if windows[place] and held[bucket] else _NONE
    least, tried, leader, begin = MOST + 1, 0, -1, 0
    for place in least_first(looks, _NONE - 1)[:_LOOKS]:
        if least <= 1 or tried >= _TRIES:
            break
        number, steps = head[windows[place] >> np.uint64(64 - _BUCKETS)], 0
        while number >= 0 and steps < _CHAIN:
            after, other, at, part = chain[number]
            if part == _part(windows[place]) and seen[other] != reference:
                seen[other], tried = reference, tried + 1
                unlike = _differing(letters, _span(starts, reference), _span(starts, other), at - place, least - 1)
                if unlike < least:
                    least, leader, begin = unlike, other, at - place
            number, steps = after, steps + 1
    return leader, begin


@entry
def _changes(letters, starts, leader, begin, member):  # type: ignore[no-untyped-def]
    """Return where each member's changes begin, their places on the leader and their letters."""
    change = np.zeros(len(member) + 1, np.int32)
    for turn in range(2):
        place, letter = np.empty(change[-1] * turn, np.int16), np.empty(change[-1] * turn, np.uint8)
        count = 0
        for row in range(len(member)):
            reference = member[row]
            span, lead = _span(starts, reference), _span(starts, leader[reference])
            for number in range(span[1] - span[0]):
                at = begin[reference] + number
                other = letters[lead[0] + at] if 0 <= at < lead[1] - lead[0] else _N
                if letters[span[0] + number] != other:
                    if turn:
                        place[count], letter[count] = at, letters[span[0] + number]
                    count += 1
            change[row + 1] = count
    return change, place, letter
