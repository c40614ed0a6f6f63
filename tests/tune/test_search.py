"""What is proposed is a pure function of seed, number and results; and the model does better than chance."""

import math
from pathlib import Path

import pytest

from train.config import Config
from tune.ledger import Entry, Ledger
from tune.search import propose
from tune.settings import ALGORITHMS, Algorithm
from tune.spaces import defaults, find

BASE = Config()
PAIR = find("pair", BASE)


def peak(values: dict[str, float]) -> float:
    """A score with its top at weight 0.1, temperature 0.03."""
    weight, temperature = values["loss.hierarchy_weight"], values["loss.temperature"]
    return 1 - 0.1 * math.log10(max(weight, 1e-4) / 0.1) ** 2 - 0.5 * math.log10(temperature / 0.03) ** 2


def searched(algorithm: Algorithm, seed: int, trials: int, space: str = "pair") -> list[Entry]:
    found = find(space, BASE)
    entries = [Entry(0, defaults(found, BASE), seed, state="finished")]
    entries[0].saw(9, peak(entries[0].values))
    for number in range(1, trials):
        entry = Entry(number, propose(found, algorithm, seed, number, entries), seed, state="finished")
        entry.saw(9, peak(entry.values))
        entries.append(entry)
    return entries


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("space", ["pair", "wide"])
def test_the_same_seed_samples_the_same(algorithm: Algorithm, space: str) -> None:
    first, again, other = (searched(algorithm, seed, 12, space) for seed in (3, 3, 4))
    assert [entry.values for entry in first] == [entry.values for entry in again]
    assert [entry.values for entry in first] != [entry.values for entry in other]
    assert len({str(entry.values) for entry in first}) == 12


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_interrupted_search_asks_what_it_would_have_asked(algorithm: Algorithm, tmp_path: Path) -> None:
    whole = searched(algorithm, 5, 14)
    ledger = Ledger(tmp_path)
    states = ("finished", "stopped", "failed")
    for entry in whole[:10]:
        entry.state = states[entry.number % 3]  # type: ignore[assignment]
        ledger.put(entry)
    before = propose(PAIR, algorithm, 5, 10, whole[:10])
    assert propose(PAIR, algorithm, 5, 10, Ledger(tmp_path).search()) == before


def test_running_trials_are_kept_away_from() -> None:
    known = searched("tpe", 0, 12)
    asked = propose(PAIR, "tpe", 0, 12, known)
    beside = propose(PAIR, "tpe", 0, 13, [*known, Entry(12, asked, 0, state="running")])
    assert beside != asked


def test_the_model_finds_the_top_and_chance_does_not() -> None:
    def late(algorithm: Algorithm) -> float:
        """Mean score of the last 20 of 40 trials, over three seeds."""
        scores = [entry.score or 0.0 for seed in range(3) for entry in searched(algorithm, seed, 40)[20:]]
        return sum(scores) / len(scores)

    assert late("tpe") > late("random") + 0.05


def test_zero_is_sampled() -> None:
    weights = [propose(PAIR, "random", 0, number, [])["loss.hierarchy_weight"] for number in range(1, 200)]
    assert 15 < sum(weight == 0 for weight in weights) < 50  # 15% of 199 are 30


def test_default_values_outside_the_space_are_left_out() -> None:
    known = [
        Entry(0, {"loss.hierarchy_weight": 5.0, "loss.temperature": 0.07}, 0, state="finished", history=[(9, 0.5)])
    ]
    assert propose(PAIR, "tpe", 0, 1, known) == propose(PAIR, "tpe", 0, 1, [])
