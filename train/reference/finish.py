"""From scored candidates to hits: the nearest are chosen, aligned where there are gaps, and ranked by `difference`.

Without gaps the edits are the differences on columns. With gaps, in the query or in the reference, both are aligned:
Myers' bit-parallel algorithm on a band of 64 diagonals (Hyyrö 2003) around the place that the columns give, with free
ends. Letters beyond a reference's ends and N match everything at no cost; columns that both know are the overlap.

Legend: Q queries, C candidates, K hits a query at most, L letters.
"""

import numpy as np
from numba import njit

_BAND = 32  # diagonals on each side
_WIDE = 0.9  # of the greatest overlap: candidates that say how much the query differs
_ONE = np.uint64(1)


@njit(nogil=True, cache=True)
def _code(letter):  # type: ignore[no-untyped-def]
    """Return 0..3 for A, C, G, T in ASCII, 4 for others."""
    return 0 if letter == 65 else 1 if letter == 67 else 2 if letter == 71 else 3 if letter == 84 else 4


@njit(nogil=True, cache=True)
def _letter_words(reference, turned, begin, size, words):  # type: ignore[no-untyped-def]
    """Write for each letter, a bit a place, where `size` letters from `begin` on are it, N or beyond an end."""
    other = len(reference)
    words[:] = 0
    for place in range(size):
        at = begin + place
        bit = _ONE << np.uint64(place & 63)
        letter = 4
        if 0 <= at < other:
            letter = _code(reference[other - 1 - at] if turned else reference[at])
            if turned and letter < 4:
                letter = 3 - letter
        if letter < 4:
            words[letter, place >> 6] |= bit
        else:
            for one in range(4):
                words[one, place >> 6] |= bit


@njit(nogil=True, cache=True)
def banded_edits(query, reference, turned, shift, words):  # type: ignore[no-untyped-def]
    """Return the least edits between a whole query and a part of a reference near a place.

    Args:
        query: letters as numbers 0..3, 4 = N.
        reference: ASCII letters.
        turned: the reference is read on its other strand.
        shift: place on the reference where the query begins, at most 32 off; may lie before its begin.
        words: uint64 [4, at least L // 64 + 3], scratch.
    """
    length = len(query)
    _letter_words(reference, turned, shift - _BAND, length + 2 * _BAND, words)
    up, down = np.uint64(0), np.uint64(0)
    edits = 0
    for place in range(length):
        equal = ~np.uint64(0)
        if query[place] < 4:
            word, bit = place >> 6, np.uint64(place & 63)
            equal = words[query[place], word] >> bit
            if bit:
                equal |= words[query[place], word + 1] << (np.uint64(64) - bit)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        across = down | ~(diagonal | up)
        back = diagonal & up
        edits += 1 - np.int64(diagonal >> np.uint64(_BAND) & _ONE)
        diagonal >>= _ONE
        up = back | ~(diagonal | across)
        down = diagonal & across
    best = value = edits
    for bit in range(_BAND, 2 * _BAND - 1):
        value += np.int64(up >> np.uint64(bit) & _ONE) - np.int64(down >> np.uint64(bit) & _ONE)
        best = min(best, value)
    value = edits
    for bit in range(_BAND - 1, -1, -1):
        value -= np.int64(up >> np.uint64(bit) & _ONE) - np.int64(down >> np.uint64(bit) & _ONE)
        best = min(best, value)
    return best


@njit(nogil=True, cache=True)
def differences(edits, overlap, asked, uncovered, out):  # type: ignore[no-untyped-def]
    """Write `difference` of candidates, infinite for -1 edits.

    That is edits, and for every letter that a reference does not know as many as the query has in one letter of its
    nearest wide reference, and `uncovered` more.
    """
    widest, rate = 0, 1.0
    for one in range(len(edits)):
        if edits[one] >= 0:
            widest = max(widest, overlap[one])
    for one in range(len(edits)):
        if edits[one] >= 0 and overlap[one] >= _WIDE * widest:
            rate = min(rate, edits[one] / max(1, overlap[one]))
    for one in range(len(edits)):
        out[one] = edits[one] + (uncovered + rate) * max(0, asked - overlap[one]) if edits[one] >= 0 else np.inf


@njit(nogil=True, cache=True)
def nearest_slots(found, number, known, uncovered, slots):  # type: ignore[no-untyped-def]
    """Write the slot of the nearest candidate of each query; that of a query without candidates stays."""
    ranked = np.empty(found.shape[1], dtype=np.float64)
    for query in range(len(slots)):
        count = number[query]
        if count:
            differences(found[query, :count, 1], found[query, :count, 2], known[query], uncovered, ranked[:count])
            slots[query] = found[query, np.argmin(ranked[:count]), 0]


@njit(nogil=True, cache=True)
def _chosen(found, ranked, group, sizes, rows):  # type: ignore[no-untyped-def]
    """Write the rows of the nearest candidates, and of the nearest of a few other groups; return how many."""
    nearest, others, slack, other_slack = sizes
    number = len(ranked)
    limit = np.partition(ranked, nearest)[nearest] if number > nearest else np.inf
    first = np.argmin(ranked)
    least = found[first, 1]
    count = 0
    for tied in range(2):  # those at the limit only where there is room
        for one in range(number):
            wanted = ranked[one] == limit if tied else ranked[one] < limit
            if wanted and found[one, 1] <= least + slack and count < nearest:
                rows[count] = one
                count += 1
    near = count
    kinds = np.full(others + 1, -1, dtype=np.int64)
    kinds[others] = group[found[first, 0]]
    for turn in range(others):
        row = _nearest_other(found, ranked, group, kinds, least + other_slack)
        if row < 0:
            break
        kinds[turn] = group[found[row, 0]]
        if row not in rows[:near]:
            rows[count] = row
            count += 1
    return count


@njit(nogil=True, cache=True)
def _nearest_other(found, ranked, group, kinds, most):  # type: ignore[no-untyped-def]
    """Return the row of the nearest candidate that is of none of `kinds`, with at most so many edits; -1 = none."""
    best, row = np.inf, -1
    for one in range(len(ranked)):
        kind = group[found[one, 0]]
        if kind >= 0 and ranked[one] < best and found[one, 1] <= most and kind not in kinds:
            best, row = ranked[one], one
    return row


@njit(nogil=True, cache=True)
def finish(kept, queries, references, sizes, out):  # type: ignore[no-untyped-def]
    """Choose, align and rank the candidates of each query.

    Args:
        kept: (candidates int32 [Q, C, 3], number int64 [Q], limit int64 [Q]) of `scan.scan`.
        queries: (codes uint8, starts int64 [Q + 1], strand int8 [Q], first int32 [Q], gaps int32 [Q], known int64 [Q]).
        references: (ASCII letters uint8, starts int64 [H + 1], reference, first, turned, gaps, group, all [S]).
        sizes: (nearest, others, slack and other slack in edits a letter, uncovered).
        out: (reference int64 [Q, K], edits int64 [Q, K], overlap int64 [Q, K], difference float64 [Q, K], count [Q]).
    """
    found, number, _ = kept
    codes, starts, strand, first, gaps, known = queries
    letters, begins, reference, ref_first, turned, ref_gaps, group = references
    nearest, others, slack, other_slack, uncovered = sizes
    to_reference, to_edits, to_overlap, to_difference, to_count = out
    longest = 1
    for query in range(len(starts) - 1):
        longest = max(longest, starts[query + 1] - starts[query])
    turned_query = np.empty(longest, dtype=np.uint8)
    words = np.empty((4, longest // 64 + 3), dtype=np.uint64)
    ranked = np.empty(found.shape[1], dtype=np.float64)
    rows = np.empty(nearest + others, dtype=np.int64)
    for query in range(len(starts) - 1):
        count = number[query]
        if not count:
            continue
        mine = found[query, :count]
        length = starts[query + 1] - starts[query]
        differences(mine[:, 1], mine[:, 2], known[query], uncovered, ranked[:count])
        limits = (nearest, others, max(8, int(slack * length)), max(8, int(other_slack * length)))
        count = _chosen(mine, ranked[:count], group, limits, rows)
        code = codes[starts[query] : starts[query + 1]]
        if strand[query] < 0:
            for place in range(length):
                letter = code[length - 1 - place]
                turned_query[place] = 3 - letter if letter < 4 else 4
            code = turned_query[:length]
        edits, overlap = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        for one in range(count):
            slot = mine[rows[one], 0]
            edits[one], overlap[one] = mine[rows[one], 1], mine[rows[one], 2]
            if gaps[query] or ref_gaps[slot]:
                row = reference[slot]
                text = letters[begins[row] : begins[row + 1]]
                edits[one] = banded_edits(code, text, turned[slot], first[query] - ref_first[slot], words)
        final = np.empty(count, dtype=np.float64)
        differences(edits, overlap, known[query], uncovered, final)
        names = np.empty(count, dtype=np.int64)
        for one in range(count):
            names[one] = reference[mine[rows[one], 0]]
        by_name = np.argsort(names)
        order = by_name[np.argsort(final[by_name], kind="mergesort")]
        for place in range(count):
            one = order[place]
            to_reference[query, place], to_edits[query, place] = names[one], edits[one]
            to_overlap[query, place], to_difference[query, place] = overlap[one], final[one]
        to_count[query] = count
