"""Which barcodes are the same evidence: containment and overlap between barcodes, exact and near linear.

Two barcodes are *related* when an alignment without gap or mismatch covers all that both have there: one contains (or
equals) the other, or the end of one is the beginning of the other over at least 200 nucleotides (two trimmed reads of
one molecule). Groups are the connected components of that relation, so a chain of trimmed reads is one group.

Why not "any shared stretch of 200 nucleotides": see `shared_stretch_groups`, which does that, and the measured
difference there.

Pairs are found without comparing all of them: the first 32 nucleotides of every pattern are an anchor, packed into 64
bits; the texts' windows of 32 are looked up among the anchors, each hit is extended to the lengths that patterns with
this anchor have, a rolling hash of that stretch is looked up among the patterns' hashes, and what is found is verified
letter by letter. For overlaps the patterns are the first 200 letters of every barcode: behind a hit, the barcodes that
begin with the rest of the text are one run of the sorted barcodes.

N is a plain letter here: "ANT" contains "NT" but not "CT". A barcode with N that would match with another letter in its
place is not recognised; `barcodes.clean` has taken N off the ends.

Legend: N barcodes, T letters of a chunk of texts, positions count letters within a chunk.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np

MIN_OVERLAP = 200  # nucleotides that an end and a beginning must share
ANCHOR = 32  # nucleotides, 2 bits each: one 64-bit word
_CHUNK = 1 << 22  # letters of text handled at a time: about 300 MB
_PASS = 1 << 25  # windows sorted at a time: about 800 MB
_BATCH = 1 << 22  # stretches hashed at a time
_BASE = 0x9E3779B97F4A7C15 | 1  # of the rolling hash; odd, so that it has an inverse modulo 2**64
_MIX = np.uint64(0xD6E8FEB86659FD93)
_BITS = np.zeros(256, dtype=np.uint8)
_BITS[np.frombuffer(b"ACGT", dtype=np.uint8)] = np.arange(4)
_VALUES = np.random.Generator(np.random.PCG64(0)).integers(1 << 63, size=256, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)


def novel_mask(queries: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Return bool [N]: the query is a barcode that neither contains, nor is contained in, nor equals any reference.

    Args:
        queries, references: clean barcodes; "" (no barcode) is never novel as a query and nothing as a reference.
    """
    unique, place = _unique(queries)
    known, _ = _unique(references)
    novel = np.ones(len(unique), dtype=bool)
    for _, inside in _containments(known, unique):
        novel[inside] = False
    for around, _ in _containments(unique, known):
        novel[around] = False
    return np.append(novel, False)[place]


def barcode_groups(barcodes: Sequence[str], min_overlap: int = MIN_OVERLAP) -> np.ndarray:
    """Return int64 [N] group ids 0.. in order of appearance: related barcodes (see the top of this file) are in one
    group, and so on transitively.

    Args:
        barcodes: clean barcodes; each "" (no barcode) is a group of its own.
        min_overlap: nucleotides.
    """
    return join_overlaps(barcodes, containment_groups(barcodes), min_overlap)


def containment_groups(barcodes: Sequence[str]) -> np.ndarray:
    """Return int64 [N]: groups as `barcode_groups`, by containment and equality alone."""
    unique, place = _unique(barcodes)
    roots = np.arange(len(unique))
    for around, inside in _containments(unique, unique):
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
    """Return int64 [N] group ids as `barcode_groups`, by the wider rule: containment, or any `width` nucleotides in a
    row that two barcodes share, whatever stands beside them.

    Windows are compared by 64-bit hash, in as many passes over the barcodes as keep a pass below _PASS windows.
    """
    unique, place = _unique(barcodes)
    roots = np.arange(len(unique))
    for around, inside in _containments(unique, unique):
        roots = join(roots, around, inside)
    windows = sum(max(0, len(sequence) - width + 1) for sequence in unique)
    passes = 1 << max(0, (windows // _PASS).bit_length())
    for number in range(passes if windows else 0):
        keys, owners = [], []
        for first, chunk in _chunks(unique):
            letters = _Letters(chunk)
            counts = np.maximum(letters.lengths - width + 1, 0)
            owner = np.repeat(np.arange(len(chunk)), counts)
            start = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + letters.starts[owner]
            key = letters.hashes(start, np.full(len(start), width)) * _MIX
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
    """Group ids in order of appearance, from the root of each different barcode and each barcode's place among them."""
    result = np.append(roots, 0)[place]
    missing = np.flatnonzero(place < 0)
    result[missing] = len(roots) + np.arange(len(missing))
    return _in_order(result)


def _in_order(groups: np.ndarray) -> np.ndarray:
    """The same groups [N], numbered in order of appearance."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _overlaps(sequences: list[str], width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs (int64, int64) whose unions join all sequences of which one's end is the other's beginning over at
    least `width` letters. Not every such pair comes, but those that come connect them all."""
    order = np.array(sorted(range(len(sequences)), key=sequences.__getitem__), dtype=np.int64)
    ranked = [sequences[i] for i in order.tolist()]
    starts = list(dict.fromkeys(sequence[:width] for sequence in ranked if len(sequence) >= width))
    if not starts:
        return
    index = _Patterns(starts, min(width, ANCHOR))
    for first, chunk in _chunks(sequences):
        for text, _, start in index.find(chunk, proper=False):
            inner = start > 0  # at 0, what begins with all of the text contains it
            left, lows, highs = [], [], []
            for number, at in zip((text[inner] + first).tolist(), start[inner].tolist(), strict=True):
                rest = sequences[number][at:]
                low = bisect_left(ranked, rest)
                if low < len(ranked) and ranked[low].startswith(rest):
                    left.append(number)
                    lows.append(low)
                    highs.append(bisect_left(ranked, rest + "~", low))
            low_array, high_array = np.array(lows, dtype=np.int64), np.array(highs, dtype=np.int64)
            yield np.array(left, dtype=np.int64), order[low_array]
            run = np.zeros(len(ranked) + 1, dtype=np.int64)  # + 1 where a run of joined neighbours begins
            np.add.at(run, low_array, 1)
            np.add.at(run, np.maximum(high_array - 1, 0), -1)
            joined = np.flatnonzero(np.cumsum(run)[:-1] > 0)
            yield order[joined], order[joined + 1]


def _unique(sequences: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different non-empty sequences, and each sequence's place among them (-1 = empty): int64 [N]."""
    places: dict[str, int] = {}
    place = [places.setdefault(sequence, len(places)) if sequence else -1 for sequence in sequences]
    return list(places), np.array(place, dtype=np.int64)


def join(roots: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Union of pairs: `roots` [N] (changed; each points to the smallest member of its group) with the groups of left
    and right joined."""
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


def _containments(texts: list[str], patterns: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all (text, pattern) with the pattern inside the text or equal to it, as two int64 arrays, piece by piece.

    When both lists are the same object, pairs of a sequence with itself are left out. A pair may come more than once.
    """
    lengths = np.array([len(pattern) for pattern in patterns], dtype=np.int64)
    for width in np.unique(np.minimum(lengths, ANCHOR)).tolist():  # shorter patterns: one round per length
        members = np.flatnonzero(lengths == width if width < ANCHOR else lengths >= ANCHOR)
        index = _Patterns([patterns[member] for member in members], width)
        for first, chunk in _chunks(texts):
            for text, pattern, start in index.find(chunk, proper=texts is patterns):
                pairs = zip((text + first).tolist(), members[pattern].tolist(), start.tolist(), strict=True)
                good = [texts[i].startswith(patterns[j], at) for i, j, at in pairs]
                yield text[good] + first, members[pattern[good]]


def _chunks(texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of the first, texts) of about _CHUNK letters at a time."""
    first, letters = 0, 0
    for last, text in enumerate(texts):
        letters += len(text)
        if letters >= _CHUNK:
            yield first, texts[first : last + 1]
            first, letters = last + 1, 0
    if first < len(texts):
        yield first, texts[first:]


class _Letters:
    """Several sequences in one array: windows as codes, stretches as hashes."""

    def __init__(self, sequences: list[str]) -> None:
        self.lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        self.starts = self.ends - self.lengths
        self.letters = np.frombuffer("".join(sequences).encode("ascii"), dtype=np.uint8)
        powers = np.full(len(self.letters) + 1, _BASE, dtype=np.uint64)
        inverses = np.full(len(self.letters) + 1, pow(_BASE, -1, 2**64), dtype=np.uint64)
        powers[0] = inverses[0] = 1
        self._inverses = np.multiply.accumulate(inverses)
        self._sums = np.zeros(len(self.letters) + 1, dtype=np.uint64)
        np.cumsum(_VALUES[self.letters] * np.multiply.accumulate(powers)[:-1], out=self._sums[1:])

    def windows(self, width: int) -> np.ndarray:
        """Codes of all windows of `width` <= 32 letters: uint64 [T - width + 1], those across sequences included."""
        count = max(0, len(self.letters) - width + 1)
        result = np.zeros(count, dtype=np.uint64)
        power, span, done = _BITS[self.letters].astype(np.uint64), 1, 0  # power: windows of span = 1, 2, 4 .. letters
        while count and done < width:
            if width & span:
                result = result << np.uint64(2 * span) | power[done : done + count]
                done += span
            power = power[:-span] << np.uint64(2 * span) | power[span:]
            span *= 2
        return result

    def hashes(self, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Hash of each stretch, the same wherever it stands: uint64, modulo 2**64."""
        return (self._sums[start + length] - self._sums[start]) * self._inverses[start]


class _Lookup:
    """Places of 64-bit keys in a sorted array; a bitmap answers most keys that are not there without a search."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self._shift = np.uint64(64 - min(27, max(12, len(keys).bit_length() + 5)))
        self._seen = np.zeros(1 << (64 - int(self._shift)), dtype=bool)
        self._seen[self._slots(keys)] = True

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        return (keys * _MIX >> self._shift).astype(np.int64)

    def __call__(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of `keys` are known, their places): two int64 arrays of the same length."""
        which = np.flatnonzero(self._seen[self._slots(keys)])
        place = np.minimum(np.searchsorted(self.keys, keys[which]), len(self.keys) - 1)
        found = self.keys[place] == keys[which]
        return which[found], place[found]


class _Patterns:
    """Patterns of at least `width` letters, found by their first `width` letters."""

    def __init__(self, patterns: list[str], width: int) -> None:
        self.width = width
        hashes, codes, lengths = [], [], []
        for _, chunk in _chunks(patterns):
            letters = _Letters(chunk)
            hashes.append(letters.hashes(letters.starts, letters.lengths))
            codes.append(letters.windows(width)[letters.starts])
            lengths.append(letters.lengths)
        whole = np.concatenate(hashes)
        self.order = np.argsort(whole)
        self.hashes = _Lookup(whole[self.order])
        assert (np.diff(self.hashes.keys) > 0).all(), "two patterns with one 64-bit hash"
        anchors, anchor = np.unique(np.concatenate(codes), return_inverse=True)
        self.anchors = _Lookup(anchors)
        length = np.concatenate(lengths)
        self.scale = int(length.max()) + 1
        self.choices = np.unique(anchor * self.scale + length)  # the lengths of each anchor's patterns, ascending
        self.first = np.searchsorted(self.choices, np.arange(len(anchors)) * self.scale)

    def find(self, texts: list[str], *, proper: bool) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (text, pattern, start in the text) where the hashes agree; `proper`: the pattern is shorter."""
        letters = _Letters(texts)
        position, anchor = self.anchors(letters.windows(self.width))
        text = np.searchsorted(letters.ends, position, side="right")
        room = letters.ends[text] - position
        room = np.minimum(room - (proper & (position == letters.starts[text])), self.scale - 1)
        begin = self.first[anchor]
        count = np.searchsorted(self.choices, anchor * self.scale + room, side="right") - begin
        limits = np.searchsorted(np.cumsum(count), np.arange(_BATCH, count.sum() + _BATCH, _BATCH), side="right")
        done = 0
        for limit in np.unique(np.append(limits, len(count))).tolist():
            hit = np.repeat(np.arange(done, limit), count[done:limit])
            within = np.arange(len(hit)) - np.repeat(
                np.cumsum(count[done:limit]) - count[done:limit], count[done:limit]
            )
            length = self.choices[begin[hit] + within] - anchor[hit] * self.scale
            which, place = self.hashes(letters.hashes(position[hit], length))
            found = hit[which]
            yield text[found], self.order[place], position[found] - letters.starts[text[found]]
            done = limit
