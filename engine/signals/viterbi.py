"""The best path of a barcode through columns that score letters: where every gap lies, however close to another.

K-mers see no gap that lies closer than their length to another, to an N or to an end. A path over all letters does.

Legend: Q barcodes, L letters of one.
"""

import numpy as np
from numba import njit

from engine.signals.placing import BAND, COLUMNS, EVEN, KNOWN, UNPLACED, fill, turn

GAP = 400  # cost of a letter inserted or a column left out; scores are 100 x natural logarithm of odds
_ALIKE, _UNLIKE = 110, -250  # scores of a letter beside that of a like barcode
_DIAGONAL, _INSERTED, _SKIPPED = 0, 1, 2
_LEAST = -(1 << 30)


@njit(nogil=True, cache=True)
def best_path(code, scores, main, column):  # type: ignore[no-untyped-def]
    """Write the column of each letter, UNPLACED where it is inserted; return how many letters and columns have gaps.

    Args:
        code: letters as numbers, 4 = N.
        scores: int32 [COLUMNS, 4] of letters; N and what lies beyond the columns scores 0.
        main: diagonal (column minus place) from which a path keeps within BAND.
        column: int32 [L], to be written.
    """
    length, width = len(code), 2 * BAND + 1
    step = np.zeros((length, width), dtype=np.uint8)
    value, before = np.zeros(width, dtype=np.int64), np.zeros(width, dtype=np.int64)
    for place in range(length):
        before[:] = value
        letter = code[place]
        for lane in range(width):
            at = place + main + lane - BAND
            own = before[lane]
            if letter < 4 and 0 <= at < COLUMNS:
                own += scores[at, letter]
            inserted = before[lane + 1] - GAP if lane + 1 < width else _LEAST
            value[lane] = max(own, inserted)
            step[place, lane] = _INSERTED if inserted > own else _DIAGONAL
            if lane and value[lane - 1] - GAP > value[lane]:
                value[lane] = value[lane - 1] - GAP
                step[place, lane] = _SKIPPED
    lane, place, gaps = np.argmax(value), length - 1, 0
    while place >= 0:
        if step[place, lane] == _SKIPPED:
            gaps += 1
            lane -= 1
        elif step[place, lane] == _INSERTED:
            gaps += 1
            column[place] = UNPLACED
            lane += 1
            place -= 1
        else:
            column[place] = place + main + lane - BAND
            place -= 1
    return gaps


@njit(nogil=True, cache=True)
def likeness(planes, profile, word_of, bit_of, scores):  # type: ignore[no-untyped-def]
    """Write what letters score beside a barcode on columns, uint64 [W, 3], and by the profile where it knows none."""
    for at in range(COLUMNS):
        word, bit = word_of[at], bit_of[at]
        known = planes[word, KNOWN] >> bit & np.uint64(1)
        own = np.int64(
            (planes[word, 0] >> bit & np.uint64(1)) | (planes[word, 1] >> bit & np.uint64(1)) << np.uint64(1)
        )
        for letter in range(4):
            beside = _ALIKE if letter == own else _UNLIKE
            scores[at, letter] = beside if known else profile[at, letter] + EVEN


@njit(nogil=True, cache=True)
def replace(asked, queries, models, tables, placed):  # type: ignore[no-untyped-def]
    """Place barcodes anew on their strands, each along its model.

    Args:
        asked: int64, some of Q, each placed already.
        queries: (codes, starts) of Q.
        models: uint64 [asked, W, 3], like barcodes on columns; all zero = the profile alone.
        tables: (profile, word of each column, bit of each column).
        placed: (planes uint64 [Q, 3, W], strand, first, gaps, beyond, all [Q]); of those asked all but the strand is
            written.
    """
    codes, starts = queries
    profile, word_of, bit_of = tables
    planes, strand, first, gaps, beyond = placed
    scores = np.empty((COLUMNS, 4), dtype=np.int32)
    for turned in range(len(asked)):
        query = asked[turned]
        code = codes[starts[query] : starts[query + 1]]
        if strand[query] < 0:
            other = np.empty(len(code), dtype=np.uint8)
            turn(code, other)
            code = other
        likeness(models[turned], profile, word_of, bit_of, scores)
        column = np.empty(len(code), dtype=np.int32)
        gaps[query] = best_path(code, scores, first[query], column)
        planes[query] = 0
        beyond[query] = fill(code, column, word_of, bit_of, planes[query])
        for place in range(len(code)):
            if column[place] != UNPLACED:
                first[query] = column[place] - place
                break
