"""Barcodes: cleaning, strands, k-mer and byte-pair tokens."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from engine.config import DataConfig
from engine.signals.barcodes import (
    CODON_SCORES,
    BpeTokenizer,
    KmerTokenizer,
    clean,
    make_tokenizer,
    orient,
    orient_batch,
    reverse_complement,
)

CLEAN = st.text("ACGTN", max_size=120)
# The first 300 nt of the Folmer region of a noctuid moth (Abrostola tripartita, BOLD LEATB341-13).
MOTH = (
    "AACTTTATATTTTATTTTTGGTATTTGAGCAGGAATAGTAGGAACTTCTTTAAGATTATTAATTCGAGCAGAATTAGGAACCCCCGGATCTTTAATTGGAGATGATCAAATC"
    "TATAATACTATTGTAACTGCTCATGCTTTTATTATAATTTTTTTTATAGTAATACCTATTATAATCGGAGGATTTGGAAATTGACTTGTTCCTTTAATATTAGGAGCCCCTG"
    "ATATAGCTTTCCCCCGAATAAATAATATAAGTTTTTGATTATTACCCCCCTCTTTAACCTTGTTAATTTCAAGAAG"
)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("ACGT", "ACGT"),
        ("acgt", "ACGT"),
        (" AC-G.T\r\nAC\tGT\n", "ACGTACGT"),
        ("ARYSWKMBDHVArySwkmbdhv", "ANNNNNNNNNNA"),
        ("NNACNGTNNN", "ACNGT"),
        ("--NN--AC--NN--", "AC"),
        ("ACGU", "ACGT"),
        ("", ""),
        ("-NNN-", ""),
    ],
)
def test_clean_by_hand(raw: str, expected: str) -> None:
    assert clean(raw) == expected
    cleaned = clean(raw)
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    ("raw", "letters"), [("ACXGTZ", "'XZ'"), ("AC!GT", "'!'"), ("ACÄGTſ", "'Äſ'"), ("AC\0", r"'\x00'")]
)
def test_letters_that_are_no_nucleotides_are_named(raw: str, letters: str) -> None:
    with pytest.raises(ValueError, match="that are no nucleotides, allowed: ACGTU") as caught:
        clean(raw)
    assert letters in str(caught.value)


@given(st.text("ACGTUacgtuRYSWKMBDHVNryswkmbdhvn-. \n", max_size=200))
def test_clean_gives_clean_letters(raw: str) -> None:
    cleaned = clean(raw)
    assert set(cleaned) <= set("ACGTN") and cleaned == cleaned.strip("N")


@given(st.text(max_size=30))
def test_clean_takes_nucleotides_or_names_what_is_none(raw: str) -> None:
    allowed = set("ACGTURYSWKMBDHVNacgturyswkmbdhvn-. \t\r\n")
    if set(raw) <= allowed:
        assert set(clean(raw)) <= set("ACGTN")
    else:
        with pytest.raises(ValueError, match="no nucleotides"):
            clean(raw)


def test_reverse_complement_by_hand() -> None:
    assert reverse_complement("AACGTN") == "NACGTT"
    assert reverse_complement("") == ""


@given(CLEAN)
def test_reverse_complement_is_its_own_inverse(sequence: str) -> None:
    assert reverse_complement(reverse_complement(sequence)) == sequence


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_a_barcode_is_turned_to_its_coding_strand(shift: int) -> None:
    piece = MOTH[shift : shift + 150]
    assert orient(piece) == (piece, 1)
    assert orient(reverse_complement(piece)) == (piece, -1)


def test_stop_codons_weigh_most() -> None:
    assert np.argsort(CODON_SCORES, stable=True)[:2].tolist() == [16 * 3, 16 * 3 + 2]  # TAA, TAG


@pytest.mark.parametrize("sequence", ["", "A", "AC", "N", "NNNNNN", "ACGT", "GAATTC"])
def test_what_says_nothing_stays_as_given(sequence: str) -> None:
    assert orient(sequence) == (sequence, 1)


@given(CLEAN)
def test_orient_returns_one_of_the_strands_and_is_stable(sequence: str) -> None:
    turned, strand = orient(sequence)
    assert turned == (sequence if strand == 1 else reverse_complement(sequence))
    assert orient(turned) == (turned, 1)


@given(st.text("ACGTN", min_size=3, max_size=60))
def test_orient_equals_its_definition(sequence: str) -> None:
    def best(strand: str) -> int:
        scores = dict(zip(("".join(codon) for codon in product("ACGT", repeat=3)), CODON_SCORES.tolist(), strict=True))
        return max(sum(scores.get(strand[i : i + 3], 0) for i in range(f, len(strand) - 2, 3)) for f in range(3))

    assert (orient(sequence)[1] == -1) == (best(reverse_complement(sequence)) > best(sequence))


@given(st.lists(CLEAN, max_size=8))
def test_orienting_many_equals_one_by_one(sequences: list[str]) -> None:
    assert orient_batch(sequences) == [orient(sequence)[0] for sequence in sequences]


def test_strands_of_real_barcodes(real_data: Path) -> None:
    table = pq.read_table(real_data / "bold" / "barcodes.parquet", columns=["barcode"])
    barcodes = [clean(raw) for raw in table["barcode"].to_pylist()[::40]]
    assert all(orient(barcode)[1] == 1 for barcode in barcodes)
    assert all(orient(reverse_complement(barcode))[1] == -1 for barcode in barcodes)
    rng = np.random.default_rng(0)
    pieces = [barcode[start : start + 150] for barcode in barcodes for start in [rng.integers(0, len(barcode) - 150)]]
    assert np.mean([orient(reverse_complement(piece))[1] == -1 for piece in pieces]) >= 0.995


def tokens_by_hand(sequence: str, k: int, stride: int, width: int, offset: int) -> list[int]:
    """Window by window, from the definition."""
    numbers = {"".join(letters): 2 + i for i, letters in enumerate(product("ACGT", repeat=k))}
    part = sequence[offset : offset + width]
    tokens = [numbers.get(part[i : i + k], 1) for i in range(0, len(part) - k + 1, stride)]
    if sequence and not tokens:
        tokens = [1]
    return tokens + [0] * ((width - k) // stride + 1 - len(tokens))


def test_tokens_by_hand() -> None:
    tokenizer = KmerTokenizer(2, 1, 6)
    assert (tokenizer.length, tokenizer.vocab_size) == (5, 18)
    assert tokenizer("AACTN").tolist() == [2, 3, 2 + 7, 1, 0]  # AA AC CT TN
    assert tokenizer("TT").tolist() == [17, 0, 0, 0, 0]
    assert tokenizer("").tolist() == [0] * 5
    assert tokenizer("A").tolist() == [1, 0, 0, 0, 0]
    assert tokenizer("TTAACTN", 2).tolist() == [2, 3, 9, 1, 0]
    assert KmerTokenizer(2, 2, 6)("AACTN").tolist() == [2, 9, 0]
    assert tokenizer("ACGT").dtype == np.uint16


@given(
    st.lists(CLEAN, max_size=6),
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(7, 100),
    st.lists(st.integers(0, 9), min_size=6),
)
def test_tokens_equal_the_definition(barcodes: list[str], k: int, stride: int, width: int, offsets: list[int]) -> None:
    tokenizer = KmerTokenizer(k, stride, width)
    batch = tokenizer.encode(barcodes)
    assert batch.dtype == np.uint16 and batch.shape == (len(barcodes), tokenizer.length)
    assert batch.tolist() == [tokens_by_hand(barcode, k, stride, width, 0) for barcode in barcodes]
    shifted = tokenizer.encode(barcodes, offsets[: len(barcodes)])
    for row, barcode, offset in zip(shifted, barcodes, offsets, strict=False):
        assert row.tolist() == tokens_by_hand(barcode, k, stride, width, offset)
        assert np.array_equal(row, tokenizer(barcode, offset))


def test_eight_letters_need_wider_numbers() -> None:
    tokenizer = KmerTokenizer(8, 8, 16)
    assert tokenizer("T" * 16).tolist() == [65537, 65537] and tokenizer.vocab_size == 65538


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 9), "k-mer length: got 0"),
        ((9, 1, 9), "k-mer length: got 9"),
        ((5, 0, 9), "stride: got 0"),
        ((5, 1, 4), "max_nucleotides: got 4"),
    ],
)
def test_bad_tokenizer_settings(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KmerTokenizer(*arguments)


@pytest.fixture(scope="module")
def bpe_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tokenizers file trained on one barcode, [UNK] = 0 as in DNABERT-2's."""
    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    tokenizer.train_from_iterator([MOTH], BpeTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False))
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    yield str(path)


def test_bpe_tokens(bpe_file: str) -> None:
    tokenizer = make_tokenizer(DataConfig(tokenizer="bpe", tokenizer_file=bpe_file, max_nucleotides=150))
    assert isinstance(tokenizer, BpeTokenizer) and tokenizer.vocab_size == 61 and tokenizer.length == 52
    batch = tokenizer.encode([MOTH, "", MOTH[:30], "N" * 300])
    assert batch.shape == (4, 52) and batch.dtype == np.uint16
    plain = Tokenizer.from_file(bpe_file)
    assert batch[0][batch[0] > 0].tolist() == [i + 1 for i in plain.encode(MOTH[:150]).ids]
    assert not batch[1].any()
    assert np.array_equal(tokenizer(MOTH, 3), tokenizer.encode([MOTH[3:]])[0])
    assert np.array_equal(tokenizer.encode([MOTH, MOTH], [0, 3]), np.stack([tokenizer(MOTH), tokenizer(MOTH, 3)]))


@given(st.lists(CLEAN, max_size=6), st.lists(st.integers(0, 9), min_size=6))
def test_bpe_in_a_batch_equals_one_by_one(bpe_file: str, barcodes: list[str], offsets: list[int]) -> None:
    tokenizer = BpeTokenizer(bpe_file, 60)
    batch = tokenizer.encode(barcodes, offsets[: len(barcodes)])
    assert batch.shape == (len(barcodes), tokenizer.length) and batch.dtype == np.uint16
    for row, barcode, offset in zip(batch, barcodes, offsets, strict=False):
        assert np.array_equal(row, tokenizer(barcode, offset))
        assert bool(row.any()) == bool(barcode[offset:]) and (np.diff((row > 0).astype(int)) <= 0).all()


def test_make_tokenizer(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(DataConfig(kmer=5, kmer_stride=5))
    assert isinstance(tokenizer, KmerTokenizer) and tokenizer.length == 132
    with pytest.raises(ValueError, match="tokenizer_file: got ''"):
        make_tokenizer(DataConfig(tokenizer="bpe"))
    (tmp_path / "bad.json").write_text("{}")
    for path in ("bad.json", "absent.json"):
        with pytest.raises(ValueError, match=rf"tokenizer_file: got .*{path}.* allowed: a tokenizers JSON file"):
            make_tokenizer(DataConfig(tokenizer="bpe", tokenizer_file=str(tmp_path / path)))
