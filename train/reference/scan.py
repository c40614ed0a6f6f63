"""The nearest references on columns: every one is compared, or shown to be farther than the nearest.

`survey` compares queries with what the members of each cluster have in common, by the third codon positions: no member
differs less. `scan` scores the members of the clusters of least such differences, and then those of all clusters that
may hold anything nearer, word by word, leaving a reference as soon as it differs too much. A score is in twentieths of
an edit: 20 for each difference, 1 for each letter of the query that the reference does not know (`search.UNCOVERED`);
it is a lower bound of `difference`.

Legend: Q queries, S slots, C clusters, W words, K candidates of a query.
"""

import numpy as np
from numba import njit

from engine.signals.columns import WORDS
from engine.signals.placing import COLUMNS, HIGH, KNOWN, LOW
from train.reference.planes import SURVEYED, ones

EDIT = 20  # of a score: one difference
CANDIDATES = 4096  # twice the members of STEP clusters, so that none is lost
_CHUNK = 1024  # clusters surveyed at a time
STEP = 64  # clusters of which the least bound is kept; a divisor of _CHUNK
_TIE = 10  # half an edit
_FAR = 1 << 30


@njit(nogil=True, cache=True)
def packed_words(planes, packed, count):  # type: ignore[no-untyped-def]
    """Order the words of queries that have letters: third codon positions, first, second, each by most letters.

    planes uint64 [Q, 3, W] -> packed uint64 [Q, W, 4] (LOW, HIGH, KNOWN, number), count int64 [Q].
    """
    for query in range(len(planes)):
        used = 0
        for part in range(0, WORDS, 4):
            begin = used
            for word in range(part, part + 4):
                if planes[query, KNOWN, word] == 0:
                    continue
                at = used
                while at > begin and ones(packed[query, at - 1, KNOWN]) < ones(planes[query, KNOWN, word]):
                    packed[query, at] = packed[query, at - 1]
                    at -= 1
                packed[query, at, :3] = planes[query, :, word]
                packed[query, at, 3] = word
                used += 1
        count[query] = used


@njit(nogil=True, cache=True)
def survey(planes, shared, surveyed):  # type: ignore[no-untyped-def]
    """Compare queries with what each cluster's members share.

    `surveyed`: (bound uint8 [Q, C], differences; rank uint8 [Q, C], those and a quarter of the columns where they share
    nothing, says where to look first; the least of both of every STEP clusters) to be written.
    """
    bounds, ranks, least_bounds, least_ranks = surveyed
    number = shared.shape[2]
    unlike, same = np.empty(_CHUNK, dtype=np.uint64), np.empty(_CHUNK, dtype=np.uint64)
    for begin in range(0, number, _CHUNK):
        size = min(_CHUNK, number - begin)
        for query in range(len(planes)):
            unlike[:] = 0
            same[:] = 0
            asked = np.uint64(0)
            for word in range(SURVEYED):
                low, high, known = planes[query, LOW, word], planes[query, HIGH, word], planes[query, KNOWN, word]
                if known == 0:
                    continue
                asked += ones(known)
                one = shared[word, :, begin : begin + size]
                for cluster in range(size):
                    common = one[KNOWN, cluster] & known
                    unlike[cluster] += ones(((one[LOW, cluster] ^ low) | (one[HIGH, cluster] ^ high)) & common)
                    same[cluster] += ones(common)
            bound, rank = bounds[query, begin : begin + size], ranks[query, begin : begin + size]
            for cluster in range(size):
                bound[cluster] = unlike[cluster]
                rank[cluster] = unlike[cluster] + ((asked - same[cluster]) >> np.uint64(2))
            for first in range(0, size, STEP):
                least_bound, least_rank = np.uint8(255), np.uint8(255)
                for cluster in range(first, min(first + STEP, size)):
                    least_bound, least_rank = min(least_bound, bound[cluster]), min(least_rank, rank[cluster])
                least_bounds[query, (begin + first) // STEP] = least_bound
                least_ranks[query, (begin + first) // STEP] = least_rank


@njit(nogil=True, cache=True)
def first_clusters(rank, least, wanted, chosen):  # type: ignore[no-untyped-def]
    """Write the clusters of one query that rank as high as the best of the `wanted` best steps; return how many.

    rank uint8 [C], least: of every STEP of them.
    """
    tally = np.zeros(257, dtype=np.int64)
    for value in least:
        tally[value] += 1
    limit, steps = 0, tally[0]
    while limit < 255 and steps < wanted:
        limit += 1
        steps += tally[limit]
    count = 0
    for step in range(len(least)):
        if least[step] > limit:
            continue
        for cluster in range(step * STEP, min((step + 1) * STEP, len(rank))):
            if rank[cluster] <= limit:
                chosen[count] = cluster
                count += 1
    return count


@njit(nogil=True, cache=True)
def score(query, clusters, limit, library, asking, kept):  # type: ignore[no-untyped-def]
    """Score the members of clusters; return how many candidates there are then.

    Args:
        query: its words with letters, uint64 [n, 4]: LOW, HIGH, KNOWN, number of the word.
        clusters: int64, some of C.
        limit: score that candidates do not exceed.
        library: (planes uint64 [S, W, 3], begin int64 [C + 1], group int64 [S]).
        asking: (columns that the query knows, how many of them a reference must know, the group to pass over).
        kept: (candidates int32 [K, 3]: slot, differences, columns known by both; how many there are).
    """
    planes, begin, group = library
    known, least, without = asking
    found, number = kept
    if known < least:
        return number  # it stands on no column
    top, spare = np.uint64(min(limit // EDIT, COLUMNS)), np.uint64(min(limit, known - least))
    for cluster in clusters:
        for slot in range(begin[cluster], begin[cluster + 1]):
            unlike, absent = np.uint64(0), np.uint64(0)
            for turn in range(len(query)):
                word = np.int64(query[turn, 3])
                common = planes[slot, word, KNOWN] & query[turn, KNOWN]
                differ = (planes[slot, word, LOW] ^ query[turn, LOW]) | (planes[slot, word, HIGH] ^ query[turn, HIGH])
                unlike += ones(differ & common)
                absent += ones(common ^ query[turn, KNOWN])
                if unlike > top or absent > spare:
                    break
            edits, overlap = np.int64(unlike), known - np.int64(absent)
            if unlike > top or absent > spare or EDIT * edits + known - overlap > limit:
                continue
            if number < len(found) and (without < 0 or group[slot] != without):
                found[number, 0], found[number, 1], found[number, 2] = slot, edits, overlap
                number += 1
    return number


@njit(nogil=True, cache=True)
def limit_of(found, number, asked, group, named):  # type: ignore[no-untyped-def]
    """Return the score beyond which nothing matters, half an edit above that of the nearest candidate.

    Where the nearest of a named group is no more than `named` edits farther, half an edit above that one's.
    """
    if not number:
        return _FAR
    widest = 0
    for one in range(number):
        widest = max(widest, found[one, 2])
    rate = 1.0
    for one in range(number):
        if 10 * found[one, 2] >= 9 * widest:
            rate = min(rate, found[one, 1] / max(1, found[one, 2]))
    best, best_named = 1e9, 1e9
    for one in range(number):
        difference = EDIT * found[one, 1] + (1 + EDIT * rate) * (asked - found[one, 2])
        best = min(best, difference)
        if group[found[one, 0]] >= 0:
            best_named = min(best_named, difference)
    if best_named <= best + EDIT * named:
        best = best_named
    return np.int64(best) + _TIE


@njit(nogil=True, cache=True)
def _thinned(found, number, asked, limit):  # type: ignore[no-untyped-def]
    """Keep the better half of the candidates; return how many, and the score that they do not exceed."""
    tally = np.zeros(EDIT * COLUMNS + COLUMNS + 1, dtype=np.int64)
    for one in range(number):
        tally[EDIT * found[one, 1] + asked - found[one, 2]] += 1
    score, below = 0, tally[0]
    while below < number // 2:
        score += 1
        below += tally[score]
    kept, equal = 0, number // 4
    for one in range(number):
        own = EDIT * found[one, 1] + asked - found[one, 2]
        if own < score or (own == score and equal > 0):
            equal -= own == score
            found[kept] = found[one]
            kept += 1
    return kept, min(limit, score)


@njit(nogil=True, cache=True)
def scan(words, library, surveyed, asking, kept):  # type: ignore[no-untyped-def]
    """Score the likeliest references of every query, then all that may be nearer.

    Args:
        words: (uint64 [Q, W, 4], count int64 [Q]) of `packed_words`.
        library: (planes, begin int64 [C + 1], group int64 [S]).
        surveyed: of `survey`; 255 is written to bound where a cluster was scored at once.
        asking: (known int64 [Q], least int64 [Q], margin int64 [Q] added to the limit, without int64 [Q], steps to
            begin with, edits by which a named reference may be farther).
        kept: (candidates int32 [Q, K, 3], number int64 [Q], limit int64 [Q]) to be written.
    """
    packed, count = words
    _, begins, group = library
    bounds, ranks, least_bounds, least_ranks = surveyed
    known, least, margin, without, first, named = asking
    found, number, limit = kept
    chosen = np.empty(len(begins) - 1, dtype=np.int64)
    for query in range(len(packed)):
        mine, bound = packed[query, : count[query]], bounds[query]
        asked = (known[query], least[query], without[query])
        some = chosen[: first_clusters(ranks[query], least_ranks[query], first, chosen)]
        total = 0
        for start in range(0, len(some), STEP):
            total = score(mine, some[start : start + STEP], _FAR, library, asked, (found[query], total))
            if total > len(found[query]) // 2:
                total, _ = _thinned(found[query], total, known[query], _FAR)
        bound[some] = 255
        most = limit_of(found[query], total, known[query], group, named) + margin[query]
        for step in range(len(least_bounds[query])):
            top, more = min(254, most // EDIT), 0
            if least_bounds[query, step] > top:
                continue
            for cluster in range(step * STEP, min((step + 1) * STEP, len(bound))):
                if bound[cluster] <= top:
                    chosen[more] = cluster
                    more += 1
            total = score(mine, chosen[:more], most, library, asked, (found[query], total))
            if total > len(found[query]) // 2:
                total, most = _thinned(found[query], total, known[query], most)
        number[query], limit[query] = total, most
