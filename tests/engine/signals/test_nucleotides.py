"""Letters to numbers against the definitions written out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.signals import nucleotides
from engine.signals.nucleotides import GENETIC_CODE, OTHER

SEQUENCES = st.text("ACGTN", max_size=40)


@given(st.lists(SEQUENCES, max_size=5))
def test_rows_are_padded_with_other(sequences: list[str]) -> None:
    width = max(map(len, sequences), default=0) + 1
    expected = [["ACGTN".index(letter) for letter in one] + [OTHER] * (width - len(one)) for one in sequences]
    rows = nucleotides.code_rows(sequences, width)
    assert rows.dtype == np.uint8 and rows.shape == (len(sequences), width) and rows.tolist() == expected


@given(SEQUENCES)
def test_strands_and_letters(sequence: str) -> None:
    other = "".join({"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}[letter] for letter in reversed(sequence))
    assert nucleotides.reverse_complement(sequence) == other
    assert nucleotides.reverse_complement(sequence.lower() + "-R") == "R-" + other.lower()
    assert nucleotides.text(nucleotides.letters(sequence)) == sequence


@given(SEQUENCES, st.integers(1, 8), st.integers(1, 3))
def test_kmers_are_numbers_to_the_base_four(sequence: str, k: int, stride: int) -> None:
    windows = [sequence[i : i + k] for i in range(0, len(sequence) - k + 1, stride)]
    codes = nucleotides.codes(sequence)
    numbers, known = nucleotides.kmer_numbers(codes, k, stride), nucleotides.kmer_known(codes, k, stride)
    assert known.tolist() == ["N" not in window for window in windows]
    assert numbers.tolist() == [
        sum("ACGT".index(letter) * 4**place for place, letter in enumerate(window[::-1].replace("N", "A")))
        for window in windows
    ]


@given(SEQUENCES)
def test_codons_and_their_tables(sequence: str) -> None:
    table = nucleotides.per_codon(np.array(list(GENETIC_CODE)), other="X")
    found = table[nucleotides.codon_numbers(nucleotides.codes(sequence))].tolist()
    windows = [sequence[i : i + 3] for i in range(len(sequence) - 2)]
    assert len(found) == len(windows)
    stops = [acid == "*" for acid in found]
    assert stops == [window in ("TAA", "TAG") for window in windows]  # of this code, and AGA and AGG are serine
    assert all((acid == "X") == ("N" in window) for acid, window in zip(found, windows, strict=True))
    assert [table[nucleotides.codon_numbers(nucleotides.codes(c))[0]] for c in ("ATG", "AGA", "TGA")] == ["M", "S", "W"]
