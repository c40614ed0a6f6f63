"""The log-linear pool of experts, its weights, and the guarantee that it is never below the best of them.

    log p = sum over experts of softplus(offset + slopes . qualities) * log p(expert) at its temperature - log Z

An expert that read or found nothing has weight 0, so each expert alone is a member of the family. In a cell of
quality (bands of barcode length, share of N, sharpness of the photo) where specimens of val did not show the pool to be
as good as the best single expert, that one answers: its weight is 1, the others' 0. Pure functions of what
`train.evaluation.fit_pool` fitted, all of it in calibration.json.

Legend: b specimens, M experts, Q qualities of an expert, A axes of the cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

POOL = "pool"  # who answers in a cell: all experts together
EQUAL = "equal"  # all of them, each at its word: weight and temperature 1, as barcode and library were before the pool
ANY = -1  # band of an axis that does not matter


@dataclass(frozen=True)
class Weight:
    """How much one expert counts, by its qualities."""

    expert: str
    temperature: float  # its log probabilities are divided by it
    inputs: tuple[str, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]
    slope: tuple[float, ...]  # of the standardised inputs
    offset: float

    def __call__(self, quality: np.ndarray) -> np.ndarray:
        """Weights float64 [b], 0 or more, for qualities float [b, Q] in the order of `inputs`."""
        scaled = (quality - np.array(self.mean)) / np.array(self.spread)
        return np.logaddexp(0.0, self.offset + scaled @ np.array(self.slope))


@dataclass(frozen=True)
class Cell:
    """Specimens of like quality, and who answers them."""

    bands: tuple[int, ...]  # [A], of each axis; ANY = all of it
    answers: str  # POOL, EQUAL or an expert
    best: str  # what the pool was compared with: the best single expert, or EQUAL
    specimens: int  # asked, in all forms
    groups: int  # of equal barcodes
    difference: float  # right answers of the pool less those of `best`, the worse of species and genus
    low: float  # one-sided lower end, 95%
    weights: tuple[float, ...]  # mean over the specimens, of each expert


@dataclass(frozen=True)
class Guarantee:
    """Cells of quality. A cell that is not listed is answered as all of its length are, or as all are."""

    axes: Mapping[str, tuple[float, ...]]  # quality -> inner edges of its bands, rising
    cells: tuple[Cell, ...]

    @cached_property
    def _answers(self) -> dict[tuple[int, ...], str]:
        return {cell.bands: cell.answers for cell in self.cells}

    def bands(self, measured: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the cell of each specimen, int64 [b, A]."""
        return np.column_stack([np.searchsorted(edges, measured[name]) for name, edges in self.axes.items()])

    def who(self, measured: Mapping[str, np.ndarray]) -> list[str]:
        """Return who answers each specimen: POOL, EQUAL or an expert."""
        rest = (ANY,) * (len(self.axes) - 1)
        every = self._answers.get((ANY, *rest), POOL)
        found = []
        for own in map(tuple, self.bands(measured).tolist()):
            wider = self._answers.get((own[0], *rest), every)
            found.append(self._answers.get(own, wider))
        return found


@dataclass(frozen=True)
class Pool:
    """The pool of one query."""

    weights: tuple[Weight, ...]  # [M], in the order of the opinions
    guarantee: Guarantee | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        """Return their names."""
        return tuple(one.expert for one in self.weights)

    def fitted(self, qualities: Sequence[np.ndarray], speaks: Sequence[np.ndarray]) -> np.ndarray:
        """Return the weights by quality alone, float64 [b, M]."""
        rows = zip(self.weights, qualities, speaks, strict=True)
        return np.column_stack([np.where(there, one(quality), 0.0) for one, quality, there in rows])

    def counts(
        self, qualities: Sequence[np.ndarray], speaks: Sequence[np.ndarray], measured: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Return the weights that answer, the guarantee applied, float64 [b, M].

        Args:
            qualities: of each expert, float64 [b, Q].
            speaks: of each expert, bool [b].
            measured: of the axes of the guarantee, float64 [b] each.
        """
        counts = self.fitted(qualities, speaks)
        if self.guarantee is None:
            return counts
        who = np.array(self.guarantee.who(measured), dtype=object)
        alone = np.array(self.experts, dtype=object) == who[:, None]
        single = alone.any(axis=1) & (counts * alone).any(axis=1)
        at_word = np.array([one.temperature for one in self.weights]) * np.column_stack(speaks)
        counts = np.where((who == EQUAL)[:, None], at_word, counts)
        return np.where(single[:, None], alone.astype(np.float64), counts)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "Pool":
        """Read what `dataclasses.asdict` made of one."""
        weights = tuple(Weight(**{name: _frozen(part) for name, part in one.items()}) for one in value["weights"])
        found = value["guarantee"]
        if found is None:
            return cls(weights)
        cells = tuple(
            Cell(**{**cell, "bands": tuple(cell["bands"]), "weights": tuple(cell["weights"])})
            for cell in found["cells"]
        )
        return cls(weights, Guarantee({name: tuple(edges) for name, edges in found["axes"].items()}, cells))


def _frozen(part: Any) -> Any:
    return tuple(part) if isinstance(part, list) else part
