"""Alignment of a query with references near a place: semi-global, so that fragments and overlapping ends cost nothing.

What *nearest* means is said here. A query lies on a reference where the edits (substitutions, insertions, deletions)
are fewest; N, in either, and letters beyond the reference's ends match everything at no cost. The *overlap* counts the
letters that both know. What the query knows beyond the overlap is uncovered, neither right nor wrong. It is counted as
differing as often as the query differs from its nearest reference, and UNCOVERED more:

    difference = edits + (UNCOVERED + rate) x (known letters of the query - overlap)

where `rate` is the least edits / overlap among references with an overlap of WIDE of the greatest or more. References
that overlap by fewer than `least_overlap` letters do not count. The nearest has the least difference: N neither helps,
nor does it win. (bold val, species top-1 in %, whole / 100 nt: plain edits 99.28 / 97.92, this 99.34 / 97.98; on
damaged barcodes plain edits lose 4 points to references that hide the damage by being short.)

Edits are counted by Myers' bit-parallel algorithm on a band of 64 diagonals (Hyyrö 2003): gaps may shift a query by 31
letters in all. Its path then lays the query on the reference's *columns*, on which references that are alike are
compared letter by letter.

Legend: C candidates, L letters of the query, W = L + 2 BAND columns; column 0 is BAND letters before the place at which
the query was said to begin.
"""

import numpy as np

from train.reference.compiled import entry, inner

BAND = 32  # diagonals on each side
UNCOVERED = 0.05  # differences per letter of the query that a reference does not know, beyond the query's own
WIDE = 0.9  # of the greatest overlap: references that say how much the query differs
UNKNOWN, DELETED, OUTSIDE = 4, 5, 6  # what a query has on a column, beside the codes 0 to 3
_MIN_OVERLAP = 60  # letters, or a third of a shorter query's
_ONE = np.uint64(1)


@entry
def least_overlap(known):  # type: ignore[no-untyped-def]
    """Return the overlap that a reference of a query with so many known letters must have."""
    return min(_MIN_OVERLAP, known // 3)


@entry
def differences(edits, overlap, known, out):  # type: ignore[no-untyped-def]
    """Write `difference` of candidates, infinite for those with too little overlap.

    Args:
        edits: int32 [C].
        overlap: int32 [C].
        known: letters of the query that are not N.
        out: float64 [C].
    """
    widest, rate, least = 0, 1.0, max(1, least_overlap(known))
    for one in range(len(edits)):
        widest = max(widest, overlap[one])
    for one in range(len(edits)):
        if overlap[one] >= max(least, WIDE * widest):
            rate = min(rate, edits[one] / overlap[one])
    for one in range(len(edits)):
        out[one] = np.inf
        if overlap[one] >= least:
            out[one] = edits[one] + (UNCOVERED + rate) * max(0, known - overlap[one])


@inner
def letter_words(reference, table, begin, columns, words):  # type: ignore[no-untyped-def]
    """Write for each letter, a bit a column, where the reference from place `begin` on is it, N or at an end."""
    for one in range(4):
        for word in range(words.shape[1]):
            words[one, word] = 0
    for column in range(columns):
        place = begin + column
        code = table[reference[place]] if 0 <= place < len(reference) else UNKNOWN
        bit = _ONE << np.uint64(column & 63)
        if code < 4:
            words[code, column >> 6] |= bit
        else:
            for one in range(4):
                words[one, column >> 6] |= bit


@inner
def equal_bits(query, row, words):  # type: ignore[no-untyped-def]
    """Return on which of the 64 diagonals the query's letter in a row matches."""
    code = query[row]
    if code > 3:
        return ~np.uint64(0)
    word, bit = row >> 6, np.uint64(row & 63)
    equal = words[code, word] >> bit
    if bit:
        equal |= words[code, word + 1] << (np.uint64(64) - bit)
    return equal


@inner
def banded(query, words, rows):  # type: ignore[no-untyped-def]
    """Return the least edits of a whole query, and on which of 64 diagonals it ends; of equals that nearest the middle.

    Args:
        query: codes uint8 [L].
        words: of `letter_words`.
        rows: uint64 [L, 2] to be written: on which diagonals the path has a gap, and whether that is in the reference.
    """
    up, down = np.uint64(0), np.uint64(0)
    edits = 0
    for row in range(len(query)):
        equal = equal_bits(query, row, words)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        across = down | ~(diagonal | up)
        back = diagonal & up
        rows[row, 0], rows[row, 1] = diagonal & ~equal, across
        edits += 1 - np.int64(diagonal >> np.uint64(BAND) & _ONE)
        diagonal >>= _ONE
        up = back | ~(diagonal | across)
        down = diagonal & across
    best, value, end = edits, edits, BAND
    for bit in range(BAND, 2 * BAND - 1):
        value += np.int64(up >> np.uint64(bit) & _ONE) - np.int64(down >> np.uint64(bit) & _ONE)
        if value < best:
            best, end = value, bit + 1
    value = edits
    for bit in range(BAND - 1, -1, -1):
        value -= np.int64(up >> np.uint64(bit) & _ONE) - np.int64(down >> np.uint64(bit) & _ONE)
        if value < best or (value == best and BAND - bit < end - BAND):
            best, end = value, bit
    return best, end


@inner
def lay(query, rows, end, columns):  # type: ignore[no-untyped-def]
    """Lay a query on a reference's columns along the path that ends on a diagonal.

    Args:
        query: codes uint8 [L].
        rows: of `banded`.
        end: of `banded`.
        columns: uint8 [2, W] to be written: what the query has on each column; letters inserted behind it.

    Returns:
        the first column and the one behind the last.
    """
    on, inserted = columns[0], columns[1]
    for column in range(len(on)):
        on[column], inserted[column] = OUTSIDE, 0
    row, bit = len(query) - 1, end
    last = row + bit + 1
    while row >= 0:
        if rows[row, 0] >> np.uint64(bit) & _ONE:
            if rows[row, 1] >> np.uint64(bit) & _ONE and bit < 2 * BAND - 1:
                inserted[row + bit] += 1
                row, bit = row - 1, bit + 1
                continue
            if bit:
                on[row + bit] = DELETED
                bit -= 1
                continue
        on[row + bit] = query[row]
        row -= 1
    return bit, last


@inner
def compare(columns, span, reference, table, begin):  # type: ignore[no-untyped-def]
    """Count a query's edits and overlap with a reference on whose columns it lies.

    Args:
        columns: of `lay`.
        span: first column, and behind the last.
        reference: uint8, ASCII.
        table: `engine.signals.nucleotides.CODES`.
        begin: place of column 0 on the reference.

    Returns:
        edits, overlap.
    """
    edits, overlap = 0, 0
    for column in range(max(span[0], -begin), min(span[1], len(reference) - begin)):
        mine = columns[0, column]
        edits += columns[1, column]
        if mine == DELETED:
            edits += 1
        elif mine < UNKNOWN:
            code = table[reference[begin + column]]
            if code < 4:
                overlap += 1
                edits += code != mine
    return edits, overlap


@inner
def compare_straight(query, reference, table, begin):  # type: ignore[no-untyped-def]
    """Compare a query with a reference where it begins at a place and has no gap.

    Returns:
        edits; overlap; edits in that half of the query that has fewer.
    """
    low, high = max(0, -begin), min(len(query), len(reference) - begin)
    middle = min(max(low, len(query) // 2), max(low, high))
    first, overlap = _unlike(query[low:middle], reference[begin + low : begin + middle], table)
    second, further = _unlike(query[middle:high], reference[begin + middle : begin + max(middle, high)], table)
    return first + second, overlap + further, min(first, second)


@inner
def _unlike(query, reference, table):  # type: ignore[no-untyped-def]
    """Count the letters in which two pieces of one length differ, and those that both know."""
    edits, overlap = 0, 0
    for row in range(len(query)):
        code = table[reference[row]]
        both = (code < 4) & (query[row] < 4)
        overlap += both
        edits += both & (code != query[row])
    return edits, overlap


@entry
def align(query, text, table, begin, room):  # type: ignore[no-untyped-def]
    """Lay a query on a reference, gaps included, near a place.

    Args:
        query: codes uint8 [L], oriented as the reference.
        text: the reference, uint8, ASCII.
        table: `engine.signals.nucleotides.CODES`.
        begin: place of column 0 on the reference.
        room: to be written: `words` (uint64 [4, W // 64 + 3]), `rows`, `columns`; see `banded`, `lay`.

    Returns:
        (first column, behind the last), (edits, overlap).
    """
    words, rows, columns = room
    letter_words(text, table, begin, len(query) + 2 * BAND, words)
    _, end = banded(query, words, rows)
    span = lay(query, rows, end, columns)
    return span, compare(columns, span, text, table, begin)
