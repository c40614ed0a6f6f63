"""Spaces: where a value lies is where it comes from, 0 is among them, and what cannot be trained is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import Config, override
from tune import spaces
from tune.spaces import Choice, LogUniform, Uniform, assignments, defaults, find, short

DOMAINS = (
    LogUniform(low=1e-3, high=1.0, zero=0.15),
    LogUniform(low=0.01, high=0.2),
    Uniform(low=0.0, high=0.8),
    Choice(values=("a", "b", "c")),
)


@pytest.mark.parametrize("domain", DOMAINS)
@given(position=st.floats(0, 1))
def test_a_value_lies_where_it_comes_from(domain: spaces.Domain, position: float) -> None:
    value = domain.at(position)
    found = domain.position(value)
    assert found is not None
    assert domain.at(found) == value
    if isinstance(domain, LogUniform) and value == 0:
        assert position < domain.zero
    elif not isinstance(domain, Choice):
        assert found == pytest.approx(position, abs=1e-3)


def test_zero_has_its_share_and_the_ends_are_reached() -> None:
    weight = LogUniform(low=1e-3, high=1.0, zero=0.15)
    values = [weight.at(i / 1000) for i in range(1001)]
    assert sum(value == 0 for value in values) == 150
    assert (values[150], values[-1]) == (1e-3, 1.0)
    assert values == sorted(values)
    assert weight.position(2.0) is None and weight.position(1e-4) is None


@pytest.mark.parametrize("name", ["pair", "wide"])
def test_keys_are_those_of_training(name: str) -> None:
    space = find(name, Config())
    own = defaults(space, Config())
    assert override(Config(), assignments(own)) == Config()
    assert own["loss.hierarchy_weight"] == 0.01
    for key, value in own.items():
        assert space[key].position(value) is not None, f"the default of {key} lies outside"


def test_what_wide_adds() -> None:
    added = set(find("wide", Config())) - set(find("pair", Config()))
    assert added == {
        "loss.hierarchy_temperature",
        "loss.learn_temperature",
        "loss.fusion_weight",
        "optim.max_lr",
        "data.robust.dna",
        "data.robust.image",
    }


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "space 'mine' is empty; allowed: at least one configuration key"),
        ({"loss.colour": Uniform(low=0, high=1)}, "space 'mine': unknown configuration key 'loss.colour'"),
        ({"loss.temperature": Uniform(low=0.001, high=1)}, "space 'mine': .*greater than or equal to 0.01"),
        ({"loss.positives": Choice(values=("masked", "all"))}, "space 'mine': loss.positives"),
    ],
)
def test_mistakes_in_a_space(space: spaces.Space, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spaces.SPACES, "mine", lambda: space)
    with pytest.raises(ValueError, match=message):
        find("mine", Config())


def test_unknown_space() -> None:
    with pytest.raises(ValueError, match="unknown space 'narrow'; spaces: pair, wide"):
        find("narrow", Config())


def test_short_names() -> None:
    values = {"loss.hierarchy_weight": 0.0, "data.robust.dna": 0.5, "loss.learn_temperature": True}
    assert short(values) == "hierarchy_weight 0.0, robust.dna 0.5, learn_temperature True"
    assert assignments(values)[-1] == "loss.learn_temperature=true"
