"""Which of many strings stand inside which others, exact and near linear.

Pairs are found without comparing all of them: the first 32 nucleotides of every pattern are an anchor, packed into 64
bits; the texts' windows of 32 are looked up among the anchors, each hit is extended to the lengths that patterns with
this anchor have, a rolling hash of that stretch is looked up among the patterns' hashes, and what is found is verified
letter by letter.

Legend: T letters of a chunk of texts, positions count letters within a chunk.
"""

from collections.abc import Iterator

import numpy as np

from engine.signals.nucleotides import CODES

ANCHOR = 32  # nucleotides, 2 bits each: one 64-bit word
_CHUNK = 1 << 22  # letters of text handled at a time: about 300 MB
_BATCH = 1 << 22  # stretches hashed at a time
_BASE = 0x9E3779B97F4A7C15 | 1  # of the rolling hash; odd, so that it has an inverse modulo 2**64
_MIX = np.uint64(0xD6E8FEB86659FD93)
_VALUES = np.random.Generator(np.random.PCG64(0)).integers(1 << 63, size=256, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)


def containments(texts: list[str], patterns: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all (text, pattern) with the pattern inside the text or equal to it, as two int64 arrays, piece by piece.

    When both lists are the same object, pairs of a sequence with itself are left out. A pair may come more than once.
    """
    lengths = np.array([len(pattern) for pattern in patterns], dtype=np.int64)
    for width in np.unique(np.minimum(lengths, ANCHOR)).tolist():  # shorter patterns: one round per length
        members = np.flatnonzero(lengths == width if width < ANCHOR else lengths >= ANCHOR)
        index = Patterns([patterns[member] for member in members], width)
        for first, chunk in chunks(texts):
            for text, pattern, start in index.find(chunk, proper=texts is patterns):
                pairs = zip((text + first).tolist(), members[pattern].tolist(), start.tolist(), strict=True)
                good = [texts[i].startswith(patterns[j], at) for i, j, at in pairs]
                yield text[good] + first, members[pattern[good]]


def chunks(texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of the first, texts) of about _CHUNK letters at a time."""
    first, letters = 0, 0
    for last, text in enumerate(texts):
        letters += len(text)
        if letters >= _CHUNK:
            yield first, texts[first : last + 1]
            first, letters = last + 1, 0
    if first < len(texts):
        yield first, texts[first:]


class Letters:
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
        """Return codes of all windows of `width` <= 32 letters.

        Uint64 [T - width + 1], those across sequences included.
        """
        count = max(0, len(self.letters) - width + 1)
        result = np.zeros(count, dtype=np.uint64)
        power, span, done = (
            (CODES[self.letters] & 3).astype(np.uint64),
            1,
            0,
        )  # power: windows of span = 1, 2, 4 .. letters
        while count and done < width:
            if width & span:
                result = result << np.uint64(2 * span) | power[done : done + count]
                done += span
            power = power[:-span] << np.uint64(2 * span) | power[span:]
            span *= 2
        return result

    def hashes(self, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Return the hash of each stretch, the same wherever it stands: uint64, modulo 2**64."""
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
        """Return (which of `keys` are known, their places): two int64 arrays of the same length."""
        which = np.flatnonzero(self._seen[self._slots(keys)])
        place = np.minimum(np.searchsorted(self.keys, keys[which]), len(self.keys) - 1)
        found = self.keys[place] == keys[which]
        return which[found], place[found]


class Patterns:
    """Patterns of at least `width` letters, found by their first `width` letters."""

    def __init__(self, patterns: list[str], width: int) -> None:
        self.width = width
        hashes, codes, lengths = [], [], []
        for _, chunk in chunks(patterns):
            letters = Letters(chunk)
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
        letters = Letters(texts)
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
