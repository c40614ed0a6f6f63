"""Hold what a sweep is asked for. Imports nothing, so that the command line answers at once."""

from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["tpe", "random"]
ALGORITHMS: tuple[Algorithm, ...] = ("tpe", "random")
METRIC = "val/*/top1"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold the settings of a sweep; kept in sweep.json."""

    space: str = "pair"
    algorithm: Algorithm = "tpe"
    trials: int = 16
    seeds: int = 3  # of each finalist
    metric: str = METRIC
    concurrent: int = 0  # trials at once at most; 0 = as many as fit
    early_stopping: bool = True
