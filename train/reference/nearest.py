"""The search of one query in compiled code: seeds choose leaders, on whose columns all members are ranked.

A round reads seeds and compares the query with the leaders that share most of them. Leaders are tried without gaps, the
first ones also with; where gaps bring those nearer, all are. On a leader's columns every member is compared by the
letters in which it differs from its leader (`clusters`). The next, wider round follows where a nearer reference may
have been passed over: one of d edits keeps the query's seeds, but about _LOST an edit, and its leader a few more.

Legend: H references, L letters of the query, W columns, C leaders chosen, M members compared, K hits at most.
"""

import numpy as np

from train.reference.align import (
    BAND,
    DELETED,
    OUTSIDE,
    UNCOVERED,
    UNKNOWN,
    align,
    compare_straight,
    differences,
)
from train.reference.clusters import MOST
from train.reference.compiled import entry, inner, least_first
from train.reference.seeds import lookup

UNRELATED = 0.3  # differences per uncovered letter when strands are compared: unrelated ones align at about that
SUSPECT = 0.12  # share of differences from which the other strand is tried too
_LOST = 3  # seeds that an edit costs a reference, of k / 3 that hold its letter
_NEARER = 3  # edits by which a leader may be farther than its member, in most queries
_TRIED = 12  # leaders on which gaps are tried in any case
_AGAIN = 8  # nearest members that are aligned themselves: a gap may lie better on them than on their leader
_FAR = 0.04  # edits per letter beyond the nearest from which a leader's members are not looked at
_HOPELESS = 0.15  # from which it is not, either


@entry
def search_batch(queries, without, targets, rounds, scratch, out):  # type: ignore[no-untyped-def]
    """Search clean barcodes, one after another.

    Args:
        queries: (codes uint8 of all, int64 [Q + 1] where each begins).
        without: int64 [Q], the group whose references are passed over; -1 = none.
        targets: (`SeedIndex.arrays`, `Clusters` as a tuple, (letters, starts, code table), group int64 [H]).
        rounds: float64 [rounds, 8], `SearchOptions` as they are declared.
        scratch: (`seeds.Scratch.arrays`, int32 [M, 4] for members).
        out: to be written: (int64 [Q, K, 3] reference, edits, overlap; float64 [Q, K] difference; int64 [Q, 3] hits,
            strand turned, rounds).
    """
    codes, starts = queries
    hits, ranked, said = out
    spare = np.empty_like(hits[0]), np.empty_like(ranked[0])
    for row in range(len(starts) - 1):
        query = codes[starts[row] : starts[row + 1]]
        said[row, 0], said[row, 1], said[row, 2] = 0, 0, 1
        if not len(query):
            continue
        backward = np.empty_like(query)
        for place in range(len(query)):
            code = query[len(query) - 1 - place]
            backward[place] = 3 - code if code < 4 else code
        for turn in range(len(rounds)):
            read, mine = (query, backward), (hits[row], ranked[row], said[row])
            said[row, 2] = turn + 1
            if not _both_strands(read, without[row], targets, rounds[turn], scratch, (mine, spare)):
                break


@inner
def _both_strands(read, without, targets, options, scratch, out):  # type: ignore[no-untyped-def]
    """Search a query as it is read, and backwards where that finds nothing near; return whether it is in doubt."""
    (hits, ranked, said), spare = out
    nearest, doubtful = np.inf, True
    for turn in range(2):
        if turn and nearest <= SUSPECT:
            break
        mine = spare if turn else (hits, ranked)
        count, cost, unsure = _one_strand(read[turn], without, targets, options, scratch, mine)
        if not turn or cost < nearest:
            said[0], said[1], nearest, doubtful = count, turn, cost, unsure
            for hit in range(count * turn):
                ranked[hit] = spare[1][hit]
                for column in range(3):
                    hits[hit, column] = spare[0][hit, column]
    return doubtful


@inner
def _one_strand(query, without, targets, options, scratch, mine):  # type: ignore[no-untyped-def]
    """Search a query as it is read; return hits, cost per letter, and whether a nearer one may be passed over."""
    seeding, found = scratch
    chosen = np.empty((np.int64(options[2]), 3), dtype=np.int32)
    written, seeds = lookup(query, targets[0], (np.int64(options[0]), np.int64(options[1])), seeding, chosen)
    if without >= 0 and written:
        written = _others(chosen, written, targets[1], targets[3], without)
        if not written:  # all that was found is of the group left out
            return 0, np.inf, True
    near = 0
    while near < written and chosen[near, 1] >= options[4] * chosen[0, 1]:
        near += 1
    if not near:
        return 0, np.inf, False
    known = np.int64(0)
    for code in query:
        known += code < 4
    count = _all_members((query, known), chosen[:near], targets, (without, np.int64(options[3])), found)
    if not count:
        return 0, np.inf, True
    ranked = np.empty(count, dtype=np.float64)
    differences(found[:count, 1], found[:count, 2], known, ranked)
    if not np.isfinite(ranked[np.argmin(ranked)]):
        return 0, np.inf, True
    _align_again(query, targets[2], found, ranked)
    differences(found[:count, 1], found[:count, 2], known, ranked)
    least = ranked[np.argmin(ranked)]
    written, cost = _keep(found, ranked, targets[3], options[5:], (len(query), known), mine)
    doubtful = least > 0 and seeds - _LOST * (least + _NEARER) <= chosen[near - 1, 1]
    return written, cost / len(query), doubtful


@inner
def _others(chosen, written, clusters, group, without):  # type: ignore[no-untyped-def]
    """Leave out leaders all of whose members are of a group; return how many are left."""
    first, member = clusters[1], clusters[2]
    left = 0
    for row in range(written):
        cluster = chosen[row, 0]
        for at in range(first[cluster], first[cluster + 1]):
            if group[member[at]] != without:
                for column in range(3):
                    chosen[left, column] = chosen[row, column]
                left += 1
                break
    return left


@inner
def _all_members(asked, chosen, targets, limits, found):  # type: ignore[no-untyped-def]
    """Compare a query with leaders and their members; write reference, edits, overlap, begin; return how many.

    Args:
        asked: (query, how many of its letters are known).
        chosen: of `lookup`.
        targets: of `search_batch`.
        limits: (the group passed over, leaders aligned with gaps).
        found: int32 [M, 4] to be written.
    """
    query, known = asked
    _, clusters, (letters, starts, table), group = targets
    leaders, first, member, begins = clusters[:4]
    size = len(query) + 2 * BAND
    aligning = np.empty((4, size // 64 + 3), np.uint64), np.empty((len(query), 2), np.uint64)
    columns, straight = np.empty((2, size), np.uint8), np.empty((2, size), np.uint8)
    sums = np.empty((2, size + 1), np.int32)
    for column in range(size):
        row = column - BAND
        straight[0, column] = query[row] if 0 <= row < len(query) else np.uint8(OUTSIDE)
        straight[1, column] = 0
    count, least, fewest, gain = 0, np.inf, np.inf, 0
    for one in range(len(chosen)):
        if one >= limits[1] and gain:
            break
        cluster, begin = chosen[one, 0], chosen[one, 2] - BAND
        text = letters[starts[leaders[cluster]] : starts[leaders[cluster] + 1]]
        plain, overlap, half = compare_straight(query, text, table, chosen[one, 2])
        edits, laid, span = plain, straight, (BAND, BAND + len(query))
        if plain and _may_have_gaps(one < _TRIED or gain, half, min(fewest, plain - 8)):
            on, aligned = align(query, text, table, begin, (*aligning, columns))
            if aligned[0] < plain:
                laid, span, (edits, overlap) = columns, on, aligned
        gain = plain - edits if edits < fewest else gain
        fewest = min(fewest, edits)
        members = _looked_at(edits + UNCOVERED * (known - overlap) - least, edits - fewest, len(query))
        rows = first[cluster], min(first[cluster + 1], first[cluster] + members)
        if count + rows[1] - rows[0] > len(found):
            break
        sums[0, 0] = -1  # not summed up yet
        for row in range(rows[0], rows[1]):
            if _left_out(group, member[row], limits[0]):
                continue
            mine = edits, overlap
            if row > rows[0]:
                mine = _compare_member(row, clusters, (text, starts, table, begin), (laid, span, sums), mine)
            found[count, 0], found[count, 1], found[count, 2] = member[row], mine[0], mine[1]
            found[count, 3] = chosen[one, 2] - begins[row]
            least = min(least, mine[0] + UNCOVERED * (known - mine[1]))
            count += 1
    return count


@inner
def _may_have_gaps(tried, half, edits):  # type: ignore[no-untyped-def]
    """Say whether to try gaps: one in the middle leaves one half of a query much nearer than the whole."""
    return tried or 2 * half <= edits


@inner
def _left_out(group, reference, without):  # type: ignore[no-untyped-def]
    """Say whether a reference is of the group passed over."""
    return without >= 0 and group[reference] == without


@inner
def _looked_at(farther, more, length):  # type: ignore[no-untyped-def]
    """Return how many members to look at of a leader that is farther than the nearest so far, in cost and in edits."""
    if more - MOST > max(8.0, _HOPELESS * length):
        return 0
    return 1 if farther - MOST > max(8.0, _FAR * length) else 1 << 30


@inner
def _compare_member(row, clusters, leader, laid, whole):  # type: ignore[no-untyped-def]
    """Return a member's edits and overlap: its leader's on the columns that it covers, and what its changes add.

    Args:
        row: of `clusters`.
        clusters: as a tuple.
        leader: (letters, starts, code table, place of column 0).
        laid: (columns of the query, those it takes, sums before each column, which are made when they are needed).
        whole: the leader's edits and overlap.
    """
    _, _, member, begins, change, place, letter = clusters
    text, starts, table, begin = leader
    columns, span, sums = laid
    edits, overlap = whole
    low = begins[row] - begin
    high = low + starts[member[row] + 1] - starts[member[row]]
    if low > span[0] or high < span[1]:
        if sums[0, 0] < 0:
            _sum_up(columns, span, (text, table, begin), sums)
        low, high = min(max(low, 0), columns.shape[1]), min(max(high, 0), columns.shape[1])
        edits, overlap = sums[0, high] - sums[0, low], sums[1, high] - sums[1, low]
    for at in range(change[row], change[row + 1]):
        column = place[at] - begin
        if 0 <= column < columns.shape[1] and columns[0, column] < UNKNOWN:
            mine, new = columns[0, column], table[letter[at]]
            old = table[text[place[at]]] if 0 <= place[at] < len(text) else UNKNOWN
            edits += (new < 4 and new != mine) - (old < 4 and old != mine)
            overlap += (new < 4) - (old < 4)
    return edits, overlap


@inner
def _sum_up(columns, span, leader, sums):  # type: ignore[no-untyped-def]
    """Write the edits and the overlap of a query with a leader before each column, int32 [2, W + 1]."""
    text, table, begin = leader
    edits, overlap = 0, 0
    for column in range(columns.shape[1]):
        sums[0, column], sums[1, column] = edits, overlap
        if span[0] <= column < span[1]:
            mine, place = columns[0, column], begin + column
            edits += columns[1, column] + (mine == DELETED)
            code = table[text[place]] if 0 <= place < len(text) else UNKNOWN
            if mine < UNKNOWN and code < 4:
                overlap += 1
                edits += code != mine
    sums[0, columns.shape[1]], sums[1, columns.shape[1]] = edits, overlap


@inner
def _align_again(query, texts, found, ranked):  # type: ignore[no-untyped-def]
    """Align the nearest members themselves."""
    letters, starts, table = texts
    size = len(query) + 2 * BAND
    room = np.empty((4, size // 64 + 3), np.uint64), np.empty((len(query), 2), np.uint64), np.empty((2, size), np.uint8)
    for _ in range(min(_AGAIN, len(ranked))):
        one = np.argmin(ranked)
        ranked[one] = np.inf
        if found[one, 1]:
            text = letters[starts[found[one, 0]] : starts[found[one, 0] + 1]]
            _, (edits, overlap) = align(query, text, table, found[one, 3] - BAND, room)
            if edits - overlap <= found[one, 1] - found[one, 2]:
                found[one, 1], found[one, 2] = edits, overlap


@inner
def _keep(found, ranked, group, limits, query, mine):  # type: ignore[no-untyped-def]
    """Write the hits, nearest first, and the first of a few other groups behind; return how many and the least cost.

    Args:
        found: of `_all_members`.
        ranked: float64 [M], differences.
        group: int64 [H].
        limits: others, slack, other slack.
        query: (letters, known ones).
        mine: to be written, see `search_batch`.
    """
    nearest, others = np.argmin(ranked), np.int64(limits[0])
    fewest = found[nearest, 1]
    kinds = np.full(others + 1, -1, dtype=np.int64)
    kinds[0] = group[found[nearest, 0]]
    count, seen, cost = 0, 0, np.inf
    room = len(mine[0]) - others
    for one in least_first(ranked, ranked[nearest] + 2 * query[0]):
        if count >= room and seen == others:
            break
        kind = group[found[one, 0]]
        fresh = kind >= 0 and seen < others and kind not in kinds
        if found[one, 1] > fewest + max(8.0, query[0] * limits[2 if fresh else 1]) or (count >= room and not fresh):
            continue
        if fresh:
            seen += 1
            kinds[seen] = kind
        mine[0][count, 0], mine[0][count, 1], mine[0][count, 2] = found[one, 0], found[one, 1], found[one, 2]
        mine[1][count] = ranked[one]
        cost = min(cost, found[one, 1] + UNRELATED * max(0, query[1] - found[one, 2]))
        count += 1
    return count, cost
