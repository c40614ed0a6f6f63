"""Compiled loops behind `engine.signals.columns`: votes of k-mers, chains of votes, letters beside the consensus.

Legend: B barcodes, L letters of one; a diagonal is a column minus a place.
"""

import numpy as np
from numba import njit

MARGIN = 23  # columns on each side of the Folmer region
COLUMNS = 658 + 2 * MARGIN
LOW, HIGH, KNOWN = 0, 1, 2
KMER = 11
UNPLACED = -1  # column of a letter that has none
MIN_VOTES = 6  # k-mers on one chain; fewer place nothing,
MIN_SHARE_OF_VOTES = 0.1  # nor does a smaller share of all
MAX_GAP = 24  # columns by which a chain may leave the diagonal of most votes
BAND = 32  # the same for a path over all letters
EVEN = 139  # -100 ln 1/4: with it added to its profile a letter that says nothing scores 0
_EVIDENT, _EVIDENT_EACH = 1500, 20  # scores, of a barcode and of a letter, where the profile alone places a barcode
_LEAST = 40  # letters that the consensus or the profile must lie beside
_SURE, _SURELY_LIKE = 300, 0.65  # the same where it teaches
_MAX_RUNS, _BACK = 512, 32  # runs of a barcode, and how many before one are tried
_GAP_COST = 3  # votes that a gap costs, and one more for each of its letters


@njit(nogil=True, cache=True)
def lay(codes, starts, columns, consensus):  # type: ignore[no-untyped-def]
    """Write the columns of barcodes that agree with the consensus where it lies beside them without gaps."""
    for number in range(len(starts) - 1):
        code = codes[starts[number] : starts[number + 1]]
        diagonal, agree, beside = _beside_consensus(code, consensus)
        if beside >= _SURE and agree >= _SURELY_LIKE * beside:
            for place in range(max(0, -diagonal), min(len(code), COLUMNS - diagonal)):
                columns[starts[number] + place] = place + diagonal


@njit(nogil=True, cache=True)
def count_kmers(codes, starts, columns, table, count, letters):  # type: ignore[no-untyped-def]
    """Give each k-mer the column on which it stands most often (Boyer and Moore's majority)."""
    for number in range(len(starts) - 1):
        key, run = 0, 0
        for place in range(starts[number], starts[number + 1]):
            letter, column = codes[place], columns[place]
            if letter > 3 or column == UNPLACED:
                run = 0
                continue
            letters[column, letter] += 1
            key = (key << 2 | letter) & (4**KMER - 1)
            run = run + 1 if run and column == columns[place - 1] + 1 else 1
            begin = column - KMER + 1
            if run < KMER:
                continue
            if table[key] == begin:
                count[key] = min(count[key] + 1, 30000)
            elif count[key] == 0:
                table[key], count[key] = begin, 1
            else:
                count[key] -= 1


@njit(nogil=True, cache=True)
def _beside_consensus(code, consensus):  # type: ignore[no-untyped-def]
    """Return the diagonal on which most letters agree, how many, and how many known letters stand beside others."""
    length = len(code)
    best, agree = 0, -1
    for diagonal in range(MARGIN + _LEAST - length, COLUMNS - MARGIN - _LEAST + 1):
        begin, end = max(0, MARGIN - diagonal), min(length, COLUMNS - MARGIN - diagonal)
        one, other = code[begin:end], consensus[begin + diagonal : end + diagonal]
        same = 0
        for place in range(end - begin):
            same += one[place] == other[place]
        if same > agree:
            best, agree = diagonal, same
    beside = 0
    for place in range(max(0, -best), min(length, COLUMNS - best)):
        beside += (code[place] < 4) & (consensus[place + best] < 4)
    return best, max(agree, 0), beside


@njit(nogil=True, cache=True)
def turn(code, turned):  # type: ignore[no-untyped-def]
    """Write the other strand of a barcode given as numbers."""
    for place in range(len(code)):
        letter = code[len(code) - 1 - place]
        turned[place] = 3 - letter if letter < 4 else 4


@njit(nogil=True, cache=True)
def place_all(codes, starts, tables, planes, numbers, into):  # type: ignore[no-untyped-def]
    """Place every barcode.

    Args:
        codes: of B barcodes.
        starts: where each begins.
        tables: (table, profile, word of each column, bit of each column).
        planes: uint64 [B, 3, words], zero, to be written.
        numbers: int32 [B, 5] (strand, first, gaps, votes, beyond), zero, to be written.
        into: int16 [sum of L], receives the columns of what is on its coding strand, or [0].
    """
    longest = 1
    for number in range(len(starts) - 1):
        longest = max(longest, starts[number + 1] - starts[number])
    other = np.empty(longest, dtype=np.uint8)
    column = np.empty(longest, dtype=np.int32)
    diagonal = np.empty((2, longest), dtype=np.int32)
    scratch = (diagonal, np.empty((_MAX_RUNS, 5), dtype=np.int64), np.zeros(longest + COLUMNS + 1, dtype=np.int32))
    for number in range(len(starts) - 1):
        given = codes[starts[number] : starts[number + 1]]
        turned = other[: len(given)]
        turn(given, turned)
        strand, gaps, votes = _place(given, turned, tables, scratch, column)
        if strand == 0:
            continue
        beyond = fill(turned if strand < 0 else given, column, tables[2], tables[3], planes[number])
        on = 0
        while column[on] == UNPLACED:
            on += 1
        numbers[number] = strand, column[on] - on, gaps, votes, beyond
        if len(into) and strand > 0:
            for place in range(len(given)):
                if 0 <= column[place] < COLUMNS:
                    into[starts[number] + place] = column[place]


@njit(nogil=True, cache=True)
def _place(given, turned, tables, scratch, column):  # type: ignore[no-untyped-def]
    """Write the columns of one barcode; return strand, gaps and votes."""
    table, profile, _, _ = tables
    diagonal, runs, tally = scratch
    enough = max(MIN_VOTES, MIN_SHARE_OF_VOTES * (len(given) - KMER))
    here, here_votes = _vote(given, table, diagonal[0], tally)
    there, there_votes = 0, 0
    if here_votes < 0.5 * (len(given) - KMER):
        there, there_votes = _vote(turned, table, diagonal[1], tally)
    if max(here_votes, there_votes) >= MIN_VOTES:
        if there_votes > here_votes:
            votes, gaps = _chain(turned, diagonal[1], there, profile, runs, column)
        else:
            votes, gaps = _chain(given, diagonal[0], here, profile, runs, column)
        if votes >= enough:
            return -1 if there_votes > here_votes else 1, gaps, votes
    return _by_profile(given, turned, profile, column), 0, 0


@njit(nogil=True, cache=True)
def _vote(code, table, diagonal, tally):  # type: ignore[no-untyped-def]
    """Write the diagonal that each k-mer votes for, COLUMNS = none; return that of most votes and their number."""
    length = len(code)
    tally[: length + COLUMNS] = 0
    key, run = 0, 0
    best, most = 0, 0
    for place in range(length):
        diagonal[place] = COLUMNS
        if code[place] > 3:
            run = 0
            continue
        key = (key << 2 | code[place]) & (4**KMER - 1)
        run += 1
        begin = place - KMER + 1
        if run >= KMER and table[key] != UNPLACED:
            voted = table[key] - begin
            diagonal[begin] = voted
            tally[voted + length] += 1
            if tally[voted + length] > most:
                best, most = voted, tally[voted + length]
    return best, most


@njit(nogil=True, cache=True)
def _runs(diagonal, length, main, runs):  # type: ignore[no-untyped-def]
    """Write runs of equal votes near the diagonal `main`: first and last place, diagonal; return how many."""
    count = 0
    for place in range(length):
        voted = diagonal[place]
        if voted == COLUMNS or abs(voted - main) > MAX_GAP:
            continue
        if count and runs[count - 1, 2] == voted and runs[count - 1, 1] >= place - KMER:
            runs[count - 1, 1] = place
        elif count < _MAX_RUNS:
            runs[count, 0], runs[count, 1], runs[count, 2] = place, place, voted
            count += 1
    return count


@njit(nogil=True, cache=True)
def _chain(code, diagonal, main, profile, runs, column):  # type: ignore[no-untyped-def]
    """Chain runs near the diagonal `main` and write each letter's column; return votes and gaps.

    A run also has the best score of a chain that ends with it, and the run before it there.
    """
    last = 0
    for one in range(_runs(diagonal, len(code), main, runs)):
        runs[one, 3], runs[one, 4] = 0, -1
        for before in range(max(0, one - _BACK), one):
            step = abs(runs[one, 2] - runs[before, 2])
            if step and runs[one, 0] + runs[one, 2] <= runs[before, 1] + runs[before, 2]:
                continue  # columns must go on
            score = runs[before, 3] - (_GAP_COST + step if step else 0)
            if score > runs[one, 3]:
                runs[one, 3], runs[one, 4] = score, before
        runs[one, 3] += runs[one, 1] - runs[one, 0] + 1
        if runs[one, 3] >= runs[last, 3]:
            last = one
    votes, gaps, end, one = 0, 0, len(code), last
    while one >= 0:
        votes += runs[one, 1] - runs[one, 0] + 1
        before = runs[one, 4]
        if before < 0 or runs[before, 2] != runs[one, 2]:
            split, begin = 0, 0
            if before >= 0:
                split, begin = _split(code, runs[before], runs[one], profile)
                gaps += abs(runs[before, 2] - runs[one, 2])
            column[split:begin] = UNPLACED
            for place in range(begin, end):
                column[place] = place + runs[one, 2]
            end = split
        one = before
    return votes, gaps


@njit(nogil=True, cache=True)
def _split(code, before, after, profile):  # type: ignore[no-untyped-def]
    """Return where the letters of one run end and those of the next begin: where they agree best with the columns."""
    inserted = max(0, before[2] - after[2])
    low, high = before[1] + KMER, after[0] - inserted
    low, high = max(before[0] + 1, min(low, high)), max(low, high)
    high = max(low, min(high, after[1] + KMER - 1 - inserted))
    total = 0
    for place in range(low, high):
        total += _share(code, place + inserted, after[2], profile)
    best, split = total, low
    for place in range(low, high):
        total += _share(code, place, before[2], profile) - _share(code, place + inserted, after[2], profile)
        if total > best:
            best, split = total, place + 1
    return split, split + inserted


@njit(nogil=True, cache=True)
def _share(code, place, diagonal, profile):  # type: ignore[no-untyped-def]
    column = place + diagonal
    if place >= len(code) or code[place] > 3 or column < 0 or column >= COLUMNS:
        return 0
    return int(profile[column, code[place]])


@njit(nogil=True, cache=True)
def _by_profile(given, turned, profile, column):  # type: ignore[no-untyped-def]
    """Place without gaps where the letters agree best with the profile; return the strand, 0 = nowhere well."""
    strand, main, most, length = 0, 0, _EVIDENT, len(given)
    for turn in range(2):
        code = turned if turn else given
        for diagonal in range(MARGIN + _LEAST - length, COLUMNS - MARGIN - _LEAST + 1):
            total, beside = 0, 0
            for place in range(max(0, MARGIN - diagonal), min(length, COLUMNS - MARGIN - diagonal)):
                if code[place] < 4:
                    total += profile[place + diagonal, code[place]] + EVEN
                    beside += 1
            if total > most and total > _EVIDENT_EACH * beside:
                strand, main, most = -1 if turn else 1, diagonal, total
    for place in range(length):
        column[place] = place + main
    return strand


@njit(nogil=True, cache=True)
def fill(code, column, word_of, bit_of, planes):  # type: ignore[no-untyped-def]
    """Set the bits of one barcode; return how many of its known letters stand on no column."""
    beyond = 0
    for place in range(len(code)):
        at, letter = column[place], np.uint64(code[place])
        if letter > 3:
            continue
        if at < 0 or at >= COLUMNS:
            beyond += 1
            continue
        word, bit = word_of[at], bit_of[at]
        planes[LOW, word] |= (letter & np.uint64(1)) << bit
        planes[HIGH, word] |= (letter >> np.uint64(1)) << bit
        planes[KNOWN, word] |= np.uint64(1) << bit
    return beyond
