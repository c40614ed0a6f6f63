"""The log-linear pool: every expert alone is a member, a silent one counts nothing, cells keep what they promise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.specimens.taxonomy import Taxonomy
from tests.train.planted import NAMES, PlantedModel, columns
from train.evaluation import fit_pool
from train.evaluation.crossed import Crossed
from train.inference import evidence
from train.inference.calibration import Calibration, Calibrator, Rule
from train.inference.experts import BARCODE, PHOTO, QUALITIES, Inputs, barcode_quality, mixed, sharpness
from train.inference.pool import ANY, EQUAL, POOL, Cell, Guarantee, Pool, Weight
from train.inference.scoring import Scorer


def weight(expert: str, offset: float = 0.0, slope: float = 0.0, temperature: float = 1.0) -> Weight:
    count = len(QUALITIES[expert])
    return Weight(expert, temperature, QUALITIES[expert], (0.0,) * count, (1.0,) * count, (slope,) * count, offset)


@pytest.fixture
def scorer() -> Scorer:
    taxonomy = Taxonomy.build(columns(list(NAMES)))
    model = PlantedModel(taxonomy)
    return Scorer(model, taxonomy, model.tokenizer)


def inputs(seed: int = 0, count: int = 5) -> Inputs:
    """Random photos and barcodes; the last barcode is missing."""
    rng = np.random.default_rng(seed)
    image, dna = rng.normal(size=(2, count, 16)).astype(np.float32)
    image, dna = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (image, dna))
    dna[-1] = 0
    measured = barcode_quality(["ACGT" * 160] * (count - 2) + ["ACGN" * 10, ""]) | {"sharpness": rng.normal(size=count)}
    return Inputs(image, dna, None, measured)


def test_pool_is_the_normalised_product_of_powers() -> None:
    log_p = [torch.randn(4, 7, generator=torch.Generator().manual_seed(seed)).log_softmax(1) for seed in (0, 1)]
    counts = torch.tensor([[1.0, 1.0], [0.5, 2.0], [0.0, 1.0], [1.0, 0.0]])
    found = mixed(log_p, counts).exp().numpy()
    for row in range(4):
        product = np.prod([one[row].exp().numpy() ** counts[row, m].item() for m, one in enumerate(log_p)], axis=0)
        np.testing.assert_allclose(found[row], product / product.sum(), rtol=1e-4)
    np.testing.assert_allclose(found[2], log_p[1][2].exp().numpy(), rtol=1e-5)
    log_p[0][:, 3] = log_p[1][:, 3] = -torch.inf  # no candidate, also where an expert counts nothing
    again = mixed(log_p, counts).exp()
    assert (again[:, 3] == 0).all() and torch.allclose(again.sum(1), torch.ones(4))


def test_a_missing_modality_counts_exactly_nothing(scorer: Scorer) -> None:
    """The last specimen has no barcode: its answer is that of the photo at its temperature."""
    given = inputs()
    pool = Pool((weight(PHOTO, 0.3, 0.1, temperature=2.0), weight(BARCODE, 1.0)))
    (chunk,) = evidence.pooled(scorer, given, pool)
    photo, barcode = chunk.voices
    assert barcode.weight[-1] == 0 and barcode.species[-1] == -1 and (barcode.weight[:-1] > 0).all()
    only = Pool((replace(pool.weights[0], offset=float(np.log(np.expm1(photo.weight[-1]))), slope=(0.0,) * 3),))
    (alone,) = evidence.pooled(scorer, replace(given, dna=None), only)
    for one, other in zip(chunk.probabilities, alone.probabilities, strict=True):
        np.testing.assert_allclose(one[-1], other[-1], atol=1e-6)
    np.testing.assert_array_equal(chunk.answers.path[-1], alone.answers.path[-1])


def test_every_expert_alone_is_a_member_of_the_family(scorer: Scorer) -> None:
    given = inputs()
    for number, features in enumerate((given.image, given.dna)):
        assert features is not None
        offsets = [float(np.log(np.expm1(1.0))) if place == number else -80.0 for place in range(2)]
        pool = Pool((weight(PHOTO, offsets[0]), weight(BARCODE, offsets[1])))
        (chunk,) = evidence.pooled(scorer, given, pool)
        (single,) = evidence.scored(scorer, features)
        np.testing.assert_array_equal(chunk.answers.path[:-1], single.answers.path[:-1])
        np.testing.assert_allclose(chunk.probabilities[3][:-1], single.probabilities[3][:-1], atol=1e-5)


def test_a_pool_in_chunks_equals_the_whole(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    given, pool = inputs(count=7), Pool((weight(PHOTO, 0.3, 0.2), weight(BARCODE, 1.0, -0.1)))
    (whole,) = evidence.pooled(scorer, given, pool)
    monkeypatch.setattr(
        Scorer, "chunks", lambda self, count: [slice(first, min(count, first + 2)) for first in range(0, count, 2)]
    )
    parts = list(evidence.pooled(scorer, given, pool))
    assert len(parts) == 4
    for name, values in whole.answers.evidence.items():
        np.testing.assert_allclose(np.concatenate([one.answers.evidence[name] for one in parts]), values, atol=1e-6)


def test_a_species_that_is_taken_away_is_never_named(scorer: Scorer) -> None:
    given, pool = inputs(), Pool((weight(PHOTO), weight(BARCODE)))
    (first,) = evidence.pooled(scorer, given, pool)
    gone = first.answers.path[:, 3]
    (second,) = evidence.pooled(scorer, given, pool, without=gone)
    assert (second.answers.path[:, 3] != gone).all()
    among = np.zeros(6, dtype=bool)
    among[[1, 4]] = True
    (third,) = evidence.pooled(scorer, given, pool, among=among)
    assert set(scorer.leaf_of[int(scorer.first[3]) + third.answers.path[:, 3]].tolist()) <= {1, 4}


def cell(bands: tuple[int, ...], answers: str) -> Cell:
    return Cell(bands, answers, BARCODE, 30, 30, 0.0, 0.0, (1.0, 1.0))


def test_a_cell_is_answered_as_val_showed(scorer: Scorer, tmp_path: Path) -> None:
    cells = (cell((ANY, ANY), POOL), cell((0, ANY), BARCODE), cell((1, 0), PHOTO))
    promise = Guarantee({"length": (np.log(100.0),), "sharpness": (0.0,)}, cells)
    measured = {"length": np.log([50.0, 600, 600, 50]), "sharpness": np.array([-1.0, -1, 1, 1])}
    assert promise.who(measured) == [BARCODE, PHOTO, POOL, BARCODE]
    pool = Pool((weight(PHOTO, 0.5), weight(BARCODE, 1.5)), promise)
    qualities = [np.zeros((4, 3)), np.zeros((4, 4))]
    speaks = [np.ones(4, dtype=bool), np.array([True, True, True, False])]
    counts = pool.counts(qualities, speaks, measured)
    np.testing.assert_array_equal(counts[:2], [[0, 1], [1, 0]])
    np.testing.assert_allclose(counts[2], np.log1p(np.exp([0.5, 1.5])))
    assert counts[3, 1] == 0 and counts[3, 0] > 0  # its barcode says nothing, so that the photo answers all the same
    rule = Rule(("a",), (0.0,), (1.0,), (1.0,), 0.0)
    saved = Calibration("print", {"pooled": Calibrator((rule,) * 4, rule, 0.5, (rule,) * 4, pool)})
    saved.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == saved


def test_blur_takes_sharpness_and_contrast_does_not() -> None:
    from engine.signals.degrade import blur

    photo = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    found = [sharpness(photo), sharpness(blur(photo, 3)), sharpness(blur(photo, 15))]
    assert found == sorted(found, reverse=True)
    assert sharpness((photo // 2).astype(np.uint8)) == pytest.approx(found[0], abs=0.02)
    assert np.isfinite([sharpness(np.zeros((8, 8, 3), np.uint8)), sharpness(np.zeros((1, 1, 3), np.uint8))]).all()


def asked(count: int, seed: int, photo: float, barcode: float) -> Crossed:
    """Cases of 30 species of 10 genera; the experts' logits favour the truth by `photo` and `barcode` times quality."""
    rng = np.random.default_rng(seed)
    lineages = np.stack([np.zeros(30), np.arange(30) // 15, np.arange(30) // 3, np.arange(30)], axis=1).astype(np.int64)
    truth = rng.integers(0, 30, count)
    own = np.eye(30)[truth]
    sharp, length = rng.random((2, count))
    log_p = [
        torch.from_numpy(rng.normal(size=(count, 30)) + strength * good[:, None] * own).float().log_softmax(1)
        for strength, good in ((photo, sharp), (barcode, length))
    ]
    zeros = np.zeros(count)
    return Crossed(
        (PHOTO, BARCODE),
        torch.stack(log_p, dim=1),
        torch.zeros(count, 30),
        np.tile(np.arange(30), (count, 1)),
        (np.column_stack([sharp, zeros, zeros]), np.column_stack([length, zeros, zeros, zeros])),
        np.ones((count, 2), dtype=bool),
        {"length": np.log(50 + 600 * length), "n_share": zeros, "sharpness": sharp},
        lineages[truth],
        lineages,
        np.arange(count) // 2,
        np.full(count, 1 / count),
        np.full(count, "clean/clean"),
    )


def test_weights_follow_quality_and_the_pool_beats_both() -> None:
    cases, every = asked(2000, 0, 6.0, 9.0), np.ones(2000, dtype=bool)
    pool = fit_pool.fit_weights(cases, every)
    photo, barcode = pool.weights
    assert photo.slope[0] > 0 and barcode.slope[0] > 0 and photo.slope[1] == pytest.approx(0, abs=1e-3)
    fresh = asked(2000, 1, 6.0, 9.0)
    both = fit_pool.right(fresh, fit_pool.counts_of(pool, fresh), pool)
    for number in range(2):
        alone = fit_pool.right(fresh, np.eye(2)[[number] * 2000], pool)
        assert (both.mean(axis=0) > alone.mean(axis=0) + 0.05).all()
    assert (
        fit_pool.right(fresh, np.eye(2)[[0] * 2000], pool)[:, 0]
        == (fresh.log_p[:, 0].argmax(1).numpy() == fresh.labels[:, 3])
    ).mean() > 0.9


def test_the_pool_stands_only_where_val_shows_that_it_may() -> None:
    """It answers where it is better; where it is worse, or never differs in few groups, the best expert does."""
    count = 6000
    cases, rng = asked(count, 2, 6.0, 9.0), np.random.default_rng(0)
    alone = rng.random((count, 2, 2)) < [[[0.3, 0.5], [0.8, 0.9]]]
    better = alone[:, 1] | (rng.random((count, 2)) < 0.5)
    worse = alone[:, 1] & (rng.random((count, 2)) < 0.9)
    counts = np.ones((count, 2))
    short = cases.measured["length"] < np.log(125)
    found = fit_pool.guarantee(cases, np.where(short[:, None], better, worse), alone, counts)
    by_length = {one.bands[0]: one.answers for one in found.cells if one.bands[1:] == (ANY, ANY)}
    assert by_length[1] == by_length[2] == POOL and by_length[5] == by_length[6] == BARCODE
    assert all(one.low < one.difference and one.groups >= 20 and one.best == BARCODE for one in found.cells)
    same = fit_pool.guarantee(cases, alone[:, 1], alone, counts)
    answers = {one.bands: one.answers for one in same.cells}
    assert answers[ANY, ANY, ANY] == POOL  # 3,000 groups without a loss
    assert {one.answers for one in same.cells if one.groups < 300} == {BARCODE}
    equal = fit_pool.guarantee(cases, better, alone, counts, alone[:, 1])
    assert {one.best for one in equal.cells} == {EQUAL} and {one.answers for one in equal.cells} == {POOL, EQUAL}


def test_equal_takes_every_expert_at_its_word(scorer: Scorer) -> None:
    """Whatever the fitted weights and temperatures are: the product of what the experts say, as before the pool."""
    given = inputs()
    weights = (weight(PHOTO, 0.3, 0.1, temperature=2.0), weight(BARCODE, 1.0, temperature=0.5))
    promise = Guarantee({"length": (0.5,)}, (Cell((ANY,), EQUAL, EQUAL, 30, 30, 0.0, 0.0, (1.0, 1.0)),))
    (chunk,) = evidence.pooled(scorer, given, Pool(weights, promise))
    one = Pool((weight(PHOTO, float(np.log(np.expm1(1.0)))), weight(BARCODE, float(np.log(np.expm1(1.0))))))
    (plain,) = evidence.pooled(scorer, given, one)
    np.testing.assert_allclose(chunk.probabilities[3], plain.probabilities[3], atol=1e-5)
    assert chunk.voices[1].weight[-1] == 0
