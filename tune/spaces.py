"""Define which settings a sweep varies: a space is a named function from configuration keys to domains.

A domain lives on the unit interval: 0 is its low end, 1 its high end. What searches sees only these positions, so that
a weight that may be exactly 0 and is logarithmic above is one dimension, in which 0 lies beside the small weights.

To add a space write a function here; its keys are those of `python train/main.py --dry-run`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from train.config import Config, flatten, override, to_dict

DIGITS = 4  # significant ones of a sampled number: enough to tell two trials apart, short enough to be read and typed

Space = Mapping[str, "Domain"]
SPACES: dict[str, Callable[[], Space]] = {}


class Domain(Protocol):
    """Describe the values of one setting."""

    def at(self, position: float) -> Any:
        """Return the value at a position in 0..1."""

    def position(self, value: Any) -> float | None:
        """Return where a value lies, None when outside."""

    def ends(self) -> tuple[Any, ...]:
        """Return the outermost values, for checks."""


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Spread evenly over the values between two numbers."""

    low: float
    high: float

    def at(self, position: float) -> float:
        """Return the value at a position in 0..1."""
        return _rounded(self.low + position * (self.high - self.low), self.low, self.high)

    def position(self, value: float) -> float | None:
        """Return where a value lies, None when outside."""
        return (value - self.low) / (self.high - self.low) if self.low <= value <= self.high else None

    def ends(self) -> tuple[float, float]:
        """Return low and high."""
        return self.low, self.high


@dataclass(frozen=True, kw_only=True)
class LogUniform:
    """Spread evenly over orders of magnitude; a share `zero` of the interval is exactly 0."""

    low: float
    high: float
    zero: float = 0.0

    def at(self, position: float) -> float:
        """Return the value at a position in 0..1."""
        if position < self.zero:
            return 0.0
        above = (position - self.zero) / (1 - self.zero)
        return _rounded(self.low * (self.high / self.low) ** above, self.low, self.high)

    def position(self, value: float) -> float | None:
        """Return where a value lies, None when outside; 0 in the middle of its share."""
        if value == 0 and self.zero:
            return self.zero / 2
        if not self.low <= value <= self.high:
            return None
        return self.zero + (1 - self.zero) * math.log(value / self.low) / math.log(self.high / self.low)

    def ends(self) -> tuple[float, ...]:
        """Return low and high, and 0 where it belongs to them."""
        return ((0.0,) if self.zero else ()) + (self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Choose one of a few values, without an order."""

    values: tuple[Any, ...]

    def at(self, position: float) -> Any:
        """Return the value at a position in 0..1."""
        return self.values[min(int(position * len(self.values)), len(self.values) - 1)]

    def position(self, value: Any) -> float | None:
        """Return the middle of a value's share, None when it is none of them."""
        return (self.values.index(value) + 0.5) / len(self.values) if value in self.values else None

    def ends(self) -> tuple[Any, ...]:
        """Return all values."""
        return self.values


def _rounded(value: float, low: float, high: float) -> float:
    return min(high, max(low, float(f"{value:.{DIGITS}g}")))


def space(function: Callable[[], Space]) -> Callable[[], Space]:
    """Register a space under its function's name."""
    SPACES[function.__name__] = function
    return function


@space
def pair() -> Space:
    """Vary the weight of the hierarchy, with exactly 0 (CLIBD) among its values, and the temperature."""
    return {
        "loss.hierarchy_weight": LogUniform(low=1e-3, high=1.0, zero=0.15),
        "loss.temperature": LogUniform(low=0.01, high=0.2),
    }


@space
def wide() -> Space:
    """Vary the pair and what it may depend on.

    That is the hierarchy's own temperature, a temperature that learns, the weight of the fusion, the learning rate, and
    the share of damaged training inputs.
    """
    return {
        **pair(),
        "loss.hierarchy_temperature": LogUniform(low=0.02, high=0.5),
        "loss.learn_temperature": Choice(values=(False, True)),
        "loss.fusion_weight": LogUniform(low=0.1, high=10.0),
        "optim.max_lr": LogUniform(low=3e-4, high=1e-2),
        "data.robust.dna": Uniform(low=0.0, high=0.8),
        "data.robust.image": Uniform(low=0.0, high=0.8),
    }


def find(name: str, base: Config) -> Space:
    """Return the space of this name, checked against a configuration.

    Raises ValueError: no such space; one without settings; a key that training does not know; a value that it refuses.
    """
    if name not in SPACES:
        raise ValueError(f"unknown space {name!r}; spaces: {', '.join(sorted(SPACES))}")
    found = SPACES[name]()
    if not found:
        raise ValueError(f"space {name!r} is empty; allowed: at least one configuration key with its domain")
    for key, domain in found.items():
        for value in domain.ends():
            try:
                override(base, assignments({key: value}))
            except ValueError as error:
                raise ValueError(f"space {name!r}: {error}") from None
    return found


def assignments(values: Mapping[str, Any]) -> list[str]:
    """Return `key=value` pairs as `--set` takes them."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]


def defaults(chosen: Space, base: Config) -> dict[str, Any]:
    """Return the recipe's own values for the keys of a space."""
    flat = flatten(to_dict(base))
    return {key: flat[key] for key in chosen}


def describe(chosen: Space, base: Config) -> str:
    """Return a space as text for people, one line a key."""
    own = defaults(chosen, base)
    return "\n".join(f"{key}: {domain} (recipe: {own[key]})" for key, domain in chosen.items())


def short(values: Mapping[str, Any]) -> str:
    """Return values with short keys: "hierarchy_weight 0.01, temperature 0.07"."""
    return ", ".join(f"{label(key)} {value}" for key, value in values.items())


def label(key: str) -> str:
    """Return the last parts of a key, for people."""
    first, *rest = key.split(".")
    return rest[-1] if first in ("loss", "optim") else ".".join(rest[-2:])
