"""The end of a sweep: intervals by hand, failures last, and a difference is told whatever its sign."""

import pytest

from tune.finalists import Estimate, choose, final_table, search_table, seed_noise, standings, verdict
from tune.ledger import Entry


def tried(number: int, score: float, state: str = "finished", epoch: int = 9) -> Entry:
    values = {"loss.hierarchy_weight": number / 10, "loss.temperature": 0.07}
    return Entry(number, values, 0, state=state, history=[(epoch, score)])


def final(number: int, seed: int, test: float | None, val: float = 0.5) -> Entry:
    values = {"loss.hierarchy_weight": number / 10, "loss.temperature": 0.07}
    return Entry(
        number,
        values,
        seed,
        final=True,
        state="finished" if test else "failed",
        history=[(9, val)] if test else [],
        test=test,
        reason="" if test else "loss is nan",
    )


def finals(**tests: list[float | None]) -> list[Entry]:
    return [final(int(n[1:]), s + 1, test) for n, values in tests.items() for s, test in enumerate(values)]


def test_interval_by_hand() -> None:
    found = Estimate.of([0.60, 0.62, 0.67])
    assert found.value == pytest.approx(0.63)
    half = 4.302653 * 0.0360555 / 3**0.5  # t(0.975, 2) * standard deviation / sqrt(3)
    assert (found.low, found.high) == (pytest.approx(0.63 - half, abs=1e-6), pytest.approx(0.63 + half, abs=1e-6))
    assert found.text("+") == "+63.0 (+54.0 to +72.0)"
    assert Estimate.of([0.5]).text() == "50.0"


def test_the_best_two_and_the_default() -> None:
    search = [tried(0, 0.3), tried(1, 0.9, "stopped", 3), tried(2, 0.5), tried(3, 0.6), tried(4, 0.55), tried(5, 0.2)]
    assert [entry.number for entry in choose(search)] == [0, 3, 4]
    assert [entry.number for entry in choose([tried(0, 0.99), *search[1:]])] == [0, 3, 4]
    assert [entry.number for entry in choose(search[:3])] == [0, 2, 1]  # one that was stopped fills the place
    assert [entry.number for entry in choose([tried(0, 0.0, "failed"), tried(1, 0.4)])] == [1]


def test_differences_are_paired_by_seed() -> None:
    found = standings(finals(n0=[0.50, 0.60, 0.70], n3=[0.51, 0.62, 0.71], n4=[0.9, None, 0.9]))
    assert [one.number for one in found] == [3, 0, 4]  # a training that failed counts for more than a high mean
    gap = found[0].difference
    assert gap and gap.value == pytest.approx(0.04 / 3)
    assert gap.high - gap.low < 0.04 < found[0].score.high - found[0].score.low
    assert found[2].failed == 1
    assert "90.0, 90.0, 1 failed" in final_table(found)


def test_a_worse_finalist_is_told_as_worse_and_the_default_wins() -> None:
    found = finals(n0=[0.60, 0.61, 0.62], n2=[0.50, 0.51, 0.52])
    text = verdict([tried(0, 0.4), tried(2, 0.6)], found)
    assert "--set loss.hierarchy_weight=0.0 --set loss.temperature=0.07" in text
    assert "recipe's own values: nothing that was tried did better" in text
    assert "-10.0 (-10.0 to -10.0)" in final_table(standings(found))


def test_verdict_says_how_sure() -> None:
    search = [tried(0, 0.40), tried(1, 0.41), tried(2, 0.42)]
    unsure = verdict(search, finals(n0=[0.50, 0.60, 0.70], n2=[0.55, 0.58, 0.71]))
    assert "Difference from the default: +1.3" in unsure and "The interval holds 0" in unsure
    sure = verdict(search, finals(n0=[0.50, 0.60, 0.70], n2=[0.55, 0.65, 0.75]))
    assert "+5.0 (+5.0 to +5.0) points on test" in sure and "holds 0" not in sure


def test_flat_is_called_flat() -> None:
    search = [tried(0, 0.40), tried(1, 0.41), tried(2, 0.42)]
    noisy = [final(0, seed, 0.5, val) for seed, val in ((1, 0.40), (2, 0.42), (3, 0.44))]
    assert seed_noise(noisy) == pytest.approx(0.02)
    assert (
        "2.0 points apart on val; another seed alone moves a score by 2.0 (standard deviation): the surface is "
        "flat" in verdict(search, noisy)
    )
    steady = [final(0, seed, 0.5, val) for seed, val in ((1, 0.400), (2, 0.401), (3, 0.402))]
    assert "more than seeds explain" in verdict(search, steady)


def test_the_table_of_the_search() -> None:
    search = [tried(0, 0.3), tried(1, 0.9, "stopped", 3), tried(2, 0.5), tried(3, 0.1, "failed", 3)]
    search[3].reason = "loss is nan at step 12"
    rows = [line.split("|")[1:4] for line in search_table(search).splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["trial 002", "trial 000 (default)", "trial 001", "trial 003"]
    assert rows[3][2].strip() == "loss is nan at step 12"
