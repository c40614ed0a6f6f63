"""Calibrated rules against scikit-learn and simulated truth; the file; reliability; withheld species."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from engine.specimens.taxonomy import RANKS, Taxonomy
from tests.train.planted import PlantedModel
from train.evaluation import calibrate, fit_rules, reliability
from train.evaluation.fit_rules import Cases, fit_rule
from train.inference import calibration, evidence
from train.inference.calibration import Calibration, Rule, back_off
from train.inference.evidence import Answers
from train.inference.scoring import Scorer


def draws(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, 2] and right answers whose chance is a logistic function of them."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(count, 2)) * [3.0, 0.1] + [5.0, 0.0]
    return columns, rng.random(count) < calibration.sigmoid(0.8 * (columns[:, 0] - 5) + 9 * columns[:, 1] + 1)


def test_rule_equals_scikit_learns_logistic_regression() -> None:
    columns, right = draws(800, 0)
    weight = np.random.default_rng(1).random(800)
    rule = fit_rule(("a", "b"), columns, right, weight)
    scaled = (columns - np.array(rule.mean)) / np.array(rule.spread)
    theirs = LogisticRegression(C=1e6, tol=1e-10, max_iter=1000).fit(scaled, right, sample_weight=weight)
    np.testing.assert_allclose(rule(columns), theirs.predict_proba(scaled)[:, 1], atol=0.005)


@pytest.mark.parametrize("right", [True, False])
def test_rule_of_an_answer_that_never_errs_is_finite(right: bool) -> None:
    rule = fit_rule(("a",), np.arange(50.0)[:, None], np.full(50, right), np.ones(50))
    chance = rule(np.array([[0.0], [49.0], [500.0]]))
    assert np.isfinite(chance).all() and (np.abs(chance - right) < 0.05).all()
    apart = fit_rule(("a",), np.arange(50.0)[:, None], np.arange(50) > 24, np.ones(50))
    assert np.isfinite(apart.weight).all() and apart(np.array([[0.0], [49.0]]))[1] > 0.95
    with pytest.raises(ValueError, match="no query to fit on"):
        fit_rule(("a",), np.ones((3, 1)), np.ones(3, dtype=bool), np.zeros(3))


def simulated_cases(count: int, seed: int) -> Cases:
    """Cases whose chance to be right falls from order to species and depends on two inputs."""
    rng = np.random.default_rng(seed)
    ease, hint = rng.normal(size=count), rng.normal(size=count)
    level = ease[:, None] + np.array([5.0, 3.0, 1.0, 0.0])
    right = rng.random((count, 4)) < calibration.sigmoid(2 * level + 2 * hint[:, None])
    withheld = ~right[:, 3] & (rng.random(count) < 0.5)
    ones = np.ones(count, dtype=bool)
    told = {"probability": level + 0.1 * rng.normal(size=(count, 4)), "hint": hint}
    return Cases(
        Answers(np.zeros((count, 4), dtype=int), told),
        right,
        np.ones((count, 4), dtype=bool),
        withheld,
        ones,
        np.column_stack([np.zeros((count, 3), dtype=bool), withheld]),
        np.arange(count),
        np.full(count, 1 / count),
    )


def test_probabilities_mean_what_they_say_and_never_rise() -> None:
    calibrator = fit_rules.fit_query(simulated_cases(4000, 0), ("probability", "hint"))
    fresh = simulated_cases(4000, 1)
    told = calibrator.probabilities(fresh.answers.evidence)
    assert (np.diff(told, axis=1) <= 0).all()
    for rank in range(4):
        assert reliability.calibration_error(told[:, rank], fresh.right[:, rank]) < 0.02
        chosen = told[:, rank] >= 0.95
        assert fresh.right[chosen, rank].mean() > 0.95
    seen = ~fresh.withheld
    assert calibrator.is_novel(fresh.answers.evidence)[seen].mean() < 0.05
    blind = fit_rules.fit_query(simulated_cases(4000, 0), ("probability",))
    own, less = (one.probabilities(fresh.answers.evidence)[:, 3] for one in (calibrator, blind))
    areas = [reliability.risk_coverage(told, fresh.right[:, 3])[1] for told in (own, less)]
    assert areas[0] < areas[1]  # further evidence helps without any change of the code


def test_back_off_ends_at_the_deepest_rank_past_the_threshold() -> None:
    told = np.array([[0.99, 0.97, 0.96, 0.95], [0.99, 0.96, 0.5, 0.2], [0.9, 0.8, 0.1, 0.0]])
    assert back_off(told, 0.95).tolist() == [3, 1, -1]
    assert back_off(told, 0.5).tolist() == [3, 2, 1]


def test_parent_is_never_below_its_child_whatever_the_rules_say() -> None:
    rule = Rule(("probability",), (0.0,), (1.0,), (1.0,), 0.0)
    always = dataclasses.replace(rule, weight=(0.0,), offset=3.0)
    one = calibration.Calibrator((rule, rule, always, rule), rule, 0.5, (always,) * 4)
    found = one.probabilities({"probability": np.full((1, 4), -2.0)})
    np.testing.assert_allclose(found[0], calibration.sigmoid(np.array([3.0, 3.0, 3.0, -2.0])))
    with pytest.raises(ValueError, match="evidence probability is missing, got cosine"):
        one.probabilities({"cosine": np.zeros(1)})


def test_a_rank_is_never_more_probable_than_members_so_far_away(tmp_path: Path) -> None:
    sure = Rule(("rate",), (0.0,), (1.0,), (0.0,), 9.0)
    far, near = calibration.Cap("rate", (0.1, 0.3), (1.0, 0.0)), calibration.Cap("rate", (0.0, 0.1), (1.0, 0.5))
    one = calibration.Calibrator((sure,) * 4, sure, 0.5, (sure,) * 4, caps=(far, near, far, far))
    told = one.probabilities({"rate": np.array([[0.0] * 4, [0.2] * 4, [0.9] * 4])})
    np.testing.assert_allclose(told, [[calibration.sigmoid(9.0)] * 4, [0.5] * 4, [0.0] * 4])
    Calibration("print", {"library": one}).save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json").queries["library"] == one


def test_unknown_taxa_are_shares_of_what_a_rank_loses() -> None:
    calibrator = fit_rules.fit_query(simulated_cases(4000, 0), ("probability", "hint"))
    fresh = simulated_cases(4000, 1)
    told = calibrator.probabilities(fresh.answers.evidence)
    unknown = calibrator.unknown_taxa(fresh.answers.evidence)
    lost = np.column_stack([np.ones(len(told)), told[:, :-1]]) - told
    assert (unknown >= 0).all() and (unknown <= lost + 1e-12).all()
    assert (told[:, 3] + unknown.sum(axis=1) <= 1 + 1e-9).all()
    new_species = fresh.right[:, 2] & fresh.withheld
    assert abs(unknown[:, 3].mean() - new_species.mean()) < 0.02
    assert reliability.calibration_error(unknown[:, 3], new_species) < 0.02
    np.testing.assert_allclose(unknown[:, :3], 0, atol=0.01)  # no other rank has an unknown taxon


def test_file_of_the_format_before_is_refused_with_the_command_to_fit_anew(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"format_version": 2}')
    with pytest.raises(ValueError, match=r"got format version 2.*python -m train\.evaluate --calibration"):
        Calibration.load(tmp_path / "c.json")


def test_file_gives_back_the_same_probabilities(tmp_path: Path) -> None:
    cases = simulated_cases(300, 2)
    calibrator = fit_rules.fit_query(cases, ("probability", "hint"))
    pair = calibration.Disagreement(Rule(("a",), (0.0,), (1.0,), (1.0,), 0.0), 0.5)
    Calibration("print", {"dna": calibrator}, pair).save(tmp_path / "c.json")
    loaded = Calibration.load(tmp_path / "c.json")
    assert loaded == Calibration("print", {"dna": calibrator}, pair)
    found = loaded.queries["dna"].probabilities(cases.answers.evidence)
    np.testing.assert_array_equal(found, calibrator.probabilities(cases.answers.evidence))
    Calibration("print", {}).save(tmp_path / "d.json")
    assert Calibration.load(tmp_path / "d.json").disagreement is None
    (tmp_path / "d.json").write_text('{"format_version": 9}')
    with pytest.raises(ValueError, match="format version 9"):
        Calibration.load(tmp_path / "d.json")
    with pytest.raises(ValueError, match="allowed: a file written by"):
        Calibration.load(tmp_path / "none.json")


def test_bins_equal_scikit_learns_quantile_bins() -> None:
    rng = np.random.default_rng(0)
    told = rng.random(1000)
    right = rng.random(1000) < told
    own = reliability.bin_means(told, right)
    theirs = calibration_curve(right, told, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(own[1], theirs[0], atol=1e-9)
    np.testing.assert_allclose(own[0], theirs[1], atol=1e-9)
    assert own[2].tolist() == [100.0] * 10


def test_calibration_error_has_less_bias_than_the_plain_one() -> None:
    rng = np.random.default_rng(3)
    perfect, off, plain = [], [], []
    for _ in range(100):
        told = rng.uniform(0.6, 1.0, 400)
        perfect.append(reliability.calibration_error(told, rng.random(400) < told))
        off.append(reliability.calibration_error(told, rng.random(400) < told - 0.1))
        means = reliability.bin_means(told, rng.random(400) < told)
        plain.append(np.abs(means[0] - means[1]).mean())
    assert np.mean(perfect) < 0.7 * np.mean(plain)
    assert np.mean(off) == pytest.approx(0.1, abs=0.015)
    mean, high = reliability.error_if_perfect(np.random.default_rng(1).uniform(0.6, 1.0, 400))
    assert mean == pytest.approx(np.mean(perfect), abs=0.006) and high > mean


@pytest.mark.parametrize("error", [0.05, 0.15])
@pytest.mark.middle
def test_interval_of_the_calibration_error_holds_the_truth(error: float) -> None:
    rng = np.random.default_rng(5)
    held, trials = 0, 60
    for trial in range(trials):
        told = rng.uniform(0.5, 0.9, 300)
        right = rng.random(300) < told - error
        low, high = reliability.error_interval(told, right, np.arange(300), 60, trial)
        assert low <= reliability.calibration_error(told, right, seed=trial) <= high
        held += low <= error <= high
    assert held / trials > 0.85


def test_risk_falls_with_confidence() -> None:
    told = np.linspace(1, 0, 100)
    risk, area = reliability.risk_coverage(told, told > 0.5)
    assert risk[9] == 0.0 and risk[-1] == 0.5 and 0 < area < 0.5


@pytest.fixture
def scorer(taxonomy: Taxonomy) -> Scorer:
    model = PlantedModel(taxonomy)
    return Scorer(model, taxonomy, model.tokenizer)


def test_path_is_one_lineage_and_a_withheld_species_is_never_named(scorer: Scorer, taxonomy: Taxonomy) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 16)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = evidence.answers(scorer, features)
    for path in found.path:
        np.testing.assert_array_equal(taxonomy.candidates(3)[path[3]], path)
    assert (np.diff(found.evidence["probability"], axis=1) <= 1e-9).all()
    gone = found.path[:, 3]
    again = evidence.answers(scorer, features, gone)
    assert (again.path[:, 3] != gone).all()
    assert (again.evidence["cosine"] <= found.evidence["cosine"] + 1e-6).all()
    kept = evidence.answers(scorer, features, np.full(60, -1))
    np.testing.assert_array_equal(kept.path, found.path)


def test_agreement_is_the_overlap_of_both_answers(scorer: Scorer) -> None:
    axes = np.eye(16, dtype=np.float32)
    same = evidence.agreement(scorer, axes[[0, 0, 0]], axes[[0, 1, 3]])
    species, order = same["agreement_species"], same["agreement_order"]
    assert species[0] > species[1] == pytest.approx(species[2], abs=1e-5)
    assert order[0] == pytest.approx(order[1], abs=1e-5) and order[1] > order[2]


def test_swapped_pairs_differ_where_they_should() -> None:
    labels = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4], [1, 2, 3, -1]])
    found = calibrate.swaps(labels)
    for kind, rank in (("genus", 3), ("family", 2), ("order", 1), ("orders", 0)):
        rows, partners = found[kind]
        assert (labels[rows, rank] != labels[partners, rank]).all()
        assert rank == 0 or (labels[rows, rank - 1] == labels[partners, rank - 1]).all()
    assert found["genus"][0].tolist() == [0, 1]
    assert calibrate.swaps(labels[:1]) == {}
    assert calibrate.precision_at(1.0, 0.02) == pytest.approx(0.02 / (0.02 + 0.98 * 0.02))


def test_quantile_by_weight() -> None:
    values, weight = np.array([0.1, 0.2, 0.3]), np.array([1.0, 8.0, 1.0])
    assert 0.2 < fit_rules.weighted_quantile(values, weight, 0.9) < 0.3
    assert RANKS[fit_rules.SPECIES] == "species"
    assert fit_rules.flagged_share(10) == 0.005 < fit_rules.flagged_share(300) < fit_rules.flagged_share(30_000) < 0.05
