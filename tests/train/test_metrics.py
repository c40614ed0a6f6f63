"""Accuracies against scikit-learn and hand-computed answers; intervals against simulated truth."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from train import metrics


def test_micro_and_macro_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 7, (2, 500))
    correct = truth == answer
    assert metrics.micro(correct, np.ones(500, dtype=bool)) == pytest.approx(accuracy_score(truth, answer))
    assert metrics.macro(correct, truth) == pytest.approx(balanced_accuracy_score(truth, answer))


def test_unknown_truth_and_masked_rows_count_nowhere() -> None:
    positions = np.array([[0], [3], [metrics.MISSED], [metrics.UNSCORED], [0]])
    classes = np.array([[4], [4], [5], [-1], [6]])
    mask = np.array([True, True, True, True, False])
    result = metrics.accuracies(positions, classes, mask)
    assert result["order/top1"] == pytest.approx(1 / 3)
    assert result["order/top5"] == pytest.approx(2 / 3)
    assert result["order/macro_top1"] == pytest.approx((1 / 2 + 0) / 2)
    assert result["order/macro_top5"] == pytest.approx((1 + 0) / 2)
    assert (result["order/rows"], result["order/taxa"]) == (3, 2)


def test_nobody_to_score_is_nan_and_not_zero() -> None:
    result = metrics.accuracies(np.full((3, 1), metrics.UNSCORED), np.full((3, 1), -1), np.ones(3, dtype=bool))
    assert np.isnan(result["order/top1"]) and np.isnan(result["order/macro_top1"])
    assert result["order/rows"] == 0


def test_true_classes_tell_taxa_of_different_ranks_apart() -> None:
    labels = np.array([[1, 2, -1, -1], [1, -1, 2, -1], [-1, -1, -1, -1], [1, 2, -1, -1]])
    whole = metrics.true_classes(labels)[:, -1]
    assert whole[0] == whole[3] != whole[1]
    assert whole[2] == -1


def test_intervals_equal_a_plain_bootstrap_loop() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 12, 60)
    groups[:12] = np.arange(12)
    correct, population = rng.random((60, 2)) < 0.7, rng.random((60, 2)) < 0.8
    found = metrics.intervals(correct, population, groups, resamples=200, seed=3)
    drawn = []
    generator = np.random.default_rng(3)
    for _ in range(200):
        rows = np.concatenate([np.flatnonzero(groups == g) for g in generator.integers(0, 12, 12)])
        drawn.append([(correct[rows, m] & population[rows, m]).sum() / population[rows, m].sum() for m in range(2)])
    np.testing.assert_allclose(found, np.percentile(drawn, [2.5, 97.5], axis=0).T, atol=1e-6)


def test_interval_of_an_empty_population_is_nan() -> None:
    none = np.zeros((4, 1), dtype=bool)
    assert np.isnan(metrics.intervals(none, none, np.arange(4), resamples=20)).all()
    assert np.isnan(metrics.intervals(none[:0], none[:0], np.arange(0), resamples=20)).all()


def test_macro_interval_equals_a_plain_bootstrap_loop() -> None:
    rng = np.random.default_rng(4)
    groups, classes, correct = rng.integers(0, 9, 70), rng.integers(-1, 4, 70), rng.random(70) < 0.6
    found = metrics.macro_interval(correct, classes, groups, resamples=120, seed=2)
    names = np.unique(groups[classes >= 0])
    generator, drawn = np.random.default_rng(2), []
    for _ in range(120):
        chosen = names[generator.integers(0, len(names), len(names))]
        rows = np.concatenate([np.flatnonzero((groups == name) & (classes >= 0)) for name in chosen])
        drawn.append(
            recall_score(
                classes[rows],
                np.where(correct[rows], classes[rows], 9),
                average=None,
                labels=np.unique(classes[rows]),
                zero_division=0,
            ).mean()
        )
    np.testing.assert_allclose(found, np.percentile(drawn, [2.5, 97.5]), atol=1e-6)
    assert np.isnan(metrics.macro_interval(correct, np.full(70, -1), groups, resamples=5)).all()


def test_interval_of_a_flawless_answer_is_the_exact_bound_of_its_groups() -> None:
    everyone = np.ones((30, 2), dtype=bool)
    correct = np.column_stack([everyone[:, 0], ~everyone[:, 0]])
    found = metrics.intervals(correct, everyone, np.arange(30) // 2, resamples=20)
    exact = binomtest(15, 15).proportion_ci(method="exact")
    np.testing.assert_allclose(found, [[exact.low, 1], [0, 1 - exact.low]], rtol=1e-6)
    assert metrics.macro_interval(correct[:, 0], np.arange(30) // 10, np.arange(30) // 2, 20)[0] == found[0, 0]


@pytest.mark.parametrize("macro", [False, True])
def test_paired_difference_equals_a_plain_bootstrap_loop(macro: bool) -> None:
    rng = np.random.default_rng(2)
    groups, classes = rng.integers(0, 15, 80), rng.integers(0, 4, 80)
    first, second = rng.random(80) < 0.8, rng.random(80) < 0.6
    found = metrics.paired_difference(first, second, groups, classes if macro else None, resamples=150, seed=5)

    def accuracy(correct: np.ndarray, rows: np.ndarray) -> float:
        return balanced(correct[rows], classes[rows]) if macro else float(correct[rows].mean())

    def balanced(correct: np.ndarray, kinds: np.ndarray) -> float:
        return float(np.mean([correct[kinds == kind].mean() for kind in np.unique(kinds)]))

    names, generator, drawn = np.unique(groups), np.random.default_rng(5), []
    for _ in range(150):
        chosen = names[generator.integers(0, len(names), len(names))]
        rows = np.concatenate([np.flatnonzero(groups == name) for name in chosen])
        drawn.append(accuracy(first, rows) - accuracy(second, rows))
    everyone = np.arange(80)
    assert found.value == pytest.approx(accuracy(first, everyone) - accuracy(second, everyone))
    np.testing.assert_allclose((found.low, found.high), np.percentile(drawn, [2.5, 97.5]), atol=1e-6)
    assert (found.rows, found.groups) == (80, len(names))


def test_paired_difference_needs_specimens() -> None:
    nobody = np.zeros(0, dtype=bool)
    with pytest.raises(ValueError, match="got none"):
        metrics.paired_difference(nobody, nobody, np.zeros(0, dtype=int))


def test_group_intervals_cover_the_truth_where_row_intervals_do_not() -> None:
    rng = np.random.default_rng(7)
    covered = {"groups": 0, "rows": 0}
    trials, num_groups, copies = 150, 80, 5
    for trial in range(trials):
        chance = rng.beta(2, 1, num_groups)  # mean 2/3; copies of a barcode succeed or fail nearly together
        groups = np.repeat(np.arange(num_groups), copies)
        correct = (rng.random(num_groups) < chance)[groups][:, None]
        everyone = np.ones_like(correct)
        for kind, units in (("groups", groups), ("rows", np.arange(len(groups)))):
            low, high = metrics.intervals(correct, everyone, units, resamples=200, seed=trial)[0]
            covered[kind] += low <= 2 / 3 <= high
    assert covered["groups"] / trials > 0.88
    assert covered["rows"] / trials < 0.75


@pytest.mark.parametrize("kind", ["macro", "paired"])
def test_macro_and_paired_intervals_cover_the_truth(kind: str) -> None:
    rng = np.random.default_rng(11)
    covered, trials, num_groups = 0, 120, 240
    classes = np.repeat(np.arange(12), num_groups // 12)  # of each group; a group is 3 specimens of one answer
    chance, other = np.linspace(0.5, 0.95, 12), np.full(12, 0.6)
    for trial in range(trials):
        first, second = (np.repeat(rng.random(num_groups) < p[classes], 3) for p in (chance, other))
        kinds, groups = np.repeat(classes, 3), np.repeat(np.arange(num_groups), 3)
        if kind == "macro":
            low, high = metrics.macro_interval(first, kinds, groups, resamples=200, seed=trial)
            covered += low <= chance.mean() <= high
        else:
            gap = metrics.paired_difference(first, second, groups, resamples=200, seed=trial)
            covered += gap.low <= chance.mean() - other.mean() <= gap.high
    assert 0.89 < covered / trials <= 1.0
