"""Outcomes with an unknown species among them: the curve of made probabilities, how answers end, the page's table."""

import numpy as np
import pytest

from train.evaluation.calibrate_library import cases_of
from train.evaluation.known_questions import Cases
from train.inference.evidence import Answers
from train.pages import outcomes


def cases(paths: list[list[int]], truth: list[list[int]], named: list[list[bool]] | None = None) -> Cases:
    """Return answered lineages and true ones, -1 = a taxon that nobody knows."""
    labels = np.array(truth)
    there = np.ones_like(labels, dtype=bool) if named is None else np.array(named)
    return cases_of(Answers(np.array(paths), {}), labels, there)


def test_probabilities_that_are_true_end_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    count = 20_000
    told = np.sort(rng.random((count, 4)), axis=1)[:, ::-1] ** 0.3
    unknown = np.column_stack([np.zeros((count, 3)), 1 - told[:, 3]])
    new = rng.random(count) < unknown[:, 3]
    truth = np.zeros((count, 4), dtype=int)
    truth[new, 3] = -1
    found = outcomes.measure(told, unknown, cases([[0] * 4] * count, truth.tolist()), 0.95)
    assert abs(found["bias"]) < 0.01 and found["right"] > 0.5 and found["auroc"] > 0.6
    points = [(found[f"curve/{place}/told"], found[f"curve/{place}/found"]) for place in range(outcomes.POINTS)]
    assert all(abs(one - other) < 0.01 for one, other in points) and points == sorted(points)
    sure = outcomes.measure(np.ones((count, 4)), 0 * unknown, cases([[0] * 4] * count, truth.tolist()), 0.95)
    assert sure["bias"] == pytest.approx(new.mean())  # sure of every species: too much by the new ones


def test_answers_end_too_fine_elsewhere_or_too_coarse() -> None:
    told = np.array([[1.0, 1.0, 1.0, p] for p in (0.99, 0.99, 0.5, 0.99, 0.5)])
    truth = [[0, 0, 0, 1], [0, 0, 0, -1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, -1]]
    found = outcomes.ends(told, cases([[0, 0, 0, 0]] * 5, truth), 0.95)
    assert found == {"over": 0.2, "wrong": 0.2, "under": 0.2}  # a new species of the genus; another one; to genus only
    nameless = [[True, True, True, False]] * 5
    assert outcomes.ends(told, cases([[0, 0, 0, 0]] * 5, truth, nameless), 0.95) == {"over": 0, "wrong": 0, "under": 0}


def test_the_page_shows_shares_and_the_curve() -> None:
    told = np.array([[1.0, 1.0, 1.0, 0.9]] * 20)
    unknown = np.array([[0.0, 0.0, 0.0, 0.1]] * 20)
    found = outcomes.measure(told, unknown, cases([[0] * 4] * 20, [[0] * 4] * 20), 0.95)
    assert "auroc" not in found
    start = {f"test/calibration/dna/outcomes/{name}": value for name, value in found.items()}
    told_text, table = outcomes.blocks(start, "test/calibration", ["dna"], 0.95)
    assert "95%" in told_text and "9:10" in table and "90:100" in table and "-10.0" in table
