"""Shrinkage linear discriminant analysis with a hierarchical prior, from exact sums.

A lineage's photos are normal about its mean with one covariance S for all lineages, shrunk towards a multiple of the
identity (Friedman 1989, regularised discriminant analysis). A mean of n photos is pulled towards its genus' mean by
kappa photos, the genus' towards its family's and that towards the mean of all by one taxon each.

Features are integers (`quantise`), so all sums are exact in float64 whatever their order: photos that are added and
removed again leave no trace.

Legend: M photos, N queries, D dimensions, C lineages, R ranks.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import softmax

UNIT = 32767.0  # of a quantised feature; products of 2^30, so 8 million photos are summed exactly in float64
_UNPULLED = 1.0  # taxa by which a genus is pulled to its family, and a family to all


def normalise(views: np.ndarray) -> np.ndarray:
    """Return unit features [M, D] of a trunk's [M, V, D]: signed square roots of unit length, averaged over views.

    The root tames the few channels of a trunk that fire alone (Perronnin et al. 2010): 75.1% instead of 71.5% on moths.
    """
    roots = np.sign(views) * np.sqrt(np.abs(views.astype(np.float64)))
    return unit(unit(roots).mean(1))


def unit(x: np.ndarray) -> np.ndarray:
    """Return x scaled to unit length along its last axis; zeros stay."""
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)


def quantise(features: np.ndarray) -> np.ndarray:
    """Return unit features as int16, 1.0 = UNIT."""
    return np.rint(features * UNIT).astype(np.int16)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What of the analysis is chosen rather than counted.

    alpha, beta and kappa are the best of those tried on moths' val photos; `selection.select` fits the others.
    """

    alpha: float = 0.5  # share of the identity in the covariance
    beta: float = 0.02  # weight of the scatter of all photos beside that within lineages: one photo a lineage has none
    kappa: float = 2.0  # photos of a species that its genus' mean counts as
    temperatures: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)  # per rank: log odds are divided by it
    novelty: float = float("inf")  # from this score on a photo is of no lineage of the library


@dataclass(frozen=True)
class Counts:
    """Exact sums over photos, a value."""

    gram: np.ndarray  # float64 [D, D], integers: sum of outer products
    sums: np.ndarray  # float64 [C, D], integers
    counts: np.ndarray  # int64 [C]

    @classmethod
    def of(cls, features: np.ndarray, lineage: np.ndarray, num_lineages: int) -> "Counts":
        """Count int16 features [M, D] of lineages int64 [M]."""
        rows = features.astype(np.float64)
        sums = np.zeros((num_lineages, rows.shape[1]))
        np.add.at(sums, lineage, rows)
        return cls(rows.T @ rows, sums, np.bincount(lineage, minlength=num_lineages))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(self.gram - other.gram, self.sums - other.sums, self.counts - other.counts)


class Discriminant:
    """Scores unit features against lineages."""

    def __init__(self, counts: Counts, lineages: np.ndarray, settings: Settings) -> None:
        """Solve for the lineages int64 [C, R] of the counts; those without photos score -inf."""
        self.lineages, self.settings = lineages, settings
        known = counts.counts > 0
        self.known = known
        photos = counts.counts.sum()
        means = counts.sums / np.maximum(counts.counts, 1)[:, None]
        centre = counts.sums.sum(0) / photos
        within = counts.gram - (means * counts.counts[:, None]).T @ means
        spread = counts.gram - photos * np.outer(centre, centre)
        freedom = max(photos - known.sum(), 0) + settings.beta * max(photos - 1, 1)
        covariance = (within + settings.beta * spread) / freedom / UNIT**2
        scale = np.trace(covariance) / len(centre)
        covariance *= 1 - settings.alpha
        covariance.flat[:: len(centre) + 1] += settings.alpha * max(scale, 1e-12)
        factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
        self.centre = centre / UNIT
        points = np.vstack([shrink(means / UNIT, counts.counts, lineages, settings.kappa), self.centre])
        self._weights = cho_solve(factor, points.T, check_finite=False)  # [D, C + 1], the centre's last
        self._offsets = -0.5 * (points.T * self._weights).sum(0)

    def log_odds(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return log densities [N, C] against the mean of all photos, and the novelty [N]: minus the highest of them.

        The novelty is a relative Mahalanobis distance (Ren et al. 2021) with one covariance for both: a photo that no
        lineage explains better than the mean of all photos does is of none.
        """
        scores = features @ self._weights + self._offsets
        odds = scores[:, :-1] - scores[:, -1:]
        odds[:, ~self.known] = -np.inf
        return odds, -odds.max(1)

    @cached_property
    def _members(self) -> tuple[np.ndarray, ...]:
        """Per rank one-hot membership [C, T_r] of lineages in taxa."""
        return tuple(
            (self.lineages[:, [rank]] == np.arange(self.lineages[:, rank].max(initial=-1) + 1)).astype(np.float64)
            for rank in range(self.lineages.shape[1])
        )

    def probabilities(self, odds: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return per rank the taxa's probabilities [N, T_r]: a softmax over lineages, summed over descendants."""
        found = []
        for members, temperature in zip(self._members, self.settings.temperatures, strict=True):
            found.append(softmax(odds / temperature, axis=1) @ members)
        return tuple(found)


def shrink(means: np.ndarray, counts: np.ndarray, lineages: np.ndarray, kappa: float) -> np.ndarray:
    """Return lineage means [C, D] pulled towards their genus', those towards their family's, those towards all's."""
    known = np.flatnonzero(counts > 0)
    above = np.broadcast_to(means[known].mean(0), means[known].shape)
    for rank in (1, 2):  # family, genus
        group = np.unique(lineages[known, : rank + 1], axis=0, return_inverse=True)[1].ravel()
        size = np.bincount(group)
        total = np.zeros((len(size), means.shape[1]))
        np.add.at(total, group, means[known])
        above = (total[group] + _UNPULLED * above) / (size[group] + _UNPULLED)[:, None]
    pulled = means.copy()
    weight = counts[known][:, None].astype(np.float64)
    pulled[known] = (weight * means[known] + kappa * above) / (weight + kappa)
    return pulled
