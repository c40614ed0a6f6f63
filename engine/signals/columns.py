"""Places of barcodes on the fixed columns of COI: strand, frame, gaps, and the bit planes that compare them.

COI has the same reading frame in nearly all animals, so a barcode stands on COLUMNS fixed columns: the 658 of the
Folmer region and MARGIN on each side. Two barcodes on columns differ by an XOR and a population count of bit planes.
K-mers of known barcodes vote for the diagonal (column minus place) of a barcode; runs of votes are chained, so that
insertions and deletions are found, and every gap is put where the letters agree best with the column profile. Where
k-mers say too little, the consensus is laid beside the barcode without gaps.

A column belongs to one bit of one of WORDS words: four words hold the third codon positions, which differ most, four
the first, four the second. A plane is uint64 [WORDS]; LOW and HIGH hold the letter's two bits, KNOWN the columns that
have a letter.

Legend: B barcodes, L letters of one, K the length of a k-mer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

MARGIN = 23
WORDS, LOW, HIGH, KNOWN = 12, 0, 1, 2
KMER = 11
UNPLACED = -1  # column of a letter that has none
MIN_VOTES = 6  # k-mers on one chain; fewer place nothing,
MIN_SHARE_OF_VOTES = 0.1  # nor does a smaller share of all
MAX_GAP = 24  # columns by which a chain may leave the diagonal of most votes
# The most frequent letter of each column, each of 15 orders of arthropods counted alike (658-letter barcodes of BOLD).
CONSENSUS = (
    "AACTTTATATTTTATTTTTGGAGCTTGAGCAGGAATAGTAGGAACATCTTTAAGAATATTAATTCGAATAGAATTAGGACAACCTGGATCATTAATTGGA"
    "GATGATCAAATTTATAATGTTATTGTTACAGCTCATGCTTTTATTATAATTTTTTTTATAGTTATACCTATTATAATTGGAGGATTTGGAAATTGATTAG"
    "TTCCTTTAATATTAGGAGCTCCTGATATAGCTTTCCCTCGAATAAATAATATAAGATTTTGATTACTACCTCCTTCTTTAACTTTACTATTAATAAGAAG"
    "TATAGTAGAAAGAGGAGCAGGAACAGGATGAACAGTTTATCCTCCTCTATCATCTAATATTGCTCATGCAGGAGCTTCAGTAGATTTAGCTATTTTTTCT"
    "CTACATTTAGCAGGAATTTCTTCAATTTTAGGAGCTATTAATTTTATTACAACAATTATTAATATACGATCTAATGGTATAACATTAGATCAAATACCTT"
    "TATTTGTTTGATCAGTTTTAATTACAGCTATTTTACTACTATTATCTTTACCAGTTTTAGCAGGAGCTATTACTATACTATTAACAGATCGAAATTTAAA"
    "TACTTCATTTTTTGACCCTGCAGGAGGAGGAGACCCTATTTTATATCAACATTTATTT"
)
COLUMNS = len(CONSENSUS) + 2 * MARGIN  # 704
_CODONS_A_WORD = 59  # 235 codons in four words
_LIKE = 0.6  # share of letters that agree with the consensus where it alone places a barcode
_LEAST = 40  # letters that the consensus must lie beside
_SURE, _SURELY_LIKE = 300, 0.65  # the same where it teaches
_MAX_RUNS = 512
_GAP_COST = 3  # votes that a gap costs, and one more for each of its letters
_CODES = np.full(256, 4, dtype=np.uint8)
_CODES[np.frombuffer(b"ACGT", dtype=np.uint8)] = np.arange(4)
_NUMBERS = np.arange(COLUMNS)
WORD_OF = ((_NUMBERS + 1) % 3 * 4 + _NUMBERS // 3 // _CODONS_A_WORD).astype(np.int64)
BIT_OF = (_NUMBERS // 3 % _CODONS_A_WORD).astype(np.uint64)
_ON_CONSENSUS = np.full(COLUMNS, 4, dtype=np.uint8)
_ON_CONSENSUS[MARGIN : COLUMNS - MARGIN] = _CODES[np.frombuffer(CONSENSUS.encode("ascii"), dtype=np.uint8)]


@dataclass(frozen=True)
class Placed:
    """Where B barcodes stand. A barcode without `strand` has no columns: its planes are empty."""

    planes: np.ndarray  # uint64 [B, 3, WORDS], of the coding strand
    strand: np.ndarray  # int8 [B]: +1 as given, -1 the other one, 0 not placed
    first: np.ndarray  # int32 [B], the column of the coding strand's first letter; may lie before the columns
    gaps: np.ndarray  # int32 [B], letters inserted and columns left out
    votes: np.ndarray  # int32 [B], k-mers that speak for the place; 0 where the consensus did
    beyond: np.ndarray  # int32 [B], letters that stand on no column

    @property
    def known(self) -> np.ndarray:
        """The columns on which each barcode has a letter, int64 [B]."""
        return np.bitwise_count(self.planes[:, KNOWN]).sum(axis=1, dtype=np.int64)


@dataclass(frozen=True)
class Placer:
    """What places barcodes: which column each k-mer stands on, and how often a column has each letter."""

    table: np.ndarray  # int16 [4**KMER], the column that a k-mer begins on, UNPLACED = none
    profile: np.ndarray  # int16 [COLUMNS, 4], 100 x natural logarithm of the letter's share, at least -700

    @classmethod
    def learn(cls, barcodes: Sequence[str]) -> "Placer":
        """Learn from known barcodes on their coding strands, those that the consensus places without gaps."""
        codes, starts = encode([CONSENSUS, *barcodes])
        columns = np.full(len(codes), UNPLACED, dtype=np.int16)
        _lay(codes, starts, columns, _ON_CONSENSUS)
        table, letters = _counted(codes, starts, columns)
        share = letters / letters.sum(axis=1, keepdims=True)
        return cls(table, np.maximum(100 * np.log(share), -700).astype(np.int16))

    def taught(self, barcodes: Sequence[str]) -> "Placer":
        """Learn more k-mers from barcodes on their coding strands that this places: also those with gaps and those that
        are not like the consensus."""
        codes, starts = encode(barcodes)
        columns = np.full(len(codes), UNPLACED, dtype=np.int16)
        self.place_codes(codes, starts, columns)
        table, _ = _counted(codes, starts, columns)
        return Placer(np.where(table == UNPLACED, self.table, table), self.profile)

    def place(self, barcodes: Sequence[str]) -> Placed:
        """Place clean barcodes on either strand."""
        return self.place_codes(*encode(barcodes))

    def place_codes(self, codes: np.ndarray, starts: np.ndarray, columns: np.ndarray | None = None) -> Placed:
        """Place barcodes given as `encode` returns them. `columns` int16 [sum of L] receives the column of every letter
        of barcodes that are given on their coding strand; the others' stay."""
        count = len(starts) - 1
        planes = np.zeros((count, 3, WORDS), dtype=np.uint64)
        numbers = np.zeros((count, 5), dtype=np.int32)
        into = np.empty(0, dtype=np.int16) if columns is None else columns
        tables = (self.table, self.profile, _ON_CONSENSUS, WORD_OF, BIT_OF)
        _place(codes, starts, tables, planes, numbers, into)
        strand, first, gaps, votes, beyond = np.ascontiguousarray(numbers.T)
        return Placed(planes, strand.astype(np.int8), first, gaps, votes, beyond)


def encode(barcodes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the letters of barcodes as numbers, uint8 [sum of L] (A, C, G, T = 0..3, others 4), and where each
    begins, int64 [B + 1]."""
    starts = np.zeros(len(barcodes) + 1, dtype=np.int64)
    np.cumsum([len(barcode) for barcode in barcodes], out=starts[1:])
    return _CODES[np.frombuffer("".join(barcodes).encode("ascii"), dtype=np.uint8)], starts


def _counted(codes: np.ndarray, starts: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The column of each k-mer, by the majority of where it stands, and how often each column has each letter."""
    table = np.full(4**KMER, UNPLACED, dtype=np.int16)
    letters = np.ones((COLUMNS, 4), dtype=np.int64)
    _count(codes, starts, columns, table, np.zeros(4**KMER, dtype=np.int16), letters)
    return table, letters


@njit(nogil=True, cache=True)
def _lay(codes, starts, columns, consensus):  # type: ignore[no-untyped-def]
    """Write the columns of barcodes that agree with the consensus where it lies beside them without gaps."""
    for number in range(len(starts) - 1):
        code = codes[starts[number] : starts[number + 1]]
        diagonal, agree, beside = _beside_consensus(code, consensus)
        if beside >= _SURE and agree >= _SURELY_LIKE * beside:
            for place in range(max(0, -diagonal), min(len(code), COLUMNS - diagonal)):
                columns[starts[number] + place] = place + diagonal


@njit(nogil=True, cache=True)
def _count(codes, starts, columns, table, count, letters):  # type: ignore[no-untyped-def]
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
def _place(codes, starts, tables, planes, numbers, into):  # type: ignore[no-untyped-def]
    """Place every barcode; `numbers` int32 [B, 5]: strand, first, gaps, votes, beyond."""
    table, profile, consensus, word_of, bit_of = tables
    longest = 1
    for number in range(len(starts) - 1):
        longest = max(longest, starts[number + 1] - starts[number])
    other = np.empty(longest, dtype=np.uint8)
    diagonal = np.empty((2, longest), dtype=np.int32)
    column = np.empty(longest, dtype=np.int32)
    runs = np.empty((_MAX_RUNS, 5), dtype=np.int64)
    tally = np.zeros(longest + COLUMNS + 1, dtype=np.int32)
    for number in range(len(starts) - 1):
        given = codes[starts[number] : starts[number + 1]]
        length = len(given)
        turned = other[:length]
        for place in range(length):
            letter = given[length - 1 - place]
            turned[place] = 3 - letter if letter < 4 else 4
        here, here_votes = _vote(given, table, diagonal[0], tally)
        there, there_votes = 0, 0
        if here_votes < 0.5 * (length - KMER):
            there, there_votes = _vote(turned, table, diagonal[1], tally)
        strand = -1 if there_votes > here_votes else 1
        code, own = (turned, diagonal[1]) if strand < 0 else (given, diagonal[0])
        votes = 0
        if max(here_votes, there_votes) >= MIN_VOTES:
            votes, gaps = _chain(code, own, there if strand < 0 else here, profile, runs, column)
        if votes < max(MIN_VOTES, MIN_SHARE_OF_VOTES * (length - KMER)):
            strand, gaps, votes = _by_consensus(given, turned, consensus, column), 0, 0
            code = turned if strand < 0 else given
        if strand == 0:
            continue
        beyond = _fill(code, column, word_of, bit_of, planes[number])
        first = 0
        for place in range(length):
            if column[place] != UNPLACED:
                first = column[place] - place
                break
        numbers[number] = strand, first, gaps, votes, beyond
        if len(into) and strand > 0:
            for place in range(length):
                if 0 <= column[place] < COLUMNS:
                    into[starts[number] + place] = column[place]


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
def _chain(code, diagonal, main, profile, runs, column):  # type: ignore[no-untyped-def]
    """Chain runs of equal votes near the diagonal `main` and write each letter's column; return votes and gaps.

    A run: first and last place, diagonal, best score of a chain that ends with it, the run before it.
    """
    count = 0
    for place in range(len(code)):
        voted = diagonal[place]
        if voted == COLUMNS or abs(voted - main) > MAX_GAP:
            continue
        if count and runs[count - 1, 2] == voted and runs[count - 1, 1] >= place - KMER:
            runs[count - 1, 1] = place
        elif count < _MAX_RUNS:
            runs[count, 0], runs[count, 1], runs[count, 2] = place, place, voted
            count += 1
    last = 0
    for one in range(count):
        runs[one, 3], runs[one, 4] = 0, -1
        for before in range(max(0, one - 32), one):
            step = abs(runs[one, 2] - runs[before, 2])
            if step and runs[one, 0] + runs[one, 2] <= runs[before, 1] + runs[before, 2]:
                continue  # columns must go on
            score = runs[before, 3] - (_GAP_COST + step if step else 0)
            if score > runs[one, 3]:
                runs[one, 3], runs[one, 4] = score, before
        runs[one, 3] += runs[one, 1] - runs[one, 0] + 1
        if runs[one, 3] >= runs[last, 3]:
            last = one
    votes, gaps = 0, 0
    end, one = len(code), last
    while one >= 0:
        votes += runs[one, 1] - runs[one, 0] + 1
        before = runs[one, 4]
        begin, split = 0, 0
        if before >= 0 and runs[before, 2] != runs[one, 2]:
            split, begin = _split(code, runs[before], runs[one], profile)
            gaps += abs(runs[before, 2] - runs[one, 2])
        if before < 0 or runs[before, 2] != runs[one, 2]:
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
def _by_consensus(given, turned, consensus, column):  # type: ignore[no-untyped-def]
    """Place without gaps beside the consensus; return the strand, 0 = neither is like it."""
    here, agree, beside = _beside_consensus(given, consensus)
    there, other_agree, other_beside = _beside_consensus(turned, consensus)
    strand = 1
    if other_agree > agree:
        here, agree, beside, strand = there, other_agree, other_beside, -1
    if beside < _LEAST or agree < _LIKE * beside:
        return 0
    for place in range(len(given)):
        column[place] = place + here
    return strand


@njit(nogil=True, cache=True)
def _fill(code, column, word_of, bit_of, planes):  # type: ignore[no-untyped-def]
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
