"""Anatomy of the simulated insects: what an order, a family and a single specimen look like from above, as outlines.

Body coordinates: x to the insect's right, y towards the tail, the head-to-tail axis at x = 0, lengths in units of roughly half a body.
An order fixes the plan and the range of every measure; a family takes its place inside the ranges; a specimen varies a little
around its family. Colours and patterns belong to `simulated_photos`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]
# Measures of the families of an order: (lowest, highest). Widths are half-widths; angles in degrees from the tail axis.
_COMMON: dict[str, Range] = {
    "head_width": (0.2, 0.3), "head_length": (0.22, 0.3), "eye": (0.3, 0.45), "snout": (0.0, 0.0),
    "thorax_width": (0.22, 0.32), "thorax_length": (0.45, 0.6), "thorax_front": (0.35, 0.6),
    "waist": (0.0, 0.0), "abdomen_width": (0.2, 0.32), "abdomen_length": (0.8, 1.1),
    "abdomen_front": (0.3, 0.6), "abdomen_tip": (0.4, 0.8), "tail": (0.0, 0.0),
    "antenna_length": (0.4, 0.8), "antenna_angle": (20.0, 60.0), "leg_length": (0.8, 1.1), "leg_width": (1.0, 2.4),
    "hind_leg": (1.0, 1.15), "hair": (0.0, 0.0), "wing_length": (0.0, 0.0), "wing_width": (0.3, 0.4),
    "wing_angle": (40.0, 70.0), "wing_tip": (0.25, 0.6), "hind_length": (0.0, 0.0), "hind_width": (0.3, 0.4),
    "hind_angle": (30.0, 50.0), "elytra_length": (0.0, 0.0), "elytra_width": (0.4, 0.5), "elytra_front": (0.2, 0.4),
    "elytra_tip": (0.3, 0.6), "cross_veins": (0.0, 3.0),
}  # fmt: skip
_PLANS: dict[str, dict[str, Range]] = {
    "Diptera": {
        "head_width": (0.2, 0.36), "eye": (0.55, 0.85), "snout": (-0.3, 0.4), "thorax_width": (0.2, 0.42),
        "abdomen_width": (0.1, 0.42), "abdomen_length": (0.55, 1.3), "abdomen_front": (0.2, 0.8), "abdomen_tip": (0.3, 1.0),
        "antenna_length": (0.1, 0.5), "leg_length": (0.7, 2.0), "hair": (-0.6, 1.0), "wing_length": (0.9, 1.5),
        "wing_width": (0.16, 0.42), "wing_angle": (14.0, 80.0), "wing_tip": (0.2, 0.7), "cross_veins": (0.0, 2.0),
    },
    "Hymenoptera": {
        "head_width": (0.24, 0.38), "eye": (0.35, 0.5), "waist": (0.1, 0.45), "abdomen_width": (0.17, 0.42),
        "abdomen_length": (0.7, 1.25), "abdomen_front": (0.35, 1.1), "abdomen_tip": (0.4, 1.1), "tail": (-0.7, 0.9),
        "antenna_length": (0.5, 1.1), "hair": (-0.8, 0.8), "wing_length": (0.9, 1.4), "wing_width": (0.2, 0.34),
        "wing_angle": (30.0, 85.0), "hind_length": (0.6, 0.9), "hind_width": (0.14, 0.24), "hind_angle": (18.0, 60.0),
    },
    "Coleoptera": {
        "head_width": (0.18, 0.4), "head_length": (0.2, 0.4), "eye": (0.2, 0.35), "snout": (-0.4, 0.6), "thorax_width": (0.28, 0.52),
        "thorax_length": (0.28, 0.6), "thorax_front": (0.15, 0.6), "elytra_length": (0.75, 1.5), "elytra_width": (0.3, 0.7),
        "elytra_front": (0.12, 0.5), "elytra_tip": (0.2, 0.8), "antenna_length": (0.3, 1.8), "antenna_angle": (30.0, 75.0),
        "leg_length": (0.7, 1.1), "leg_width": (1.6, 3.2),
    },
    "Hemiptera": {
        "head_width": (0.16, 0.24), "head_length": (0.2, 0.36), "eye": (0.3, 0.5), "thorax_width": (0.35, 0.62), "thorax_length": (0.35, 0.55),
        "thorax_front": (0.7, 1.2), "elytra_length": (0.9, 1.4), "elytra_width": (0.26, 0.66), "elytra_front": (0.05, 0.25),
        "elytra_tip": (0.35, 1.0), "antenna_length": (0.5, 1.2), "leg_length": (0.8, 1.6), "hind_leg": (1.0, 1.4),
    },
    "Lepidoptera": {
        "head_width": (0.15, 0.2), "head_length": (0.18, 0.22), "eye": (0.3, 0.4), "thorax_width": (0.18, 0.26), "abdomen_width": (0.13, 0.22),
        "abdomen_length": (0.75, 1.05), "abdomen_tip": (0.5, 1.0), "antenna_length": (0.5, 0.9), "antenna_angle": (25.0, 50.0),
        "leg_length": (0.1, 0.2), "hair": (0.2, 0.8), "wing_length": (1.1, 1.5), "wing_width": (0.42, 0.8),
        "wing_angle": (62.0, 118.0), "wing_tip": (0.12, 0.8), "hind_length": (0.75, 1.15), "hind_width": (0.4, 0.75),
        "hind_angle": (30.0, 62.0),
    },
    "Orthoptera": {
        "head_width": (0.2, 0.28), "head_length": (0.25, 0.4), "eye": (0.25, 0.4), "thorax_width": (0.22, 0.34), "thorax_length": (0.4, 0.65),
        "thorax_front": (0.1, 0.4), "elytra_length": (0.7, 1.7), "elytra_width": (0.2, 0.36), "elytra_front": (0.1, 0.3),
        "elytra_tip": (0.3, 0.9), "antenna_length": (0.4, 2.0), "leg_length": (0.7, 0.9), "leg_width": (2.0, 2.8), "hind_leg": (1.7, 2.1),
        "tail": (-0.3, 0.5),
    },
    "Neuroptera": {
        "eye": (0.35, 0.5), "thorax_width": (0.15, 0.22), "abdomen_width": (0.09, 0.15), "abdomen_length": (0.9, 1.6),
        "antenna_length": (0.35, 1.2), "leg_length": (0.5, 0.7), "leg_width": (1.0, 1.4), "wing_length": (1.4, 1.8), "wing_width": (0.3, 0.55),
        "wing_angle": (40.0, 60.0), "wing_tip": (0.3, 0.7), "hind_length": (1.2, 1.6), "hind_width": (0.26, 0.45), "hind_angle": (18.0, 34.0),
        "cross_veins": (7.0, 9.0),
    },
    "Odonata": {
        "head_width": (0.26, 0.42), "eye": (0.55, 0.75), "thorax_width": (0.18, 0.28), "thorax_length": (0.4, 0.5), "abdomen_width": (0.06, 0.16),
        "abdomen_length": (1.4, 1.9), "abdomen_front": (0.1, 0.3), "abdomen_tip": (0.1, 0.3), "antenna_length": (0.1, 0.15),
        "leg_length": (0.4, 0.6), "leg_width": (1.0, 1.4), "wing_length": (1.4, 1.7), "wing_width": (0.17, 0.3), "wing_angle": (78.0, 100.0),
        "wing_tip": (0.2, 0.4), "hind_length": (1.3, 1.6), "hind_width": (0.17, 0.4), "hind_angle": (58.0, 76.0), "cross_veins": (5.0, 9.0),
    },
}  # fmt: skip
ORDERS = tuple(_PLANS)
_FEATHERY, _CLUBBED, _ELBOWED = "feathery", "clubbed", "elbowed"
_ANTENNAE = {
    "Diptera": ("plain", _FEATHERY), "Hymenoptera": (_ELBOWED, "plain"), "Coleoptera": (_CLUBBED, "plain", _FEATHERY),
    "Lepidoptera": (_CLUBBED, _FEATHERY), "Neuroptera": ("plain", _CLUBBED),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """One filled surface. A point of it has u in 0..1 along the axis from base to end and v in -1..1 across."""

    kind: str  # head | eye | thorax | abdomen | wing | hind_wing | elytron | scutellum | membrane
    outline: np.ndarray  # float [N, 2]
    base: tuple[float, float]
    end: tuple[float, float]
    half_width: float


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """A line of constant width."""

    kind: str  # leg | antenna | vein | hair | tail
    points: np.ndarray  # float [N, 2]
    width: float  # pixels of a photo of 128


@dataclass(frozen=True, kw_only=True)
class Body:
    """Strokes below everything, then parts in the order they are painted, then strokes on top."""

    under: list[Stroke]
    parts: list[Part]
    veins: list[Stroke]
    over: list[Stroke]


def scatter(index: int, count: int, offsets: np.ndarray) -> np.ndarray:
    """The `index`-th point in 0..1 of a Kronecker sequence of `count` dimensions: any few points in a row lie far apart."""
    root = 1.5
    for _ in range(40):  # the root of x^(count+1) = x + 1 (Roberts 2018, the R sequence)
        root = (1.0 + root) ** (1.0 / (count + 1))
    return (offsets + index * root ** -np.arange(1.0, count + 1)) % 1.0


def family_measures(order: str, family: int, offsets: np.ndarray) -> dict[str, float]:
    """Measures of the `family`-th family of an order; `offsets` [>= number of varying measures] in 0..1 come from the seed."""
    ranges = {**_COMMON, **_PLANS[order]}
    free = [name for name, (low, high) in ranges.items() if low != high and name in _PLANS[order]]
    place = dict(zip(free, scatter(family, len(free), offsets[: len(free)]), strict=True))
    measures = {name: low + (high - low) * float(place.get(name, 0.5)) for name, (low, high) in ranges.items()}
    for name in ("snout", "tail", "hair"):
        measures[name] = max(0.0, measures[name])
    return measures


def build(order: str, antenna: int, measures: Mapping[str, float], rng: np.random.Generator) -> Body:
    """A specimen's body: its family's measures with small individual changes, its own posture."""
    m = {name: value * float(np.exp(rng.normal(0.0, 0.04))) for name, value in measures.items()}
    bend = float(rng.normal(0.0, 0.06))
    head_y = -m["thorax_length"] / 2
    tail_y = m["thorax_length"] / 2
    kinds = _ANTENNAE.get(order, ("plain",))
    under = _legs(order, m, rng) + _antennae(kinds[antenna % len(kinds)], m, head_y, rng)
    parts, veins = _wings(m, rng)
    head = _head(m, head_y)
    thorax = _segment("thorax", -m["thorax_length"] * 0.5, m["thorax_length"], m["thorax_width"], (m["thorax_front"], 0.35))
    abdomen: list[Part] = []
    over: list[Stroke] = []
    if m["elytra_length"] > 0:
        abdomen = _elytra(order, m, tail_y, rng)
        parts = []
    else:
        start = tail_y - 0.06
        if m["waist"] > 0.02:
            abdomen.append(_segment("waist", start, m["waist"] * 0.6 + 0.12, 0.05, (0.2, 0.2)))
            start += m["waist"] * 0.6
        abdomen.append(
            _segment("abdomen", start, m["abdomen_length"], m["abdomen_width"], (m["abdomen_front"], m["abdomen_tip"]), bend)
        )
        tail_y = start + m["abdomen_length"]
    if m["tail"] > 0.05:
        end = tail_y + (m["elytra_length"] if m["elytra_length"] > 0 else 0.0) - 0.05
        spread = 0.0 if order == "Hymenoptera" else 0.12
        x = 0.0 if m["elytra_length"] > 0 else bend
        under += [
            Stroke(kind="tail", points=np.array([[x, end - 0.1], [x + side * spread, end + m["tail"]]]), width=1.2)
            for side in (-1, 1)
        ]
    if m["hair"] > 0.1:
        under += _hair(m, [thorax, *abdomen], rng)
    if order == "Lepidoptera":
        return Body(under=under, parts=[*parts, *abdomen, thorax, *head], veins=veins, over=over)
    if order in ("Diptera", "Hymenoptera", "Neuroptera"):  # wings lie over the abdomen, their veins show
        return Body(under=under, parts=[*abdomen, *parts, thorax, *head], veins=veins, over=over)
    return Body(under=under, parts=[*parts, *abdomen, thorax, *head], veins=veins, over=over)


def _profile(front: float, tip: float, count: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """(t, width) [count]: a width of at most 1 along t in 0..1; small exponents make blunt ends, large ones pointed ends."""
    t = 0.5 - 0.5 * np.cos(np.linspace(0.0, np.pi, count))
    peak = front / (front + tip)
    return t, (t / peak) ** front * ((1.0 - t) / (1.0 - peak)) ** tip


def _segment(
    kind: str, start: float, length: float, half_width: float, shape: tuple[float, float], bend: float = 0.0
) -> Part:
    t, width = _profile(*shape)
    middle, y = bend * t**2, start + t * length
    right = np.stack([middle + half_width * width, y], axis=1)
    left = np.stack([middle - half_width * width, y], axis=1)
    outline = np.concatenate([right, left[::-1]])
    return Part(kind=kind, outline=outline, base=(0.0, start), end=(bend, start + length), half_width=half_width)


def _head(m: Mapping[str, float], y: float) -> list[Part]:
    length, width = m["head_length"], m["head_width"]
    top = y - 0.75 * length
    parts = [_segment("head", top, length, width, (0.5, 0.45))]
    if m["snout"] > 0.05:
        parts.insert(0, _segment("head", top - m["snout"] * 0.8, m["snout"] + 0.1, 0.05 + 0.06 * width, (0.15, 0.2)))
    radius = min(m["eye"] * width, 0.6 * length + 0.04)
    for side in (-1, 1):
        eye = _segment("eye", top + 0.5 * length - radius, 2.0 * radius, 0.7 * radius, (0.5, 0.5))
        shift = np.array([side * (width - 0.5 * radius), 0.0])
        base, end = (eye.base[0] + shift[0], eye.base[1]), (eye.end[0] + shift[0], eye.end[1])
        parts.append(Part(kind="eye", outline=eye.outline + shift, base=base, end=end, half_width=eye.half_width))
    return parts


def _turn(points: np.ndarray, degrees: float, root: tuple[float, float], side: int) -> np.ndarray:
    """Place points given as (along, forward) of a limb: `degrees` from the tail axis outwards, then mirrored by side."""
    angle = np.deg2rad(degrees)
    along, forward = points[:, 0], points[:, 1]
    x = along * np.sin(angle) + forward * np.cos(angle)
    y = along * np.cos(angle) - forward * np.sin(angle)
    return np.stack([side * (root[0] + x), root[1] + y], axis=1)


def _wings(m: Mapping[str, float], rng: np.random.Generator) -> tuple[list[Part], list[Stroke]]:
    parts, veins = [], []
    posture = float(rng.normal(0.0, 4.0))
    pairs = [("hind_wing", "hind_length", "hind_width", "hind_angle", 0.12), ("wing", "wing_length", "wing_width", "wing_angle", -0.06)]
    for kind, length_name, width_name, angle_name, y in pairs:
        length, width = m[length_name], m[width_name]
        if length <= 0:
            continue
        t, shape = _profile(0.7, m["wing_tip"], 17)
        leading, trailing = 0.38 * width * shape, -1.1 * width * (t**0.8) * (1.0 - t) ** m["wing_tip"] * 1.5
        blade = np.concatenate([np.stack([t * length, leading], 1), np.stack([t * length, trailing], 1)[::-1]])
        for side in (-1, 1):
            angle = m[angle_name] + posture + float(rng.normal(0.0, 3.0))
            root = (0.55 * m["thorax_width"], y)
            axis = _turn(np.array([[0.0, -0.3 * width], [length, -0.3 * width]]), angle, root, side)
            parts.append(
                Part(kind=kind, outline=_turn(blade, angle, root, side), base=tuple(axis[0]), end=tuple(axis[1]), half_width=0.72 * width)
            )
            veins += _veins(t * length, leading, trailing, m["cross_veins"], lambda p, a=angle, r=root, s=side: _turn(p, a, r, s))
    return parts, veins


def _veins(along: np.ndarray, leading: np.ndarray, trailing: np.ndarray, cross: float, place) -> list[Stroke]:
    """Four veins along the wing and `cross` across it; `place` turns wing coordinates into the body's."""
    shares = np.array([0.0, 0.25, 0.5, 0.75])[:, None]
    grid = place(np.stack([np.tile(along, 4), (leading + shares * (trailing - leading)).ravel()], 1)).reshape(4, -1, 2)
    edge = place(np.stack([along, trailing], 1))
    lines = [grid[row, : len(along) - row] for row in range(4)]
    crossings = [3 + int(number * 11 / max(1.0, cross)) for number in range(int(cross + 0.5))]
    lines += [np.array([grid[0, i], edge[i]]) for i in crossings]
    return [Stroke(kind="vein", points=line, width=1.0) for line in lines]


def _elytra(order: str, m: Mapping[str, float], y: float, rng: np.random.Generator) -> list[Part]:
    """Wing cases: two halves that meet in the middle; bugs also have a triangle and a membrane at the end."""
    start, length, width = y - 0.05, m["elytra_length"], m["elytra_width"]
    t, shape = _profile(m["elytra_front"], m["elytra_tip"])
    gap = max(0.0, float(rng.normal(0.0, 0.02))) if order == "Coleoptera" else 0.0
    parts = []
    if m["abdomen_width"] > 0 and order != "Coleoptera":
        parts.append(_segment("abdomen", start, length * 0.97, width * 1.08, (m["elytra_front"], m["elytra_tip"])))
    for side in (-1, 1):
        inner = np.stack([side * gap * t, start + t * length], 1)
        outer = np.stack([side * (gap * t + width * shape), start + t * length], 1)
        outline = np.concatenate([inner, outer[::-1]])
        middle = side * width * 0.5
        parts.append(Part(kind="elytron", outline=outline, base=(middle, start), end=(middle, start + length), half_width=width * 0.5))
    if order == "Hemiptera":
        end = _segment("membrane", start + 0.62 * length, 0.42 * length, 0.8 * width * float(shape[9]), (0.6, 0.5))
        triangle = np.array([[-0.55 * width, start], [0.55 * width, start], [0.0, start + 0.5 * length]])
        scutellum = Part(kind="scutellum", outline=triangle, base=(0.0, start), end=(0.0, start + 0.5 * length), half_width=0.55 * width)
        parts += [end, scutellum]
    return parts


def _legs(order: str, m: Mapping[str, float], rng: np.random.Generator) -> list[Stroke]:
    strokes = []
    for pair, (angle, y) in enumerate(((140.0, -0.3), (82.0, 0.0), (42.0, 0.3))):
        length = m["leg_length"] * (m["hind_leg"] if pair == 2 else 0.9)
        jumping = pair == 2 and m["hind_leg"] > 1.45
        for side in (-1, 1):
            first = np.deg2rad(angle + rng.normal(0.0, 7.0))
            if jumping:
                first = np.deg2rad(38.0 + rng.normal(0.0, 5.0))
            bend = np.deg2rad((20.0, -28.0, -62.0 if jumping else -24.0)[pair] + rng.normal(0.0, 8.0))
            root = np.array([0.6 * m["thorax_width"], y * m["thorax_length"]])
            knee = root + 0.48 * length * np.array([np.sin(first), np.cos(first)])
            foot = knee + 0.55 * length * np.array([np.sin(first + bend), np.cos(first + bend)])
            points = np.stack([root, knee, foot]) * np.array([side, 1.0])
            strokes.append(Stroke(kind="leg", points=points[:2], width=m["leg_width"] * (2.3 if jumping else 1.3)))
            strokes.append(Stroke(kind="leg", points=points[1:], width=m["leg_width"] * 0.8))
    return strokes


def _antennae(kind: str, m: Mapping[str, float], head_y: float, rng: np.random.Generator) -> list[Stroke]:
    strokes = []
    for side in (-1, 1):
        angle = np.deg2rad(m["antenna_angle"] + rng.normal(0.0, 6.0))
        length = m["antenna_length"]
        t = np.linspace(0.0, 1.0, 7)
        curl = angle + (t * 0.7 if kind != _ELBOWED else np.where(t > 0.4, 0.9, -0.2))
        steps = np.stack([np.sin(curl), -np.cos(curl)], 1) * length / 6
        start = np.array([0.4 * m["head_width"], head_y - 0.6 * m["head_length"]])
        points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps[1:], 0)])
        mirror = np.array([side, 1.0])
        strokes.append(Stroke(kind="antenna", points=points * mirror, width=1.4 if kind == _ELBOWED else 1.0))
        if kind == _CLUBBED:
            strokes.append(Stroke(kind="antenna", points=points[-2:] * mirror, width=3.0))
        if kind == _FEATHERY:
            across = np.stack([np.cos(curl), np.sin(curl)], 1) * 0.16 * np.sin(np.pi * (0.1 + 0.85 * t))[:, None]
            strokes += [
                Stroke(kind="antenna", points=np.stack([p - a, p, p + a]) * mirror, width=1.0)
                for p, a in zip(points[1:], across[1:], strict=True)
            ]
    return strokes


def _hair(m: Mapping[str, float], parts: list[Part], rng: np.random.Generator) -> list[Stroke]:
    strokes = []
    for part in parts:
        middle = part.outline.mean(axis=0)
        out = part.outline[::2] - middle
        tips = middle + out * (1.0 + 0.12 / np.maximum(0.1, np.linalg.norm(out, axis=1)) * m["hair"])[:, None]
        tips += rng.normal(0.0, 0.02, tips.shape)
        strokes += [Stroke(kind="hair", points=np.stack([a, b]), width=1.0) for a, b in zip(part.outline[::2], tips, strict=True)]
    return strokes
