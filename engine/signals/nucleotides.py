"""Nucleotides as numbers: A, C, G, T are 0, 1, 2, 3 and everything else is OTHER (N, gaps, padding).

Legend: B sequences, W letters of a row.
"""

from collections.abc import Sequence

import numpy as np

BASES = np.frombuffer(b"ACGT", dtype=np.uint8)
"""The letter of each code 0..3, ASCII."""
OTHER = 4
CODES = np.full(256, OTHER, dtype=np.uint8)
"""The code of each ASCII letter; capitals only."""
CODES[BASES] = np.arange(4)

GENETIC_CODE = "KNKNTTTTSSSSMIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSSWCWCLFLF"
"""Amino acid of codon 16 a + 4 b + c over codes a, b, c: the invertebrate mitochondrial code (NCBI table 5)."""

_COMPLEMENT = bytes.maketrans(b"ACGTNacgtn", b"TGCANtgcan")


def reverse_complement(sequence: str) -> str:
    """Return the other strand. Letters other than A, C, G, T, N (either case) stay as they are."""
    return sequence.encode("ascii").translate(_COMPLEMENT)[::-1].decode("ascii")


def letters(sequence: str) -> np.ndarray:
    """Return a writable copy of the ASCII letters: uint8 [length]."""
    return np.frombuffer(bytearray(sequence, "ascii"), dtype=np.uint8)


def text(letters: np.ndarray) -> str:
    """Return ASCII letters (uint8) as a string."""
    return letters.tobytes().decode("ascii")


def codes(sequence: str) -> np.ndarray:
    """Return the code of every letter: uint8 [length]."""
    return CODES[np.frombuffer(sequence.encode("ascii", "replace"), dtype=np.uint8)]


def code_rows(sequences: Sequence[str], width: int) -> np.ndarray:
    """Return the codes of several sequences, padded with OTHER: uint8 [B, width].

    Args:
        sequences: none longer than `width`.
        width: W.
    """
    return codes("".join([sequence.ljust(width) for sequence in sequences])).reshape(len(sequences), width)


def codon_numbers(codes: np.ndarray) -> np.ndarray:
    """Return 25 a + 5 b + c of every three codes in a row, one window a letter: uint8 [..., W - 2], 0..124."""
    return codes[..., :-2] * np.uint8(25) + codes[..., 1:-1] * np.uint8(5) + codes[..., 2:]


def per_codon(values: np.ndarray, other: float = 0) -> np.ndarray:
    """Return values [64] of the codons of A, C, G, T as a table over `codon_numbers` [125]; `other` for the rest."""
    table = np.full((5, 5, 5), other, dtype=values.dtype)
    table[:4, :4, :4] = values.reshape(4, 4, 4)
    return table.reshape(-1)


def _windows(codes: np.ndarray, k: int, stride: int) -> list[np.ndarray]:
    """Return the first, second .. k-th letter of every window: k views [..., windows]."""
    starts = max(0, codes.shape[-1] - k + 1)
    return [codes[..., place : place + starts : stride] for place in range(k)]


def kmer_numbers(codes: np.ndarray, k: int, stride: int = 1, dtype: type | np.dtype = np.uint32) -> np.ndarray:
    """Return the number of every window of k letters, 2 bits a letter, the first letter highest.

    Args:
        codes: uint8 [..., W]; OTHER counts as A, see `kmer_known`.
        k: 1..4 x the bytes of `dtype`.
        stride: letters from one window to the next.
        dtype: of the numbers.

    Returns:
        [..., (W - k) // stride + 1]; no window where W < k.
    """
    columns = _windows(codes, k, stride)
    number = (columns[0] & 3).astype(dtype)
    for column in columns[1:]:
        number <<= 2
        number |= column & 3
    return number


def kmer_known(codes: np.ndarray, k: int, stride: int = 1) -> np.ndarray:
    """Return whether a window of `kmer_numbers` has only A, C, G, T: bool [..., windows]."""
    known = [column < OTHER for column in _windows(codes, k, stride)]
    return np.logical_and.reduce(known)
