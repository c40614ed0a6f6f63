"""Degradations: rates within binomial bounds, the order of operations, determinism, fragments, blur."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.signals.degrade import PAPER, BarcodePreset, blur, degrade_barcode, fragment
from engine.signals.nucleotides import reverse_complement

CLEAN = st.text("ACGTN", max_size=300)
LONG = "".join(np.random.default_rng(7).choice(list("ACGT"), 200_000))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def damaged(sequence: str, seed: int = 0, **rates: float) -> str:
    return degrade_barcode(sequence, rng(seed), 1.0, BarcodePreset.only(**rates))


def within_binomial(count: int, trials: int, rate: float) -> bool:
    return abs(count - trials * rate) <= 5 * np.sqrt(trials * rate * (1 - rate))


def differences(one: str, other: str) -> np.ndarray:
    return np.frombuffer(one.encode(), np.uint8) != np.frombuffer(other.encode(), np.uint8)


@given(CLEAN, st.integers(0, 99), st.floats(0, 20))
def test_damage_is_deterministic_and_stays_in_the_alphabet(sequence: str, seed: int, severity: float) -> None:
    result = degrade_barcode(sequence, rng(seed), severity)
    assert result == degrade_barcode(sequence, rng(seed), severity)
    assert set(result) <= set("ACGTN")
    assert len(result) <= 2 * len(sequence)


@given(CLEAN, st.integers(0, 99))
def test_severity_zero_changes_nothing(sequence: str, seed: int) -> None:
    assert degrade_barcode(sequence, rng(seed), 0.0) == sequence


@pytest.mark.parametrize("severity", [-0.1, float("nan")])
def test_bad_severity_is_refused(severity: float) -> None:
    with pytest.raises(ValueError, match=r"severity: got .* allowed: 0 or more"):
        degrade_barcode("ACGT", rng(), severity)


def test_substitution_rate_and_evenness() -> None:
    result = damaged(LONG, substitution=0.01)
    changed = differences(LONG, result)
    assert within_binomial(changed.sum(), len(LONG), 0.01)
    to = [result[i] for i in np.flatnonzero(changed) if LONG[i] == "A"]
    assert all(within_binomial(to.count(base), len(to), 1 / 3) for base in "CGT")


def test_substitution_at_rate_one_changes_every_base_and_no_n() -> None:
    result = damaged("ACGTNNACGT" * 50, substitution=1.0)
    changed = differences("ACGTNNACGT" * 50, result)
    assert changed.tolist() == ([True] * 4 + [False] * 2 + [True] * 4) * 50
    assert result.count("N") == 100


def test_masking_rate() -> None:
    result = damaged(LONG, masking=0.003)
    assert within_binomial(result.count("N"), len(LONG), 0.003)
    assert result.count("N") == differences(LONG, result).sum()


def test_deletion_and_insertion_rates() -> None:
    deleted = damaged(LONG, deletion=0.002)
    assert within_binomial(len(LONG) - len(deleted), len(LONG), 0.002)
    inserted = damaged(LONG, insertion=0.002)
    assert within_binomial(len(inserted) - len(LONG), len(LONG), 0.002)


def test_inserted_bases_follow_kept_letters_only() -> None:
    assert damaged("ACGT" * 20, deletion=1.0, insertion=1.0) == ""
    result = damaged("N" * 300, insertion=1.0)  # every letter kept, a base after each
    assert result[::2] == "N" * 300 and "N" not in result[1::2] and set(result[1::2]) == set("ACGT")


@given(st.text("ACGT", max_size=200), st.integers(0, 99), st.floats(0, 1))
def test_run_is_one_piece_of_the_given_share(sequence: str, seed: int, share: float) -> None:
    result = damaged(sequence, seed, run=share)
    run = int(share * len(sequence))
    assert len(result) == len(sequence) and result.count("N") == run and "N" * run in result


def test_truncation_cuts_the_tail() -> None:
    assert damaged("ACGTACGTAC", truncation=0.25) == "ACGTACGT"
    assert damaged("ACGT", truncation=1.0) == "" and damaged("", truncation=0.5) == ""


def test_operations_come_in_the_order_of_the_method() -> None:
    """Each pair of operations, one at full strength, shows which came first."""

    sequence = "A" * 400
    masked = damaged(sequence, substitution=1, masking=1)
    assert masked == "N" * 400  # masked after substitution; the other way round, N would stay too
    half = damaged(sequence, substitution=1, masking=0.5)
    assert "A" not in half and 0 < half.count("N") < 400  # every letter was substituted before some were masked
    grown = damaged(sequence, masking=1, insertion=1)
    assert grown[::2] == "N" * 400 and "N" not in grown[1::2]  # what is inserted is not masked any more
    run = damaged(sequence, insertion=1, run=0.5)
    assert run.count("N") == 400  # half of the length after insertion
    cut = damaged(sequence, run=1, truncation=0.25)
    assert cut == "N" * 300  # the run's share is of the length before truncation
    short = damaged(sequence, insertion=1, truncation=0.25)
    assert len(short) == 600


def test_paper_preset_on_a_whole_barcode() -> None:
    sequence = LONG[:658]
    results = [degrade_barcode(sequence, rng(seed)) for seed in range(300)]
    assert np.mean([len(result) for result in results]) == pytest.approx(658 - 65, abs=1)
    longest = [max(map(len, re.findall("N*", result))) for result in results]
    assert np.median(longest) == int(0.05 * 658)
    assert dataclasses.astuple(PAPER) == (0.01, 0.003, 0.002, 0.002, 0.05, 0.10)
    assert degrade_barcode(sequence, rng(1), 2.0) != degrade_barcode(sequence, rng(1), 1.0)


@given(st.text("ACGT", min_size=1, max_size=100), st.integers(1, 120), st.integers(0, 99))
def test_fragment_is_a_window_of_either_strand(sequence: str, length: int, seed: int) -> None:
    result = fragment(sequence, rng(seed), length)
    assert len(result) == min(length, len(sequence))
    assert result in sequence or reverse_complement(result) in sequence
    assert result == fragment(sequence, rng(seed), length)


def test_half_of_the_fragments_are_reverse_complemented_and_starts_are_uniform() -> None:
    sequence, generator = LONG[:300], rng(1)
    fragments = [fragment(sequence, generator, 100) for _ in range(4000)]
    forward = [sequence.find(piece) for piece in fragments if piece in sequence]
    assert within_binomial(len(forward), 4000, 0.5)
    assert min(forward) == 0 and max(forward) == 200 and np.mean(forward) == pytest.approx(100, abs=7)


def test_fragment_length_must_be_positive() -> None:
    with pytest.raises(ValueError, match="fragment length: got 0, allowed: 1 or more"):
        fragment("ACGT", rng(), 0)


@pytest.mark.parametrize("k", [1, 3, 7, 31])
def test_blur_is_the_mean_of_a_mirrored_square(k: int) -> None:
    image = rng().integers(0, 256, (24, 18, 3)).astype(np.uint8)
    half = k // 2
    padded = np.pad(image.astype(np.float64), ((half, half), (half, half), (0, 0)), mode="reflect")
    squares = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(0, 1))
    assert np.abs(blur(image, k) - squares.mean(axis=(3, 4))).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("k", [0, 4, -3])
def test_blur_takes_odd_kernels_only(k: int) -> None:
    with pytest.raises(ValueError, match=r"blur kernel: got .* allowed: odd numbers"):
        blur(np.zeros((8, 8, 3), np.uint8), k)
