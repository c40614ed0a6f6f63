"""Measures of the simulated insects: an order fixes the range of each, a family takes its own place inside the ranges.

Widths are half-widths, angles are degrees from the tail axis, lengths are in units of roughly half a body. A range that
starts below 0 for `snout`, `tail`, `hair` means that some families have none.
"""

import numpy as np

Range = tuple[float, float]
# Measures of the families of an order: (lowest, highest). Widths are half-widths; angles in degrees from the tail axis.
_COMMON: dict[str, Range] = {
    "head_width": (0.2, 0.3),
    "head_length": (0.22, 0.3),
    "eye": (0.3, 0.45),
    "snout": (0.0, 0.0),
    "thorax_width": (0.22, 0.32),
    "thorax_length": (0.45, 0.6),
    "thorax_front": (0.35, 0.6),
    "waist": (0.0, 0.0),
    "abdomen_width": (0.2, 0.32),
    "abdomen_length": (0.8, 1.1),
    "abdomen_front": (0.3, 0.6),
    "abdomen_tip": (0.4, 0.8),
    "tail": (0.0, 0.0),
    "antenna_length": (0.4, 0.8),
    "antenna_angle": (20.0, 60.0),
    "leg_length": (0.8, 1.1),
    "leg_width": (1.0, 2.4),
    "hind_leg": (1.0, 1.15),
    "hair": (0.0, 0.0),
    "wing_length": (0.0, 0.0),
    "wing_width": (0.3, 0.4),
    "wing_angle": (40.0, 70.0),
    "wing_tip": (0.25, 0.6),
    "hind_length": (0.0, 0.0),
    "hind_width": (0.3, 0.4),
    "hind_angle": (30.0, 50.0),
    "elytra_length": (0.0, 0.0),
    "elytra_width": (0.4, 0.5),
    "elytra_front": (0.2, 0.4),
    "elytra_tip": (0.3, 0.6),
    "cross_veins": (0.0, 3.0),
}
_PLANS: dict[str, dict[str, Range]] = {
    "Diptera": {
        "head_width": (0.2, 0.36),
        "eye": (0.55, 0.85),
        "snout": (-0.3, 0.4),
        "thorax_width": (0.2, 0.42),
        "abdomen_width": (0.1, 0.42),
        "abdomen_length": (0.55, 1.3),
        "abdomen_front": (0.2, 0.8),
        "abdomen_tip": (0.3, 1.0),
        "antenna_length": (0.1, 0.5),
        "leg_length": (0.7, 2.0),
        "hair": (-0.6, 1.0),
        "wing_length": (1.0, 1.7),
        "wing_width": (0.22, 0.46),
        "wing_angle": (14.0, 80.0),
        "wing_tip": (0.2, 0.7),
        "cross_veins": (0.0, 2.0),
    },
    "Hymenoptera": {
        "head_width": (0.24, 0.38),
        "eye": (0.35, 0.5),
        "waist": (0.1, 0.45),
        "abdomen_width": (0.17, 0.42),
        "abdomen_length": (0.7, 1.25),
        "abdomen_front": (0.35, 1.1),
        "abdomen_tip": (0.4, 1.1),
        "tail": (-0.7, 0.9),
        "antenna_length": (0.5, 1.1),
        "hair": (-0.8, 0.8),
        "wing_length": (1.0, 1.5),
        "wing_width": (0.24, 0.38),
        "wing_angle": (30.0, 85.0),
        "hind_length": (0.6, 0.9),
        "hind_width": (0.14, 0.24),
        "hind_angle": (18.0, 60.0),
    },
    "Coleoptera": {
        "head_width": (0.18, 0.4),
        "head_length": (0.2, 0.4),
        "eye": (0.2, 0.35),
        "snout": (-0.4, 0.6),
        "thorax_width": (0.28, 0.52),
        "thorax_length": (0.28, 0.6),
        "thorax_front": (0.15, 0.6),
        "elytra_length": (0.75, 1.5),
        "elytra_width": (0.3, 0.7),
        "elytra_front": (0.12, 0.5),
        "elytra_tip": (0.2, 0.8),
        "antenna_length": (0.3, 1.8),
        "antenna_angle": (30.0, 75.0),
        "leg_length": (0.7, 1.1),
        "leg_width": (1.6, 3.2),
    },
    "Hemiptera": {
        "head_width": (0.16, 0.24),
        "head_length": (0.2, 0.36),
        "eye": (0.3, 0.5),
        "thorax_width": (0.35, 0.62),
        "thorax_length": (0.35, 0.55),
        "thorax_front": (0.7, 1.2),
        "elytra_length": (0.9, 1.4),
        "elytra_width": (0.26, 0.66),
        "elytra_front": (0.05, 0.25),
        "elytra_tip": (0.35, 1.0),
        "antenna_length": (0.5, 1.2),
        "leg_length": (0.8, 1.6),
        "hind_leg": (1.0, 1.4),
    },
    "Lepidoptera": {
        "head_width": (0.15, 0.2),
        "head_length": (0.18, 0.22),
        "eye": (0.3, 0.4),
        "thorax_width": (0.18, 0.26),
        "abdomen_width": (0.13, 0.22),
        "abdomen_length": (0.75, 1.05),
        "abdomen_tip": (0.5, 1.0),
        "antenna_length": (0.5, 0.9),
        "antenna_angle": (25.0, 50.0),
        "leg_length": (0.1, 0.2),
        "hair": (0.2, 0.8),
        "wing_length": (1.1, 1.5),
        "wing_width": (0.42, 0.8),
        "wing_angle": (62.0, 118.0),
        "wing_tip": (0.12, 0.8),
        "hind_length": (0.75, 1.15),
        "hind_width": (0.4, 0.75),
        "hind_angle": (30.0, 62.0),
    },
    "Orthoptera": {
        "head_width": (0.2, 0.28),
        "head_length": (0.25, 0.4),
        "eye": (0.25, 0.4),
        "thorax_width": (0.22, 0.34),
        "thorax_length": (0.4, 0.65),
        "thorax_front": (0.1, 0.4),
        "elytra_length": (0.7, 1.7),
        "elytra_width": (0.2, 0.36),
        "elytra_front": (0.1, 0.3),
        "elytra_tip": (0.3, 0.9),
        "antenna_length": (0.4, 2.0),
        "leg_length": (0.7, 0.9),
        "leg_width": (2.0, 2.8),
        "hind_leg": (1.7, 2.1),
        "tail": (-0.3, 0.5),
    },
    "Neuroptera": {
        "eye": (0.35, 0.5),
        "thorax_width": (0.15, 0.22),
        "abdomen_width": (0.09, 0.15),
        "abdomen_length": (0.9, 1.6),
        "antenna_length": (0.35, 1.2),
        "leg_length": (0.5, 0.7),
        "leg_width": (1.0, 1.4),
        "wing_length": (1.4, 1.8),
        "wing_width": (0.3, 0.55),
        "wing_angle": (40.0, 60.0),
        "wing_tip": (0.3, 0.7),
        "hind_length": (1.2, 1.6),
        "hind_width": (0.26, 0.45),
        "hind_angle": (18.0, 34.0),
        "cross_veins": (7.0, 9.0),
    },
    "Odonata": {
        "head_width": (0.26, 0.42),
        "eye": (0.55, 0.75),
        "thorax_width": (0.18, 0.28),
        "thorax_length": (0.4, 0.5),
        "abdomen_width": (0.06, 0.16),
        "abdomen_length": (1.4, 1.9),
        "abdomen_front": (0.1, 0.3),
        "abdomen_tip": (0.1, 0.3),
        "antenna_length": (0.1, 0.15),
        "leg_length": (0.4, 0.6),
        "leg_width": (1.0, 1.4),
        "wing_length": (1.4, 1.7),
        "wing_width": (0.17, 0.3),
        "wing_angle": (78.0, 100.0),
        "wing_tip": (0.2, 0.4),
        "hind_length": (1.3, 1.6),
        "hind_width": (0.17, 0.4),
        "hind_angle": (58.0, 76.0),
        "cross_veins": (5.0, 9.0),
    },
}
ORDERS = tuple(_PLANS)


def scatter(index: int, count: int, offsets: np.ndarray) -> np.ndarray:
    """The `index`-th point in 0..1 of a Kronecker sequence of `count` dimensions: any few points in a row lie far
    apart."""
    root = 1.5
    for _ in range(40):  # the root of x^(count+1) = x + 1 (Roberts 2018, the R sequence)
        root = (1.0 + root) ** (1.0 / (count + 1))
    return (offsets + index * root ** -np.arange(1.0, count + 1)) % 1.0


def family_measures(order: str, family: int, offsets: np.ndarray) -> dict[str, float]:
    """Measures of the `family`-th family of an order; `offsets` [>= number of varying measures] in 0..1 come from the
    seed."""
    ranges = {**_COMMON, **_PLANS[order]}
    free = [name for name, (low, high) in ranges.items() if low != high and name in _PLANS[order]]
    place = dict(zip(free, scatter(family, len(free), offsets[: len(free)]), strict=True))
    measures = {name: low + (high - low) * float(place.get(name, 0.5)) for name, (low, high) in ranges.items()}
    for name in ("snout", "tail", "hair"):
        measures[name] = max(0.0, measures[name])
    return measures
