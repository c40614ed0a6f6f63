"""Damage in training: off it changes nothing; on it depends on the specimen and the epoch, not on the batch."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.batches.collate import Batch
from engine.batches.pipeline import CpuBudget, evaluation_batches, load_index, select_split, training_batches
from engine.batches.prepare import Prepare
from engine.config import DataConfig, RobustConfig
from engine.signals import damage
from engine.signals.barcodes import orient_batch, reverse_complement
from engine.signals.degrade import PAPER, BarcodePreset, blur, degrade_batch
from engine.specimens.schema import rng_for
from tests.engine.batches.test_pipeline import opened

BASES = np.random.default_rng(7).choice(list("ACGT"), 200_000)
LONG = "".join(BASES)
NONE = BarcodePreset(substitution=0, masking=0, deletion=0, insertion=0, run=0, truncation=0)
PIECES = RobustConfig(dna=1.0, max_severity=0.0, fragments=1.0)  # fragments of whole letters
ALL = RobustConfig(dna=0.7, image=0.7, withheld=0.5)
BARCODES = st.lists(st.text("ACGTN", max_size=120), max_size=6)


def batch_of(sequences: Sequence[str], severity: float, preset: BarcodePreset = PAPER) -> list[str]:
    rngs = [rng_for(0, 0, str(row), "test") for row in range(len(sequences))]
    return degrade_batch(sequences, rngs, np.full(len(sequences), severity), preset)


def within_binomial(count: int, trials: int, rate: float) -> bool:
    return abs(count - trials * rate) <= 5 * np.sqrt(trials * rate * (1 - rate))


def differences(one: str, other: str) -> np.ndarray:
    return np.frombuffer(one.encode(), np.uint8) != np.frombuffer(other.encode(), np.uint8)


@pytest.mark.parametrize("operation", ["substitution", "masking", "deletion", "insertion"])
@pytest.mark.parametrize("severity", [1.0, 4.0])
def test_rates_of_a_batch(operation: str, severity: float) -> None:
    """200,000 letters in 40 barcodes: the operation, and no other, happens as often as the preset says."""
    rate = getattr(PAPER, operation)
    rows = [LONG[first : first + 5000] for first in range(0, len(LONG), 5000)]
    damaged = batch_of(rows, severity, dataclasses.replace(NONE, **{operation: rate}))
    grown = sum(map(len, damaged)) - len(LONG)
    if operation in ("deletion", "insertion"):
        assert within_binomial(abs(grown), len(LONG), severity * rate)
        assert (grown > 0) == (operation == "insertion")
        return
    changed = differences(LONG, "".join(damaged))
    assert grown == 0 and within_binomial(changed.sum(), len(LONG), severity * rate)
    to = [letter for letter, hit in zip("".join(damaged), changed, strict=True) if hit]
    if operation == "masking":
        assert set(to) == {"N"}
    else:
        assert all(within_binomial(to.count(base), len(to), 1 / 4) for base in "ACGT")


def test_operations_of_a_batch_come_in_the_order_of_the_method() -> None:
    """Each pair of operations, one at (nearly) full strength, shows which came first."""

    def damaged(**rates: float) -> str:
        return batch_of(["A" * 400], 1.0, dataclasses.replace(NONE, **rates))[0]

    assert damaged(substitution=1, masking=1) == "N" * 400
    half = damaged(substitution=1, masking=0.5)
    assert "A" not in half and 100 < half.count("N") < 300
    grown = damaged(masking=1, insertion=1)
    assert grown[::2] == "N" * 400 and "N" not in grown[1::2]
    assert damaged(insertion=1, run=0.5).count("N") == 400  # half of the length after insertion
    assert damaged(run=1, truncation=0.25) == "N" * 300
    assert damaged(deletion=1, insertion=1) == ""


def test_runs_of_a_batch_start_anywhere() -> None:
    damaged = batch_of(["A" * 100] * 3000, 1.0, dataclasses.replace(NONE, run=0.1))
    starts = np.array([sequence.find("N" * 10) for sequence in damaged])
    assert {sequence.count("N") for sequence in damaged} == {10}
    assert starts.min() == 0 and starts.max() == 90 and starts.mean() == pytest.approx(45, abs=3)


@given(BARCODES, st.floats(0, 9))
def test_a_barcode_in_a_batch_equals_itself_alone(sequences: list[str], severity: float) -> None:
    together = batch_of(sequences, severity)
    for row, sequence in enumerate(sequences):
        alone = degrade_batch([sequence], [rng_for(0, 0, str(row), "test")], np.array([severity]))
        assert alone == [together[row]]
    assert all(set(sequence) <= set("ACGTN") for sequence in together)
    assert batch_of(sequences, 0.0) == sequences


@given(st.lists(st.text("ACGT", min_size=0, max_size=300), max_size=6), st.integers(0, 9), st.booleans())
def test_fragments_lie_in_the_barcode(sequences: list[str], epoch: int, orient: bool) -> None:
    keys = [str(row) for row in range(len(sequences))]
    for whole, piece in zip(sequences, damage.damaged_barcodes(sequences, keys, 0, epoch, PIECES, orient), strict=True):
        assert piece in whole or reverse_complement(piece) in whole
        assert min(len(whole), PIECES.min_fragment) <= len(piece) <= len(whole)
        if orient:
            assert orient_batch([piece]) == [piece]


def test_lengths_are_log_uniform_starts_and_strands_uniform() -> None:
    whole = LONG[:650]
    keys = [str(row) for row in range(4000)]
    pieces = damage.damaged_barcodes([whole] * len(keys), keys, 0, 0, PIECES, orient=False)
    lengths = np.array([len(piece) for piece in pieces])
    assert lengths.min() == 50 and lengths.max() == 650
    assert np.log(lengths).mean() == pytest.approx(np.log(50 * 650) / 2, abs=0.04)
    assert within_binomial((lengths < 180).sum(), len(keys), 0.4994)  # (ln 179.5 - ln 50) / (ln 650 - ln 50)
    forward = [piece in whole for piece in pieces]
    assert within_binomial(sum(forward), len(keys), 0.5)
    short = [whole.find(p) / (650 - len(p)) for p, on in zip(pieces, forward, strict=True) if on and len(p) < 200]
    assert np.mean(short) == pytest.approx(0.5, abs=0.06)


def test_half_of_the_severities_are_below_a_quarter_of_the_largest() -> None:
    """Seen in how much of the tail is cut: 10% of the length at severity 1."""
    keys = [str(row) for row in range(3000)]
    whole = dataclasses.replace(PIECES, max_severity=4.0, fragments=0.0)
    lengths = np.array([len(s) for s in damage.damaged_barcodes([LONG[:600]] * 3000, keys, 0, 0, whole, orient=False)])
    assert (lengths > 540).mean() == pytest.approx(0.5, abs=0.04)
    assert lengths.min() == pytest.approx(360, abs=10)


def test_shares() -> None:
    keys = [str(row) for row in range(3000)]
    config = RobustConfig(dna=0.3, fragments=0.0, image=0.4, withheld=0.2, max_kernel=9)
    damaged = damage.damaged_barcodes([LONG[:600]] * len(keys), keys, 0, 0, config, orient=False)
    assert within_binomial(sum(sequence != LONG[:600] for sequence in damaged), len(keys), 0.3)
    kernels = np.array(damage.blur_kernels(keys, 0, 0, config))
    assert within_binomial((kernels[:, 0] > 0).sum(), len(keys), 0.4)
    assert within_binomial(((kernels > 0).all(axis=1)).sum(), len(keys), 0.16)  # each view by itself
    used, counts = np.unique(kernels[kernels > 0], return_counts=True)
    assert used.tolist() == [3, 5, 7, 9] and all(within_binomial(count, counts.sum(), 0.25) for count in counts)
    missing = damage.withheld(keys, 0, 0, config)
    assert all(within_binomial((missing == kind).sum(), len(keys), 0.1) for kind in (damage.IMAGE, damage.DNA))
    assert not np.array_equal(missing, damage.withheld(keys, 0, 1, config))


@pytest.fixture(scope="module")
def data(simulated_shards: Path) -> DataConfig:
    return DataConfig(shards=(str(simulated_shards),), image_size=32, rows_per_task=64)


def differing(a: Batch, b: Batch) -> set[str]:
    """Names of the columns that are not the same in both batches, bit by bit."""
    names = (set(a) | set(b)) - {"keys"}
    same = {name for name in names & set(a) & set(b) if isinstance(a[name], list) or torch.equal(a[name], b[name])}  # type: ignore[literal-required]
    return names - same


def test_off_leaves_every_batch_as_it_is_and_each_share_changes_its_own_columns(data: DataConfig) -> None:
    specimens, plan, _ = opened(data)

    def batch(**shares: float) -> Batch:
        robust = RobustConfig(max_severity=2.0, fragments=0.9, other_strand=0.1, max_kernel=5) if not shares else None
        config = dataclasses.replace(data, robust=robust or RobustConfig(**shares))
        return next(training_batches(specimens, plan, config, (0, 1), (0, 1), None))

    plain = next(training_batches(specimens, plan, data, (0, 1), (0, 1), None))
    assert differing(plain, batch()) == set()  # the other settings without a share
    assert differing(plain, batch(dna=1.0)) == {"dna_tokens", "dna_mask"}
    assert differing(plain, batch(image=1.0)) == {"image", "image_view2"}
    assert differing(plain, batch(withheld=0.5)) == {"withheld"}


def test_damage_is_the_specimens_own_at_any_batch_worker_and_through_ray(data: DataConfig, ray_session: None) -> None:
    data = dataclasses.replace(data, robust=ALL)
    specimens, plan, _ = opened(data)
    budget = CpuBudget(execution_cpus=2.0, task_cpus=1.0, object_store_bytes=1e8)
    here = list(training_batches(specimens, plan, data, (5, 8), (0, 1), None))
    through_ray = list(training_batches(specimens, plan, data, (5, 8), (0, 1), budget))
    assert [differing(a, b) for a, b in zip(here, through_ray, strict=True)] == [set()] * 3
    halves = [next(training_batches(specimens, plan, data, (5, 6), (rank, 2), None)) for rank in range(2)]
    for name in ("image", "image_view2", "dna_tokens", "withheld"):
        assert torch.equal(torch.cat([half[name] for half in halves]), here[0][name])
    prepare = Prepare(specimens, data, plan.seed, training=True)
    rows = np.arange(40)
    columns, alone, later = prepare(rows, 1), prepare(rows[7:8], 1), prepare(rows, 2)
    for name in ("image", "dna_tokens", "withheld"):
        assert np.array_equal(columns[name][7:8], alone[name]) and not np.array_equal(columns[name], later[name])


def test_views_are_blurred_after_everything_else(data: DataConfig) -> None:
    specimens, plan, _ = opened(data)
    rows = np.flatnonzero(specimens.image_size > 0)[:30]
    robust = RobustConfig(image=0.5, max_kernel=7)
    sharp = Prepare(specimens, data, plan.seed, training=True)(rows, 1)
    soft = Prepare(specimens, dataclasses.replace(data, robust=robust), plan.seed, training=True)(rows, 1)
    kernels = damage.blur_kernels(specimens.key[rows].astype(str).tolist(), plan.seed, 1, robust)
    for column, view in enumerate(("image", "image_view2")):
        for row, pair in enumerate(kernels):
            expected = blur(sharp[view][row], pair[column]) if pair[column] else sharp[view][row]
            assert np.array_equal(soft[view][row], expected)
    assert {0, 3, 5, 7} == {kernel for pair in kernels for kernel in pair}


@pytest.mark.parametrize("length", [60, 120])
def test_evaluation_measures_fragments(data: DataConfig, length: int) -> None:
    """Pieces of the length asked for, turned to the coding strand; the clean columns stay."""
    degrade = dataclasses.replace(data.degrade, severity=0.0, fragment=length)
    index = select_split(load_index(data.shards), "test")
    _, _, taxonomy = opened(data)
    plain = next(evaluation_batches(index, taxonomy, data, 40))
    cut = next(evaluation_batches(index, taxonomy, dataclasses.replace(data, degrade=degrade), 40))
    assert differing(plain, cut) == {"dna_tokens_noisy", "dna_mask_noisy"}
    there = cut["has_dna"]
    assert set(cut["dna_mask_noisy"].sum(dim=1)[there].tolist()) == {length - data.kmer + 1}
    whole, piece = cut["dna_tokens"][there].tolist(), cut["dna_tokens_noisy"][there].tolist()
    inside = [
        any(long[at : at + length - data.kmer + 1] == part[: length - data.kmer + 1] for at in range(len(long)))
        for long, part in zip(whole, piece, strict=True)
    ]
    assert np.mean(inside) > 0.9  # `orient` turns a few short pieces the wrong way
