"""Anatomy of the simulated insects: what an order, a family and a single specimen look like from above, as outlines.

Body coordinates: x to the insect's right, y towards the tail, the head-to-tail axis at x = 0, lengths in units of
roughly half a body. An order fixes the plan and the range of every measure; a family takes its place inside the ranges
(`simulated_measures`); a specimen varies a little around its family. Colours and patterns are `simulated_photos`'.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

_FEATHERY, _CLUBBED, _ELBOWED = "feathery", "clubbed", "elbowed"
_ANTENNAE = {
    "Diptera": ("plain", _FEATHERY),
    "Hymenoptera": (_ELBOWED, "plain"),
    "Coleoptera": (_CLUBBED, "plain", _FEATHERY),
    "Lepidoptera": (_CLUBBED, _FEATHERY),
    "Neuroptera": ("plain", _CLUBBED),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One filled surface. A point of it has u in 0..1 along the axis from base to end and v in -1..1 across."""

    kind: str  # head | eye | thorax | waist | abdomen | wing | scaled_wing | elytron | scutellum | membrane
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
    """Strokes below everything, then parts in the order they are painted; veins go on top of the wings."""

    under: list[Stroke]
    parts: list[Part]
    veins: list[Stroke]


def build(order: str, antenna: int, measures: Mapping[str, float], rng: np.random.Generator) -> Body:
    """Return a specimen's body: its family's measures with small individual changes, its own posture."""
    m = {name: value * float(np.exp(rng.normal(0.0, 0.05))) for name, value in measures.items()}
    bend = float(rng.normal(0.0, 0.06))
    head_y = -m["thorax_length"] / 2
    tail_y = m["thorax_length"] / 2
    kinds = _ANTENNAE.get(order, ("plain",))
    under = _legs(order, m, rng) + _antennae(kinds[antenna % len(kinds)], m, head_y, rng)
    parts, veins = _wings("scaled_wing" if order == "Lepidoptera" else "wing", m, rng)
    head = _head(m, head_y)
    thorax = _segment(
        "thorax", -m["thorax_length"] * 0.5, m["thorax_length"], m["thorax_width"], (m["thorax_front"], 0.35)
    )
    abdomen: list[Part] = []
    if m["elytra_length"] > 0:
        abdomen = _elytra(order, m, tail_y, rng)
        parts, veins = [], []
    else:
        start = tail_y - 0.06
        if m["waist"] > 0.02:
            abdomen.append(_segment("waist", start, m["waist"] * 0.6 + 0.12, 0.05, (0.2, 0.2)))
            start += m["waist"] * 0.6
        abdomen.append(
            _segment(
                "abdomen", start, m["abdomen_length"], m["abdomen_width"], (m["abdomen_front"], m["abdomen_tip"]), bend
            )
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
    if order in ("Diptera", "Hymenoptera", "Neuroptera"):  # their wings lie over the abdomen
        return Body(under=under, parts=[*abdomen, *parts, thorax, *head], veins=veins)
    return Body(under=under, parts=[*parts, *abdomen, thorax, *head], veins=veins)


def _profile(front: float, tip: float, count: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Return (t, width) [count]: a width of at most 1 along t in 0..1.

    The larger an exponent the more pointed the end.
    """
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
    """Place points given as (along, forward) of a limb: `degrees` from the tail axis, then mirrored by side."""
    angle = np.deg2rad(degrees)
    along, forward = points[:, 0], points[:, 1]
    x = along * np.sin(angle) + forward * np.cos(angle)
    y = along * np.cos(angle) - forward * np.sin(angle)
    return np.stack([side * (root[0] + x), root[1] + y], axis=1)


def _wings(kind: str, m: Mapping[str, float], rng: np.random.Generator) -> tuple[list[Part], list[Stroke]]:
    """Return wings as parts of a kind, and their veins; hind wings come first, below the others."""
    parts: list[Part] = []
    veins: list[Stroke] = []
    posture = float(rng.normal(0.0, 6.0))
    for pair, y in (("hind", 0.12), ("wing", -0.06)):
        length, width = m[f"{pair}_length"], m[f"{pair}_width"]
        if length <= 0:
            continue
        t, shape = _profile(0.7, m["wing_tip"], 17)
        leading, trailing = 0.38 * width * shape, -1.1 * width * (t**0.8) * (1.0 - t) ** m["wing_tip"] * 1.5
        blade = np.concatenate([np.stack([t * length, leading], 1), np.stack([t * length, trailing], 1)[::-1]])
        for side in (-1, 1):
            angle = m[f"{pair}_angle"] + posture + float(rng.normal(0.0, 4.0))
            root = (0.55 * m["thorax_width"], y)
            axis = _turn(np.array([[0.0, -0.3 * width], [length, -0.3 * width]]), angle, root, side)
            parts.append(
                Part(
                    kind=kind,
                    outline=_turn(blade, angle, root, side),
                    base=tuple(axis[0]),
                    end=tuple(axis[1]),
                    half_width=0.72 * width,
                )
            )
            place = partial(_turn, degrees=angle, root=root, side=side)
            veins += _veins(t * length, leading, trailing, m["cross_veins"], place)
    return parts, veins


def _veins(
    along: np.ndarray,
    leading: np.ndarray,
    trailing: np.ndarray,
    cross: float,
    place: Callable[[np.ndarray], np.ndarray],
) -> list[Stroke]:
    """Return four veins along the wing and `cross` across it; `place` turns wing coordinates into the body's."""
    shares = np.array([0.0, 0.25, 0.5, 0.75])[:, None]
    grid = place(np.stack([np.tile(along, 4), (leading + shares * (trailing - leading)).ravel()], 1)).reshape(4, -1, 2)
    edge = place(np.stack([along, trailing], 1))
    lines = [grid[row, : len(along) - row] for row in range(4)]
    crossings = [3 + int(number * 11 / max(1.0, cross)) for number in range(int(cross + 0.5))]
    lines += [np.array([grid[0, i], edge[i]]) for i in crossings]
    return [Stroke(kind="vein", points=line, width=1.0) for line in lines]


def _elytra(order: str, m: Mapping[str, float], y: float, rng: np.random.Generator) -> list[Part]:
    """Return wing cases: two halves that meet in the middle; bugs also have a triangle and a membrane at the end."""
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
        parts.append(
            Part(
                kind="elytron",
                outline=outline,
                base=(middle, start),
                end=(middle, start + length),
                half_width=width * 0.5,
            )
        )
    if order == "Hemiptera":
        end = _segment("membrane", start + 0.62 * length, 0.42 * length, 0.8 * width * float(shape[9]), (0.6, 0.5))
        triangle = np.array([[-0.55 * width, start], [0.55 * width, start], [0.0, start + 0.5 * length]])
        scutellum = Part(
            kind="scutellum",
            outline=triangle,
            base=(0.0, start),
            end=(0.0, start + 0.5 * length),
            half_width=0.55 * width,
        )
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
        strokes += [
            Stroke(kind="hair", points=np.stack([a, b]), width=1.0)
            for a, b in zip(part.outline[::2], tips, strict=True)
        ]
    return strokes
