"""COI barcodes: clean them, turn them to the coding strand, cut them into tokens.

Legend: B barcodes, L tokens. A barcode here is a str; clean ones have the letters A, C, G, T, N only.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer as TokenizerFile

from engine.config import DataConfig
from engine.errors import UserError
from engine.signals.nucleotides import (
    OTHER,
    code_rows,
    codon_numbers,
    kmer_known,
    kmer_numbers,
    per_codon,
    reverse_complement,
)

GAPS = "-. \t\r\n"  # alignment gaps and the line breaks of wrapped files
AMBIGUOUS = "RYSWKMBDHVN"  # IUPAC codes for more than one base, all read as N
_CLEAN_FROM = "ACGTU" + AMBIGUOUS
_CLEAN_TO = "ACGTT" + "N" * len(AMBIGUOUS)
_INVALID = ord("!")
_CLEAN_LETTERS = dict(zip((_CLEAN_FROM + _CLEAN_FROM.lower()).encode(), (_CLEAN_TO * 2).encode(), strict=True))
_CLEAN = bytes(_CLEAN_LETTERS.get(byte, _INVALID) for byte in range(256))

PAD, UNKNOWN, FIRST_KMER = 0, 1, 2

# How much more often a codon occurs in the reading frame of COI than among random codons: 10 x natural logarithm, at
# least -60. Counted in 60,000 insect and other hexapod barcodes of BOLD, each in its frame without stop codons.
# fmt: off
CODON_SCORES = np.array([
    -15, -8, -34, 10, 6, -13, -27, 5, 1, -26, -30, -8, 14, -5, -11, 18,  # AAA, AAC .. ATT
    -4, -15, -32, 0, 2, -5, -25, 6, -1, -36, -31, -15, 0, -15, -24, 4,  # CAA, CAC .. CTT
    -5, -8, -30, 4, 4, -6, -23, 8, 14, -19, -3, 2, 5, -18, -16, 4,  # GAA, GAC .. GTT
    -60, -11, -60, -2, 6, -10, -26, 6, 3, -44, -21, -31, 18, -3, -11, 13,  # TAA, TAC .. TTT
])
# fmt: on


_MIRRORED = CODON_SCORES.reshape(4, 4, 4)[::-1, ::-1, ::-1].transpose(2, 1, 0)  # of each codon's reverse complement
_STRAND_SCORES = [per_codon(scores.astype(np.int16)) for scores in (CODON_SCORES, _MIRRORED)]  # this strand, the other


def clean(raw: str) -> str:
    """Return the barcode in capitals A, C, G, T, N; "" when nothing is left, which is no barcode.

    Gaps and whitespace are removed, U is read as T, an ambiguous base as N, and N is removed from both ends.

    Raises:
        UserError: naming the letters that are no nucleotides.
    """
    data = raw.encode("ascii", "replace").translate(_CLEAN, GAPS.encode())
    if _INVALID in data:
        wrong = sorted({letter for letter in raw if letter not in GAPS and ord(letter) not in _CLEAN_LETTERS})
        shown = "".join(wrong[:10]) + ("..." if len(wrong) > 10 else "")
        raise UserError("barcode", f"letters {shown!r} that are no nucleotides", f"{_CLEAN_FROM} and gaps '-.'")
    return data.strip(b"N").decode("ascii")


def _are_reversed(sequences: Sequence[str]) -> np.ndarray:
    """Return whether the coding strand of each clean barcode is the other one: bool [B]. See `orient`."""
    width = -(-max(map(len, sequences), default=0) // 3) * 3 + 2
    codons = codon_numbers(code_rows(sequences, width))
    per_frame = [
        [scores[codons[:, frame::3]].sum(axis=1, dtype=np.int32) for frame in range(3)] for scores in _STRAND_SCORES
    ]
    given, other = np.max(per_frame, axis=1)
    reversed_: np.ndarray = other > given
    return reversed_


def orient(sequence: str) -> tuple[str, int]:
    """Return a clean barcode on its coding strand, and the strand it was given on (+1 coding, -1 the other).

    Every strand and frame is scored by the sum over its codons of CODON_SCORES. The strand of the best of the six is
    the coding one; a tie keeps the barcode as given. The invertebrate mitochondrial stop codons (TAA, TAG) weigh most,
    but stop codons alone leave 40% of the 200 nt and 73% of the 100 nt fragments undecided. Share turned wrongly among
    barcodes that the table was not made from (4,000 of coi val and test): whole 0.05% (these are stored on the other
    strand), 200 nt 0.05%, 100 nt 0.5%, 60 nt 3.3%; of bold (2% of it in the table): 0.00%, 0.00%, 0.1%, 1.9%.
    """
    return (reverse_complement(sequence), -1) if _are_reversed([sequence])[0] else (sequence, 1)


def orient_batch(sequences: Sequence[str]) -> list[str]:
    """Return clean barcodes on their coding strands, as `orient` finds them."""
    turned = _are_reversed(sequences).tolist()
    return [reverse_complement(one) if turn else one for one, turn in zip(sequences, turned, strict=True)]


class Tokenizer(Protocol):
    """What the pipeline and the models need of a tokenizer."""

    length: int  # L, tokens per barcode, padding included
    vocab_size: int

    def __call__(self, sequence: str, offset: int = 0) -> np.ndarray:
        """Return the tokens of one clean barcode from nucleotide `offset` on: unsigned integers [L]."""

    def encode(self, sequences: Sequence[str], offset: int | Sequence[int] | np.ndarray = 0) -> np.ndarray:
        """Return the tokens of clean barcodes, padded with 0: unsigned integers [B, L].

        Each begins at nucleotide `offset`: one for all, or one each.
        """


def _windows(sequences: Sequence[str], offset: int | Sequence[int] | np.ndarray, width: int) -> list[str]:
    """Return at most `width` nucleotides of each barcode, from its offset on."""
    if isinstance(offset, int):
        return [sequence[offset : offset + width] for sequence in sequences]
    return [sequence[start : start + width] for sequence, start in zip(sequences, offset, strict=True)]


class KmerTokenizer:
    """Windows of k nucleotides, one every `stride`.

    Token 0 = padding, 1 = unknown (a window with N), 2.. = the k-mers of A, C, G, T in alphabetic order. A
    tail shorter than k is left out; what lies beyond `max_nucleotides` too. A barcode that is not empty but too short
    for one window is one unknown token, so that every barcode has a token to average over.
    """

    def __init__(self, k: int, stride: int, max_nucleotides: int) -> None:
        """Raise UserError when k is not in 1..8, or stride or max_nucleotides leave no window."""
        if not 1 <= k <= 8:
            raise UserError("k-mer length", k, "1..8")
        if stride < 1:
            raise UserError("k-mer stride", stride, "1 or more")
        if max_nucleotides < k:
            raise UserError("max_nucleotides", max_nucleotides, f"at least the k-mer length {k}")
        self.k, self.stride, self.max_nucleotides = k, stride, max_nucleotides
        self.length = (max_nucleotides - k) // stride + 1
        self.vocab_size = FIRST_KMER + 4**k
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)  # uint32 for k = 8 only

    def __call__(self, sequence: str, offset: int = 0) -> np.ndarray:
        """Return the tokens of one clean barcode, see `Tokenizer`."""
        return self.encode([sequence], offset)[0]

    def encode(self, sequences: Sequence[str], offset: int | Sequence[int] | np.ndarray = 0) -> np.ndarray:
        """Return the tokens of clean barcodes, see `Tokenizer`: uint16 [B, L] (uint32 for k = 8)."""
        width = self.max_nucleotides
        codes = code_rows(_windows(sequences, offset, width), width)
        tokens = kmer_numbers(codes, self.k, self.stride, self.dtype)
        tokens += FIRST_KMER
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
        read = np.clip(lengths - np.asarray(offset), 0, width)
        with_n = np.flatnonzero((codes == OTHER).sum(axis=1) > width - read)  # more than the padding
        tokens[with_n] = np.where(kmer_known(codes[with_n], self.k, self.stride), tokens[with_n], UNKNOWN)
        counts = np.maximum((read - self.k) // self.stride + 1, 0)
        tokens *= np.arange(self.length) < counts[:, None]
        tokens[(counts == 0) & (lengths > 0), 0] = UNKNOWN
        return tokens


class BpeTokenizer:
    """Byte-pair tokens from a `tokenizers` JSON file (DNABERT-2's, for one).

    Token 0 = padding and every other token is the file's id plus 1, since files use id 0 for a real token; an encoder
    that loads published weights subtracts 1. Special tokens ([CLS], [SEP]) are added as the file says. L leaves room
    for one token per 3 nucleotides (DNABERT-2: about 5); what lies beyond is left out.
    """

    def __init__(self, path: str, max_nucleotides: int) -> None:
        """Raise UserError when the file cannot be read as a tokenizer."""
        try:
            self._tokenizer = TokenizerFile.from_file(path)
        except Exception as error:  # the library raises plain Exception
            raise UserError("data.tokenizer_file", f"{path!r} ({error})", "a tokenizers JSON file") from None
        self.max_nucleotides = max_nucleotides
        self.length = max_nucleotides // 3 + 2
        self.vocab_size = self._tokenizer.get_vocab_size() + 1
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.length)

    def __call__(self, sequence: str, offset: int = 0) -> np.ndarray:
        """Return the tokens of one clean barcode, see `Tokenizer`."""
        return self.encode([sequence], offset)[0]

    def encode(self, sequences: Sequence[str], offset: int | Sequence[int] | np.ndarray = 0) -> np.ndarray:
        """Return the tokens of clean barcodes, see `Tokenizer`: uint16 [B, L] (uint32 for k = 8)."""
        windows = _windows(sequences, offset, self.max_nucleotides)
        tokens = np.zeros((len(windows), self.length), dtype=np.uint16)
        for row, encoding in zip(tokens, self._tokenizer.encode_batch(windows), strict=True):
            ids = encoding.ids
            row[: len(ids)] = ids
            row[: len(ids)] += 1
        return tokens


def make_tokenizer(config: DataConfig) -> KmerTokenizer | BpeTokenizer:
    """Return the tokenizer that the configuration names. Raises UserError as the classes do."""
    if config.tokenizer == "kmer":
        return KmerTokenizer(config.kmer, config.kmer_stride, config.max_nucleotides)
    if not config.tokenizer_file:
        raise UserError("data.tokenizer_file", "''", "the path of a tokenizers JSON file (tokenizer=bpe needs one)")
    return BpeTokenizer(config.tokenizer_file, config.max_nucleotides)
