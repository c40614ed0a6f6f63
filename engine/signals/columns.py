"""Places of barcodes on the fixed columns of COI: strand, frame, gaps, and the bit planes that compare them.

COI has the same reading frame in nearly all animals, so a barcode stands on COLUMNS fixed columns: the 658 of the
Folmer region and MARGIN on each side. Two barcodes on columns differ by an XOR and a population count of bit planes.
K-mers of known barcodes vote for the diagonal (column minus place) of a barcode; runs of votes are chained, so that
insertions and deletions are found, and every gap is put where the letters agree best with the column profile. Where
k-mers say too little, the barcode is laid beside the profile without gaps.

A column belongs to one bit of one of WORDS words: four words hold the third codon positions, which differ most, four
the first, four the second. A plane is uint64 [WORDS]; LOW and HIGH hold the letter's two bits, KNOWN the columns that
have a letter.

Legend: B barcodes, L letters of one, K the length of a k-mer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.signals.placing import COLUMNS, KMER, KNOWN, MARGIN, UNPLACED, count_kmers, lay, place_all
from engine.signals.viterbi import replace

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
WORDS = 12
_CODONS_A_WORD = 59  # 235 codons in four words
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
    votes: np.ndarray  # int32 [B], k-mers that speak for the place; 0 where the profile did
    beyond: np.ndarray  # int32 [B], letters that stand on no column

    @property
    def known(self) -> np.ndarray:
        """The columns on which each barcode has a letter, int64 [B]."""
        return np.bitwise_count(self.planes[:, KNOWN]).sum(axis=1, dtype=np.int64)

    @property
    def moving(self) -> tuple[np.ndarray, ...]:
        """What changes where a barcode is placed anew."""
        return self.planes, self.first, self.gaps, self.beyond


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
        lay(codes, starts, columns, _ON_CONSENSUS)
        table, letters = _counted(codes, starts, columns)
        share = letters / letters.sum(axis=1, keepdims=True)
        return cls(table, np.maximum(100 * np.log(share), -700).astype(np.int16))

    def taught(self, barcodes: Sequence[str]) -> "Placer":
        """Learn more k-mers from barcodes on their coding strands that this places, also with gaps."""
        codes, starts = encode(barcodes)
        columns = np.full(len(codes), UNPLACED, dtype=np.int16)
        self.place_codes(codes, starts, columns)
        table, _ = _counted(codes, starts, columns)
        return Placer(np.where(table == UNPLACED, self.table, table), self.profile)

    def place(self, barcodes: Sequence[str]) -> Placed:
        """Place clean barcodes on either strand."""
        return self.place_codes(*encode(barcodes))

    def place_codes(self, codes: np.ndarray, starts: np.ndarray, columns: np.ndarray | None = None) -> Placed:
        """Place barcodes given as `encode` returns them.

        `columns` int16 [sum of L] receives the column of every letter of barcodes that are given on their coding
        strand; the others' stay.
        """
        count = len(starts) - 1
        planes = np.zeros((count, 3, WORDS), dtype=np.uint64)
        numbers = np.zeros((count, 5), dtype=np.int32)
        into = np.empty(0, dtype=np.int16) if columns is None else columns
        tables = (self.table, self.profile, WORD_OF, BIT_OF)
        place_all(codes, starts, tables, planes, numbers, into)
        strand, first, gaps, votes, beyond = np.ascontiguousarray(numbers.T)
        return Placed(planes, strand.astype(np.int8), first, gaps, votes, beyond)

    def replace(
        self, queries: tuple[np.ndarray, np.ndarray], placed: Placed, rows: np.ndarray, models: np.ndarray
    ) -> None:
        """Place some of `placed` anew, each along a like barcode on columns, uint64 [n, WORDS, 3]; zeros = none.

        `queries` as `encode` returns them; `rows` int64 [n].
        """
        tables = (self.profile, WORD_OF, BIT_OF)
        replace(rows, queries, models, tables, (placed.planes, placed.strand, *placed.moving[1:]))


def encode(barcodes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return barcodes as numbers uint8 [sum of L] (A, C, G, T = 0..3, others 4) and where they begin, int64 [B + 1]."""
    starts = np.zeros(len(barcodes) + 1, dtype=np.int64)
    np.cumsum([len(barcode) for barcode in barcodes], out=starts[1:])
    return _CODES[np.frombuffer("".join(barcodes).encode("ascii"), dtype=np.uint8)], starts


def _counted(codes: np.ndarray, starts: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the column on which each k-mer stands most often, and how often each column has each letter."""
    table = np.full(4**KMER, UNPLACED, dtype=np.int16)
    letters = np.ones((COLUMNS, 4), dtype=np.int64)
    count_kmers(codes, starts, columns, table, np.zeros(4**KMER, dtype=np.int16), letters)
    return table, letters
