"""The scaling benchmark's judgement: ratios of the same round, a model that hits, a model that misses."""

import pytest

from tests.benchmarks.scaling import CONFIGURATIONS, predictions, table

pytestmark = pytest.mark.slow

QUOTA = {"data": 0.25, "train": 0.4}


def rows(data: tuple[float, ...], train: tuple[float, ...]) -> list[dict]:
    """Three rounds of the five configurations, the rounds 10% apart."""
    rates = dict(zip(CONFIGURATIONS, (*data, *train), strict=True))
    return [
        {"round": number, "kind": kind, "nodes": nodes, "rate": rate * (0.9 + 0.1 * number)}
        for number in range(3)
        for (kind, nodes), rate in rates.items()
    ]


def test_the_model_scales_what_one_node_does() -> None:
    said = predictions(rows((100.0, 190.0, 360.0), (50.0, 90.0)), QUOTA)
    assert [round(said[one]) for one in CONFIGURATIONS] == [100, 200, 400, 50, 100]


def test_the_table_says_whether_the_model_held() -> None:
    text, held = table(rows((100.0, 190.0, 360.0), (50.0, 90.0)), QUOTA)
    assert held
    assert "| 4 data | 0.25 | 360.0 [324.0, 396.0] | 3.6 [3.6, 3.6] | 400.0 | +11% |" in text
    _, held = table(rows((100.0, 110.0, 120.0), (50.0, 90.0)), QUOTA)
    assert not held
