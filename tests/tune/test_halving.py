"""ASHA: the recipe's own values are never stopped, half of the others are, and an interruption changes nothing."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import TrialScheduler

from tune.halving import Feed, Halving, first_rung
from tune.ledger import Entry

EPOCHS = 9


def trial(number: int) -> Any:
    return SimpleNamespace(trial_id=f"t{number}", config={"name": f"trial-{number:03d}", "number": number})


def run(halving: Halving, number: int, quality: float) -> Entry:
    """A trial whose score grows with the epochs, until it is stopped."""
    entry = Entry(number, {}, 0)
    for epoch in range(3, EPOCHS + 1, 3):
        score = quality * epoch / EPOCHS
        entry.saw(epoch, score)
        if halving.on_trial_result(None, trial(number), {"epoch": epoch, "score": score}) == TrialScheduler.STOP:
            break
    entry.state = "finished" if entry.epoch == EPOCHS else "stopped"
    return entry


def test_first_rung() -> None:
    assert [first_rung(*case) for case in ((9, 1), (9, 3), (80, 20), (80, 1), (10, 5), (4, 4), (14, 7), (3, 2))] == [
        2,
        3,
        20,
        10,
        5,
        4,
        7,
        2,
    ]


def test_most_of_16_are_stopped_early_and_the_best_is_not() -> None:
    """On average ten; the first ones to come have little to be compared with, so in one order of twenty only seven."""
    stopped = []
    for seed in range(20):
        qualities = np.random.default_rng(seed).random(16)
        halving = Halving(EPOCHS, 3)
        found = [run(halving, number, quality) for number, quality in enumerate(qualities)]
        stopped.append(sum(entry.state == "stopped" for entry in found))
        assert found[int(qualities.argmax())].state == "finished"
    assert sum(stopped) / len(stopped) > 10
    assert sorted(stopped)[1] >= 8


def test_the_default_is_never_stopped() -> None:
    halving = Halving(EPOCHS, 3)
    for number in range(1, 8):
        run(halving, number, 0.9)
    assert run(halving, 8, 0.1).state == "stopped"
    assert run(halving, 0, 0.1).state == "finished"


def test_rungs_are_rebuilt_from_the_ledger() -> None:
    qualities = np.random.default_rng(1).random(12)
    whole, before = Halving(EPOCHS, 3), Halving(EPOCHS, 3)
    expected = [run(whole, number, quality) for number, quality in enumerate(qualities)]
    first = [run(before, number, quality) for number, quality in enumerate(qualities[:6])]
    after = Halving(EPOCHS, 3)
    after.remember(first)
    rest = [run(after, number, qualities[number]) for number in range(6, 12)]
    assert [e.state for e in [*first, *rest]] == [e.state for e in expected]


def test_no_early_stopping_and_giving_up() -> None:
    halving = Halving(EPOCHS, EPOCHS)
    found = [run(halving, number, 1 - number / 10) for number in range(9)]
    assert all(entry.state == "finished" for entry in found)
    halving.give_up = True
    assert halving.on_trial_result(None, trial(0), {"epoch": 3}) == TrialScheduler.STOP


def test_the_feed_keeps_to_its_number_and_tells_every_end_once() -> None:
    entries = [Entry(number, {}, 0) for number in range(3)]
    waiting = list(entries)
    ends: list[tuple[int, bool]] = []
    seen: list[tuple[int, float]] = []
    feed = Feed(
        lambda: ((one := waiting.pop(0)), {"number": one.number}) if waiting else None,
        2,
        lambda entry, result: seen.append((entry.number, result["score"])),
        lambda entry, died: ends.append((entry.number, died)),
    )
    assert [feed.suggest(f"t{i}") for i in range(3)] == [{"number": 0}, {"number": 1}, None]
    feed.on_trial_result("t0", {"score": 0.5})
    feed.on_trial_complete("t0", {"score": 0.6})
    feed.on_trial_complete("t0", {"score": 0.6})
    assert (seen, ends) == ([(0, 0.5), (0, 0.6)], [(0, False)])
    assert feed.suggest("t3") == {"number": 2}
    feed.on_trial_complete("t1", error=True)
    assert ends == [(0, False), (1, True)]
    assert feed.suggest("t4") == Feed.FINISHED
