"""Does a probability mean what it says? Calibration error, reliability bins, risk and coverage. numpy only.

Legend: N answers, K bins of equal mass, T draws.
"""

from collections.abc import Mapping

import numpy as np

from train import metrics

BINS = 10
DRAWS = 200
COVERAGES = np.round(np.arange(0.05, 1.001, 0.05), 2)


def equal_mass_bins(probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin of every answer, int64 [N], with the same number of answers in each, up to one.

    Equal probabilities are parted in their order of appearance.
    """
    place = np.empty(len(probabilities), dtype=np.int64)
    place[np.argsort(probabilities, kind="stable")] = np.arange(len(probabilities))
    return place * bins // max(1, len(probabilities))


def bin_means(probabilities: np.ndarray, right: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, ...]:
    """(mean probability, share right, number) of the bins that are not empty, float64 [K] each."""
    bin_of = equal_mass_bins(probabilities, bins)
    count = np.bincount(bin_of, minlength=bins)
    sums = (np.bincount(bin_of, weights=values, minlength=bins)[count > 0] for values in (probabilities, right))
    told, found = (total / count[count > 0] for total in sums)
    return told, found, count[count > 0].astype(np.float64)


def calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = BINS, seed: int = 0) -> float:
    """Return the expected calibration error over bins of equal mass, less its bias; 0 or more, nan without answers.

    The plain error of a perfectly calibrated model is above 0, because each bin's share scatters. The excess is
    measured by drawing the shares again from normal distributions around those found (Kumar et al., 2019).
    """
    if not len(probabilities):
        return float("nan")
    told, found, count = bin_means(probabilities, right, bins)
    mass = count / count.sum()
    plain = mass @ np.abs(told - found)
    scatter = np.sqrt(found * (1 - found) / count)
    again = found + np.random.default_rng(seed).normal(size=(1000, len(found))) * scatter
    return float(max(0.0, plain - (np.abs(told - again) @ mass - plain).mean()))


def error_interval(
    probabilities: np.ndarray, right: np.ndarray, group: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95% interval of `calibration_error` by drawing groups (int64 [N]) with replacement.

    Drawn again, answers scatter more than at first, so every draw's error is a little too high; the percentiles are
    lowered by the mean of that excess.
    """
    if not len(probabilities):
        return float("nan"), float("nan")
    order = np.argsort(group, kind="stable")
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = rng.integers(0, len(first), len(first))
        length = size[chosen]
        inside = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        rows = order[np.repeat(first[chosen], length) + inside]
        found.append(calibration_error(probabilities[rows], right[rows], seed=seed))
    excess = np.mean(found) - calibration_error(probabilities, right, seed=seed)
    low, high = np.maximum(0.0, np.percentile(found, [2.5, 97.5]) - excess)
    return float(low), float(high)


def error_if_perfect(probabilities: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Return mean and 95th percentile of `calibration_error` were every probability exactly right.

    So many answers can show no less.
    """
    if not len(probabilities):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    found = [calibration_error(probabilities, rng.random(len(probabilities)) < probabilities) for _ in range(draws)]
    return float(np.mean(found)), float(np.percentile(found, 95))


def risk_coverage(probabilities: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, float]:
    """Share wrong among the most confident answers at each of COVERAGES, float64, and its mean over all coverages."""
    order = np.argsort(-probabilities, kind="stable")
    risk = np.cumsum(~right[order]) / np.arange(1, len(right) + 1)
    last = np.maximum(1, np.round(COVERAGES * len(right)).astype(int)) - 1
    return risk[last], float(risk.mean())


def measure(
    probabilities: np.ndarray, right: np.ndarray, group: np.ndarray, threshold: float, resamples: int
) -> dict[str, float]:
    """Return all numbers of one rank.

    `ece` with interval and what a perfect model would show, accuracy and coverage at the threshold, `bin/<k>/...` and
    `risk/<coverage>`.

    Args:
        probabilities: float [N].
        right: bool [N].
        group: int64 [N], answers resampled together.
        threshold: probability that an answer needs.
        resamples: bootstrap draws.
    """
    result: dict[str, float] = {"rows": len(right)}
    if not len(right):
        return result
    result["accuracy"] = float(right.mean())
    result["ece"] = calibration_error(probabilities, right)
    result["ece_low"], result["ece_high"] = error_interval(probabilities, right, group)
    result["ece_perfect"], result["ece_perfect_high"] = error_if_perfect(probabilities)
    chosen = probabilities >= threshold
    result["coverage"] = float(chosen.mean())
    result["accuracy_at"] = metrics.micro(right, chosen)
    _, numbered = np.unique(group, return_inverse=True)
    bounds = metrics.intervals(right[:, None], chosen[:, None], numbered, resamples)[0].tolist()
    result["accuracy_at_low"], result["accuracy_at_high"] = bounds
    for number, (told, found, count) in enumerate(zip(*bin_means(probabilities, right), strict=True)):
        result |= {f"bin/{number}/told": told, f"bin/{number}/found": found, f"bin/{number}/rows": count}
    risk, area = risk_coverage(probabilities, right)
    result["risk_area"] = area
    return result | {f"risk/{share:.2f}": value for share, value in zip(COVERAGES, risk.tolist(), strict=True)}


def bins_of(values: Mapping[str, float], start: str) -> list[tuple[float, float]]:
    """(told, found) of the bins among the metrics that begin with `start`."""
    numbers = [number for number in range(BINS) if f"{start}/bin/{number}/told" in values]
    return [(values[f"{start}/bin/{n}/told"], values[f"{start}/bin/{n}/found"]) for n in numbers]
