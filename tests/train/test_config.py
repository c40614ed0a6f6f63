"""Overrides: typed, checked, and refused in one line."""

import pytest

from train.config import Config, flatten, from_dict, override, to_dict
from train.recipes import RECIPES, make


def test_overrides_are_typed() -> None:
    config = override(
        Config(),
        ["loss.hierarchy_weight=0", "data.shards=a,b", "run.use_gpu=true", "optim.betas=0.9,0.95", "eval.split=x=y"],
    )
    assert config.loss.hierarchy_weight == 0.0
    assert config.data.shards == ("a", "b")
    assert config.run.use_gpu is True
    assert config.optim.betas == (0.9, 0.95)
    assert config.eval.split == "x=y"


def test_round_trip() -> None:
    config = override(Config(), ["loss.rank_weights=1,2,3,4", "data.augment.hue=0.1"])
    assert from_dict(to_dict(config)) == config
    assert flatten(to_dict(config))["data.augment.hue"] == 0.1


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("loss.x=1", ["unknown configuration key 'loss.x'", "loss.hierarchy_weight"]),
        ("loss.hierarchy_wieght=1", ["(did you mean 'loss.hierarchy_weight'?)"]),
        ("loss.temperature=5", ["loss.temperature", "less than or equal to 1", "'5'"]),
        ("loss.rectify=up", ["loss.rectify", "'fine_to_coarse'", "'up'"]),
        ("data.degrade.blur_kernel=4", ["data.degrade.blur_kernel", "allowed: odd numbers", "'4'"]),
        ("run.name=a/b", ["run.name", "'a/b'"]),
        ("run.max_failures=-2", ["run.max_failures", "greater than or equal to -1"]),
        ("run.epochs=a", ["run.epochs", "integer", "'a'"]),
        ("loss.rank_weights=1,2", ["loss.rank_weights"]),
        ("run.epochs", ["key=value", "'run.epochs'"]),
        ("data.augment=1", ["unknown configuration key 'data.augment'"]),
    ],
)
def test_bad_overrides_name_what_got_and_allowed(assignment: str, parts: list[str]) -> None:
    with pytest.raises(ValueError) as raised:
        override(Config(), [assignment])
    assert all(part in str(raised.value) for part in parts), raised.value


def test_unknown_keys_of_a_stored_tree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown configuration key 'loss\.colour'"):
        from_dict({"loss": {"colour": 1}})


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_say_what_they_are(name: str) -> None:
    assert make(name).recipe == name
    assert f"--recipe {name}" in (RECIPES[name].__doc__ or "")


def test_unknown_recipe() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'nope'; recipes: .*quickstart"):
        make("nope")
