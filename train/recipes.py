"""A run is a named function: its docstring gives the command, the hardware, the time and the score to expect."""

from collections.abc import Callable

from engine.config import AugmentConfig, DataConfig
from train.config import Config, OptimConfig, RunConfig

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

    2 CPU cores: 3 to 4 minutes of training. Test, seeds 0-2: barcode species 95-98%, photo family 64-70%, gated fusion
    with both inputs damaged 97-99% (tests/benchmarks/RESULTS.md).
    """
    return Config(
        recipe="quickstart",
        data=DataConfig(shards=("simulated:0",), augment=AugmentConfig(min_area=0.7)),
        optim=OptimConfig(max_lr=4e-3),
        run=RunConfig(epochs=14, validate_every=7, fusion_training="posthoc", fusion_epochs=1),
    )


@recipe
def bold() -> Config:
    """DNA and text on the BOLD barcodes of four insect orders: no photos, so CLIBD's DNA-text half.

    python -m engine.main ingest table DATA/bold/barcodes.parquet --out shards/bold
    python train/main.py --recipe bold --set data.shards=shards/bold

    2 CPU cores: 3 minutes. Test species top-1 by prompts with roll-up: 98.5% micro, 98.4% macro.
    """
    return Config(
        recipe="bold",
        data=DataConfig(shards=("shards/bold",)),
        optim=OptimConfig(max_lr=2e-3),
        run=RunConfig(epochs=10, global_batch_size=512),
    )


@recipe
def moths() -> Config:
    """CLIBD-HiR-Fuse on a thousand photos of live moths, each with a barcode of its species, from random weights.

    python -m engine.main ingest table DATA/moths/specimens.parquet --out shards/moths
    python train/main.py --recipe moths --set data.shards=shards/moths

    2 CPU cores: 5 minutes. Test species top-1: barcode 99.7%, photo 17.7% (family 62.9%), fused 98.4%.
    """
    return Config(
        recipe="moths",
        data=DataConfig(shards=("shards/moths",), augment=AugmentConfig(rotate_degrees=180.0)),
        optim=OptimConfig(max_lr=2e-3),
        run=RunConfig(
            epochs=80, global_batch_size=128, validate_every=20, checkpoint_every=10, fusion_training="posthoc",
            fusion_epochs=3,
        ),
    )  # fmt: skip
