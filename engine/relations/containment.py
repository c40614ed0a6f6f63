"""Which barcodes are the same evidence: containment and overlap between barcodes, exact and near linear.

Two barcodes are *related* when an alignment without gap or mismatch covers all that both have there: one contains (or
equals) the other, or the end of one is the beginning of the other over at least 200 nucleotides (two trimmed reads of
one molecule). Groups are the connected components of that relation, so a chain of trimmed reads is one group.

Why not "any shared stretch of 200 nucleotides": see `shared_stretch_groups`, which does that, and the measured
difference there.

Pairs are found without comparing all of them (`substrings`). For overlaps the patterns are the first 200 letters
of every barcode: behind a hit, the barcodes that begin with the rest of the text are one run of the sorted barcodes.
On one core of an AMD EPYC, 1,073,148 barcodes of coi (653,725 different ones) take 23 s by containment, 55 s with
overlaps, and 0.2 GB beyond the strings; by any shared stretch 290 s and 0.7 GB.

N is a plain letter here: "ANT" contains "NT" but not "CT". A barcode with N that would match with another letter in its
place is not recognised; `barcodes.clean` has taken N off the ends.

Legend: N barcodes.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np

from engine.relations.substrings import ANCHOR, Letters, Patterns, chunks, containments

MIN_OVERLAP = 200  # nucleotides that an end and a beginning must share
_PASS = 1 << 25  # windows sorted at a time: about 800 MB
_SPREAD = np.uint64(0xD6E8FEB86659FD93)  # spreads hashes over their high bits


def novel_mask(queries: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Return bool [N]: the query is a barcode that neither contains, nor is contained in, nor equals any reference.

    Args:
        queries: clean barcodes; "" (no barcode) is never novel.
        references: clean barcodes; "" is nothing.
    """
    unique, place = _unique(queries)
    known, _ = _unique(references)
    novel = np.ones(len(unique), dtype=bool)
    for _, inside in containments(known, unique):
        novel[inside] = False
    for around, _ in containments(unique, known):
        novel[around] = False
    return np.append(novel, False)[place]


RELATIONS = ("none", "overlap", "contained", "identical")


def relations(
    queries: Sequence[str], references: Sequence[str], min_overlap: int = MIN_OVERLAP
) -> tuple[np.ndarray, np.ndarray]:
    """Return the closest direct relation of every query to a reference, and one reference that has it.

    Both int64 [N]: a position in RELATIONS, and in `references` (-1 = none). "" is related to nothing.
    """
    unique, place = _unique(queries)
    known, known_place = _unique(references)
    kind, partner = np.zeros(len(unique) + 1, dtype=np.int64), np.full(len(unique) + 1, -1)
    ends, heads = _Ranked(known), _Ranked(unique)
    for query, low, _ in ends.beginning_as_ends_of(unique, min_overlap):
        kind[query], partner[query] = 1, ends.order[low]
    for reference, low, high in heads.beginning_as_ends_of(known, min_overlap):
        for number, first, last in zip(reference.tolist(), low.tolist(), high.tolist(), strict=True):
            inside = heads.order[first:last]
            kind[inside], partner[inside] = 1, number
    for around, inside in containments(known, unique):
        kind[inside], partner[inside] = 2, around
    for around, inside in containments(unique, known):
        kind[around], partner[around] = 2, inside
    places = {sequence: number for number, sequence in enumerate(known)}
    for number, sequence in enumerate(unique):
        if sequence in places:
            kind[number], partner[number] = 3, places[sequence]
    first_row = np.full(len(known) + 1, -1)
    rows = np.flatnonzero(known_place >= 0)[::-1]
    first_row[known_place[rows]] = rows
    return kind[place], first_row[partner][place]


def related_groups(barcodes: Sequence[str], min_overlap: int = MIN_OVERLAP) -> np.ndarray:
    """Return int64 [N] group ids 0.. in order of appearance: chains of related barcodes are one group.

    What is related is said at the top of this file.

    Args:
        barcodes: clean barcodes; each "" (no barcode) is a group of its own.
        min_overlap: nucleotides.
    """
    return join_overlaps(barcodes, containment_groups(barcodes), min_overlap)


def containment_groups(barcodes: Sequence[str]) -> np.ndarray:
    """Return int64 [N]: groups as `related_groups`, by containment and equality alone."""
    unique, place = _unique(barcodes)
    roots = np.arange(len(unique))
    for around, inside in containments(unique, unique):
        roots = join(roots, around, inside)
    return _numbered(roots, place)


def join_overlaps(barcodes: Sequence[str], groups: np.ndarray, min_overlap: int = MIN_OVERLAP) -> np.ndarray:
    """Return groups [N] (as `containment_groups` gives them) with those joined that overlapping barcodes connect."""
    unique, place = _unique(barcodes)
    rows = np.flatnonzero(place >= 0)
    group = np.zeros(len(unique), dtype=np.int64)
    group[place[rows]] = groups[rows]
    roots = np.arange(int(groups.max(initial=-1)) + 1)
    for left, right in _overlaps(unique, min_overlap):
        roots = join(roots, group[left], group[right])
    return _in_order(roots[groups])


def shared_stretch_groups(barcodes: Sequence[str], width: int = MIN_OVERLAP) -> np.ndarray:
    """Return int64 [N] group ids as `related_groups`, by the wider rule of a shared stretch.

    Two barcodes are related by containment, or by any `width` nucleotides in a row, whatever stands beside them.
    Windows are compared by 64-bit hash, in as many passes over the barcodes as keep a pass below _PASS windows.
    """
    unique, place = _unique(barcodes)
    roots = np.arange(len(unique))
    for around, inside in containments(unique, unique):
        roots = join(roots, around, inside)
    windows = sum(max(0, len(sequence) - width + 1) for sequence in unique)
    passes = 1 << max(0, (windows // _PASS).bit_length())
    for number in range(passes if windows else 0):
        keys, owners = [], []
        for first, chunk in chunks(unique):
            letters = Letters(chunk)
            counts = np.maximum(letters.lengths - width + 1, 0)
            owner = np.repeat(np.arange(len(chunk)), counts)
            start = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + letters.starts[owner]
            key = letters.hashes(start, np.full(len(start), width)) * _SPREAD
            mine = key >> np.uint64(65 - passes.bit_length()) == number if passes > 1 else np.ones(len(key), dtype=bool)
            keys.append(key[mine])
            owners.append((owner[mine] + first).astype(np.int32))
        key, owner = np.concatenate(keys), np.concatenate(owners)
        order = np.argsort(key)
        key, owner = key[order], owner[order]
        same = np.flatnonzero(key[1:] == key[:-1])
        roots = join(roots, owner[same].astype(np.int64), owner[same + 1].astype(np.int64))
    return _numbered(roots, place)


def _numbered(roots: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return group ids in order of appearance.

    From the root of each different barcode and each barcode's place among them.
    """
    result = np.append(roots, 0)[place]
    missing = np.flatnonzero(place < 0)
    result[missing] = len(roots) + np.arange(len(missing))
    return _in_order(result)


def _in_order(groups: np.ndarray) -> np.ndarray:
    """Return the same groups [N], numbered in order of appearance."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _overlaps(sequences: list[str], width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs (int64, int64) that connect all sequences of which one's end is the other's beginning.

    They share at least `width` letters. Not every such pair comes.
    """
    ranked = _Ranked(sequences)
    for text, low, high in ranked.beginning_as_ends_of(sequences, width):
        yield text, ranked.order[low]
        run = np.zeros(len(sequences) + 1, dtype=np.int64)  # +1 where a run of joined neighbours begins, -1 at its last
        np.add.at(run, low, 1)
        np.add.at(run, high - 1, -1)
        joined = np.flatnonzero(np.cumsum(run)[:-1] > 0)
        yield ranked.order[joined], ranked.order[joined + 1]


class _Ranked:
    """Sequences in alphabetic order, where those with one beginning are a run."""

    def __init__(self, sequences: list[str]) -> None:
        self.order = np.array(sorted(range(len(sequences)), key=sequences.__getitem__), dtype=np.int64)
        self.sequences = [sequences[i] for i in self.order.tolist()]

    def beginning_as_ends_of(self, texts: list[str], width: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (text, low, high), int64 each: sequences low .. high - 1 of this order begin with the end of the text.

        That end has `width` letters or more, but is not all of the text.
        """
        heads = list(dict.fromkeys(sequence[:width] for sequence in self.sequences if len(sequence) >= width))
        if not heads:
            return
        index = Patterns(heads, min(width, ANCHOR))
        for first, chunk in chunks(texts):
            for text, _, start in index.find(chunk, proper=False):
                inner = start > 0  # at 0, what begins with all of the text contains it
                found = []
                for number, at in zip((text[inner] + first).tolist(), start[inner].tolist(), strict=True):
                    rest = texts[number][at:]
                    low = bisect_left(self.sequences, rest)
                    if low < len(self.sequences) and self.sequences[low].startswith(rest):
                        found.append((number, low, bisect_left(self.sequences, rest + "~", low)))
                columns = np.array(found, dtype=np.int64).reshape(-1, 3)
                yield columns[:, 0], columns[:, 1], columns[:, 2]


def _unique(sequences: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the different non-empty sequences, and each sequence's place among them (-1 = empty): int64 [N]."""
    places: dict[str, int] = {}
    place = [places.setdefault(sequence, len(places)) if sequence else -1 for sequence in sequences]
    return list(places), np.array(place, dtype=np.int64)


def join(roots: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join the groups of left and right in `roots` [N], which is changed and returned.

    Each entry points to the smallest member of its group.
    """
    while True:
        one, other = roots[left], roots[right]
        apart = one != other
        if not apart.any():
            return roots
        left, right = left[apart], right[apart]
        one, other = one[apart], other[apart]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(parents := roots[roots], roots):
            roots = parents
