"""A run is a named function: its docstring gives the command, the hardware, the time and the score to expect."""

from collections.abc import Callable

from engine.config import DataConfig
from train.config import Config, RunConfig

RECIPES: dict[str, Callable[[], Config]] = {}


def recipe(function: Callable[[], Config]) -> Callable[[], Config]:
    """Register a recipe under its function's name."""
    RECIPES[function.__name__] = function
    return function


def make(name: str) -> Config:
    """The configuration of a recipe. Raises ValueError naming the recipes that there are."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; recipes: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()


@recipe
def quickstart() -> Config:
    """CLIBD-HiR-Fuse on simulated specimens: the main job of a fresh machine.

    python train/main.py --recipe quickstart
    """
    return Config(
        recipe="quickstart",
        data=DataConfig(shards=("simulated:0",)),
        run=RunConfig(epochs=20, global_batch_size=256),
    )
