"""Measures of the simulated insects: an order fixes the range of each, a family takes its own place inside the ranges.

Widths are half-widths, angles are degrees from the tail axis, lengths are in units of roughly half a body. A range that
starts below 0 for `snout`, `tail`, `hair` means that some families have none.
"""

import numpy as np

Range = tuple[float, float]
_TABLE = """
measure        any        Diptera    Hymenoptera Coleoptera Hemiptera  Lepidoptera Orthoptera Neuroptera Odonata
head_width     0.2..0.3   0.2..0.36  0.24..0.38  0.18..0.4  0.16..0.24 0.15..0.2   0.2..0.28  -          0.26..0.42
head_length    0.22..0.3  -          -           0.2..0.4   0.2..0.36  0.18..0.22  0.25..0.4  -          -
eye            0.3..0.45  0.55..0.85 0.35..0.5   0.2..0.35  0.3..0.5   0.3..0.4    0.25..0.4  0.35..0.5  0.55..0.75
snout          0..0       -0.3..0.4  -           -0.4..0.6  -          -           -          -          -
thorax_width   0.22..0.32 0.2..0.42  -           0.28..0.52 0.35..0.62 0.18..0.26  0.22..0.34 0.15..0.22 0.18..0.28
thorax_length  0.45..0.6  -          -           0.28..0.6  0.35..0.55 -           0.4..0.65  -          0.4..0.5
thorax_front   0.35..0.6  -          -           0.15..0.6  0.7..1.2   -           0.1..0.4   -          -
waist          0..0       -          0.1..0.45   -          -          -           -          -          -
abdomen_width  0.2..0.32  0.1..0.42  0.17..0.42  -          -          0.13..0.22  -          0.09..0.15 0.06..0.16
abdomen_length 0.8..1.1   0.55..1.3  0.7..1.25   -          -          0.75..1.05  -          0.9..1.6   1.4..1.9
abdomen_front  0.3..0.6   0.2..0.8   0.35..1.1   -          -          -           -          -          0.1..0.3
abdomen_tip    0.4..0.8   0.3..1     0.4..1.1    -          -          0.5..1      -          -          0.1..0.3
tail           0..0       -          -0.7..0.9   -          -          -           -0.3..0.5  -          -
antenna_length 0.4..0.8   0.1..0.5   0.5..1.1    0.3..1.8   0.5..1.2   0.5..0.9    0.4..2     0.35..1.2  0.1..0.15
antenna_angle  20..60     -          -           30..75     -          25..50      -          -          -
leg_length     0.8..1.1   0.7..2     -           0.7..1.1   0.8..1.6   0.1..0.2    0.7..0.9   0.5..0.7   0.4..0.6
leg_width      1..2.4     -          -           1.6..3.2   -          -           2..2.8     1..1.4     1..1.4
hind_leg       1..1.15    -          -           -          1..1.4     -           1.7..2.1   -          -
hair           0..0       -0.6..1    -0.8..0.8   -          -          0.2..0.8    -          -          -
wing_length    0..0       1..1.7     1..1.5      -          -          1.1..1.5    -          1.4..1.8   1.4..1.7
wing_width     0.3..0.4   0.22..0.46 0.24..0.38  -          -          0.42..0.8   -          0.3..0.55  0.17..0.3
wing_angle     40..70     14..80     30..85      -          -          62..118     -          40..60     78..100
wing_tip       0.25..0.6  0.2..0.7   -           -          -          0.12..0.8   -          0.3..0.7   0.2..0.4
hind_length    0..0       -          0.6..0.9    -          -          0.75..1.15  -          1.2..1.6   1.3..1.6
hind_width     0.3..0.4   -          0.14..0.24  -          -          0.4..0.75   -          0.26..0.45 0.17..0.4
hind_angle     30..50     -          18..60      -          -          30..62      -          18..34     58..76
elytra_length  0..0       -          -           0.75..1.5  0.9..1.4   -           0.7..1.7   -          -
elytra_width   0.4..0.5   -          -           0.3..0.7   0.26..0.66 -           0.2..0.36  -          -
elytra_front   0.2..0.4   -          -           0.12..0.5  0.05..0.25 -           0.1..0.3   -          -
elytra_tip     0.3..0.6   -          -           0.2..0.8   0.35..1    -           0.3..0.9   -          -
cross_veins    0..3       0..2       -           -          -          -           -          7..9       5..9
"""
"""(lowest, highest) of every measure among the families of any order, and where an order has its own."""


def _read_table(text: str) -> dict[str, dict[str, Range]]:
    """Return the ranges of each column, in the order of the rows."""
    header, *rows = (line.split() for line in text.strip().splitlines())
    return {
        column: {row[0]: tuple(map(float, row[place].split(".."))) for row in rows if row[place] != "-"}  # type: ignore[misc]
        for place, column in enumerate(header[1:], 1)
    }


_PLANS = _read_table(_TABLE)
_COMMON = _PLANS.pop("any")
ORDERS = tuple(_PLANS)


def scatter(index: int, count: int, offsets: np.ndarray) -> np.ndarray:
    """Return point `index` in 0..1 of a Kronecker sequence of `count` dimensions: points in a row lie far apart."""
    root = 1.5
    for _ in range(40):  # the root of x^(count+1) = x + 1 (Roberts 2018, the R sequence)
        root = (1.0 + root) ** (1.0 / (count + 1))
    return (offsets + index * root ** -np.arange(1.0, count + 1)) % 1.0


def family_measures(order: str, family: int, offsets: np.ndarray) -> dict[str, float]:
    """Return the measures of a family (by its number) of an order.

    `offsets` [at least as many as measures that vary], in 0..1, come from the seed.
    """
    ranges = {**_COMMON, **_PLANS[order]}
    free = [name for name, (low, high) in ranges.items() if low != high and name in _PLANS[order]]
    place = dict(zip(free, scatter(family, len(free), offsets[: len(free)]), strict=True))
    measures = {name: low + (high - low) * float(place.get(name, 0.5)) for name, (low, high) in ranges.items()}
    for name in ("snout", "tail", "hair"):
        measures[name] = max(0.0, measures[name])
    return measures
