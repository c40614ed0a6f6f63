"""Photos of the simulated insects: 128 x 128 pixels, painted from (seed, taxon, specimen number) alone.

The body plan follows order and family (`simulated_bodies`), the pattern on abdomen and wings the genus, its colours
the species. Every species draws from one palette, and light, background, pose, blur and noise belong to the specimen,
so colours do not reveal the family.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import simplejpeg

from engine.simulated import bodies as simulated_bodies
from engine.simulated.bodies import Body, Part, Stroke
from engine.simulated.measures import ORDERS, family_measures
from engine.specimens.schema import rng_for

Taxon = tuple[int, int, int, int]  # order in ORDERS, number of the family in its order, of the genus, of the species
SIDE = 128  # pixels
_SHIFT = 4  # fractional bits of cv2's coordinates


def _colours(text: str) -> np.ndarray:
    """Read colours "R G B, R G B, ...": float32 [n, 3]."""
    return np.array([colour.split() for colour in text.split(",")], dtype=np.float32)


# Black, browns, ochre, yellow, orange, red, green, steel, petrol, grey, cream: every species draws from these.
_PALETTE = _colours(
    "38 30 26, 80 52 34, 140 80 42, 188 142 76, 220 190 84, 208 118 48, "
    "156 50 40, 108 124 62, 52 70 108, 46 92 84, 128 124 116, 220 208 180"
)
# Paper, sand, lichen, leaf, stone, card, bark, slate.
_BACKGROUNDS = _colours(
    "226 224 218, 198 186 160, 150 160 120, 112 132 78, 168 172 180, 206 198 188, 128 112 92, 92 96 98"
)
_BODY_PATTERNS = ("bands", "saddle", "stripes", "spots", "dark_end", "chevrons", "line", "border", "plain")
_WING_PATTERNS = ("plain", "bands", "border", "spots", "dark_end", "eyespots", "stripes", "saddle", "chevrons")


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colours (float [3], 0..255) and patterns of a species."""

    body: np.ndarray
    mark: np.ndarray
    wing: np.ndarray
    wing_mark: np.ndarray
    leg: np.ndarray
    eye: np.ndarray
    pattern: str
    wing_pattern: str
    repeats: float
    cover: float  # share of the surface that the mark takes
    gloss: float


def photo_jpeg(seed: int, taxon: Taxon, specimen: int) -> bytes:
    """Return the JPEG of one photo; `specimen` is its number in the source."""
    image = draw(seed, taxon, specimen)
    quality = int(rng_for(seed, 0, str(specimen), "simulated/jpeg").integers(84, 95))
    return simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling="420")


def draw(seed: int, taxon: Taxon, specimen: int, nuisance: float = 1.0) -> np.ndarray:
    """Paint one photo, uint8 [128, 128, 3] RGB. `nuisance` scales pose, light, blur and noise; 0 = a museum plate."""
    rng = rng_for(seed, 0, str(specimen), "simulated/photo")
    name = ORDERS[taxon[0]]
    antenna, measures = _family(seed, name, taxon[1])
    body = simulated_bodies.build(name, antenna, measures, rng)
    look = _individual(species_look(seed, taxon), rng, nuisance)
    canvas = _background(rng, nuisance)
    place = _pose(body, rng, nuisance)
    _shadow(canvas, body.parts, place, rng)
    _strokes(canvas, body.under, place, look)
    for part in body.parts:
        _paint(canvas, part, place, look)
        if part.kind == "thorax":
            _veins(canvas, body.veins, place, look, name)
    return _photograph(canvas, rng, nuisance)


@lru_cache(maxsize=4096)
def _family(seed: int, order: str, family: int) -> tuple[int, dict[str, float]]:
    """Return (number of the kind of antenna, measures) of a family."""
    offsets = rng_for(seed, 0, order, "simulated/measures").random(48)
    return family + int(3 * offsets[-1]), family_measures(order, family, offsets)


@lru_cache(maxsize=65536)
def species_look(seed: int, taxon: Taxon) -> Look:
    """Return a species' look: patterns by genus, different in a family; colours by species, different in a genus."""
    order, family, genus, species = taxon
    rng = rng_for(seed, 0, f"{order}/{family}/{genus}", "simulated/genus")
    start = int(rng_for(seed, 0, f"{order}/{family}", "simulated/family").integers(9))
    pattern = _BODY_PATTERNS[(start + 2 * genus) % len(_BODY_PATTERNS)]
    wing_pattern = _WING_PATTERNS[(2 * start + 4 * genus) % len(_WING_PATTERNS)]
    repeats, cover = float(rng.uniform(1.6, 4.5)), float(rng.uniform(0.35, 0.6))
    first = int(rng.integers(len(_PALETTE)))
    own = rng_for(seed, 0, f"{order}/{family}/{genus}/{species}", "simulated/species")
    colours = _PALETTE * np.exp(own.normal(0.0, 0.08, (len(_PALETTE), 3))).astype(np.float32)
    body = (first + 5 * species) % len(_PALETTE)
    contrast = np.abs(colours - colours[body]).sum(axis=1)
    marks = np.argsort(contrast)[-6:]
    mark, wing_mark = (int(i) for i in own.choice(marks, 2))
    wing = int(own.integers(2, len(_PALETTE)))
    return Look(
        body=colours[body],
        mark=colours[mark],
        wing=colours[wing],
        wing_mark=colours[wing_mark if wing_mark != wing else body],
        leg=colours[int(own.integers(5))],
        eye=colours[int(own.choice([0, 1, 6, 7, 9]))],
        pattern=pattern,
        wing_pattern=wing_pattern,
        repeats=repeats * float(own.uniform(0.9, 1.1)),
        cover=cover * float(own.uniform(0.8, 1.2)),
        gloss=float(own.uniform(0.2, 1.0)),
    )


def _individual(look: Look, rng: np.random.Generator, nuisance: float) -> Look:
    """One animal of the species: paler or darker, its marks a little wider or narrower, sometimes faded."""
    shades = np.exp(nuisance * rng.normal(0.0, 0.14, 6)).astype(np.float32)
    faded = np.float32(nuisance * max(0.0, float(rng.normal(-0.1, 0.25))))
    body, mark = look.body * shades[0], look.mark * shades[1]
    return replace(
        look,
        body=body,
        mark=mark + faded * (body - mark),
        wing=look.wing * shades[2],
        wing_mark=look.wing_mark * shades[3],
        leg=look.leg * shades[4],
        eye=look.eye * shades[5],
        cover=look.cover * float(np.exp(nuisance * rng.normal(0.0, 0.15))),
    )


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Body to pixel coordinates: pixel = matrix @ point + offset."""

    matrix: np.ndarray  # [2, 2]
    offset: np.ndarray  # [2]

    inverse: np.ndarray  # [2, 2]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Turn points of the body [n, 2] into pixel coordinates [n, 2]."""
        return points @ self.matrix.T + self.offset


def _pose(body: Body, rng: np.random.Generator, nuisance: float) -> Pose:
    angle = np.deg2rad(nuisance * float(np.clip(rng.normal(0.0, 18.0), -50.0, 50.0)))
    roll = 1.0 - nuisance * abs(float(rng.normal(0.0, 0.06)))
    shear = nuisance * float(rng.normal(0.0, 0.04))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[roll, shear], [0.0, 1.0]])
    points = np.concatenate([part.outline for part in body.parts]) @ matrix.T
    limbs = [s.points for s in body.under if s.kind == "leg"]
    if limbs:
        points = np.concatenate([points, 0.8 * np.concatenate(limbs) @ matrix.T])
    low, high = points.min(axis=0), points.max(axis=0)
    size = 0.92 - nuisance * float(rng.uniform(0.0, 0.32))
    scale = SIDE * size / float((high - low).max())
    free = SIDE * (1.0 - size) / 2
    shift = nuisance * rng.uniform(-1.0, 1.0, 2) * free
    matrix *= scale
    offset = SIDE / 2 - scale * (low + high) / 2 + shift
    return Pose(matrix=matrix, offset=offset, inverse=np.linalg.inv(matrix))


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


def _shadow(canvas: np.ndarray, parts: Iterable[Part], place: Pose, rng: np.random.Generator) -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    move = rng.uniform(-5.0, 5.0, 2)
    for part in parts:
        cv2.fillPoly(mask, [_fixed(place.pixels(part.outline) + move)], 255, cv2.LINE_8, _SHIFT)
    _blend(canvas, cv2.blur(mask, (9, 9)), np.zeros(3), float(rng.uniform(0.1, 0.5)))


def _lines(strokes: list[Stroke], place: Pose) -> np.ndarray:
    """Return the coverage of the strokes, uint8 [128, 128]."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    pixels = _fixed(place.pixels(np.concatenate([stroke.points for stroke in strokes])))
    first = 0
    by_width: dict[int, list[np.ndarray]] = {}
    for stroke in strokes:
        last = first + len(stroke.points)
        by_width.setdefault(max(1, round(stroke.width)), []).append(pixels[first:last])
        first = last
    for width, lines in by_width.items():
        cv2.polylines(mask, lines, False, 255, width, cv2.LINE_AA, _SHIFT)
    return mask


def _blend(canvas: np.ndarray, mask: np.ndarray, colour: np.ndarray, opacity: float) -> None:
    """Lay a colour over the canvas where the mask is; rows of 3 * 128 numbers keep numpy's inner loops long."""
    rows = canvas.reshape(SIDE, 3 * SIDE)
    alpha = cv2.merge((mask, mask, mask)).reshape(SIDE, 3 * SIDE) * np.float32(opacity / 255)
    rows += alpha * (np.tile(colour.astype(np.float32), SIDE) - rows)


def _strokes(canvas: np.ndarray, strokes: list[Stroke], place: Pose, look: Look) -> None:
    for kinds, colour in ((("leg", "tail"), look.leg), (("antenna",), look.leg * 0.7), (("hair",), look.body * 0.8)):
        chosen = [s for s in strokes if s.kind in kinds]
        if chosen:
            _blend(canvas, _lines(chosen, place), colour, 0.9)


def _veins(canvas: np.ndarray, veins: list[Stroke], place: Pose, look: Look, order: str) -> None:
    if veins:
        _blend(canvas, _lines(veins, place), look.leg * 0.6, 0.25 if order == "Lepidoptera" else 0.55)


def _paint(canvas: np.ndarray, part: Part, place: Pose, look: Look) -> None:
    """Fill a part: pattern by (u, v), light from the round of its surface, transparent where it is a clear wing."""
    pixels = place.pixels(part.outline)
    low = np.clip(np.floor(pixels.min(axis=0)).astype(int) - 1, 0, SIDE - 1)
    high = np.clip(np.ceil(pixels.max(axis=0)).astype(int) + 2, 1, SIDE)
    if (high <= low).any():
        return
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    cv2.fillPoly(mask, [_fixed(pixels - low)], 255, cv2.LINE_AA, _SHIFT)
    u, v = _surface(part, place, low, mask.shape)
    colour, opacity = _colour(part, u, v, look)
    alpha = mask.astype(np.float32) * (1 / 255) * opacity
    region = canvas[low[1] : high[1], low[0] : high[0]]
    region += alpha[..., None] * (colour - region)


def _surface(part: Part, place: Pose, low: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return u along the part (0..1) and v across (-1..1) for the pixels of a window, float32 of `shape` each."""
    base = np.array(part.base)
    axis = np.array(part.end) - base
    length = float(np.hypot(axis[0], axis[1]))
    turn = np.array([axis / length**2, np.array((-axis[1], axis[0])) / (length * max(part.half_width, 1e-3))])
    rows = turn @ place.inverse
    start = rows @ (low - place.offset) - turn @ base
    x, y = np.arange(shape[1], dtype=np.float32), np.arange(shape[0], dtype=np.float32)[:, None]
    u, v = (np.float32(s) + np.float32(r[0]) * x + np.float32(r[1]) * y for s, r in zip(start, rows, strict=True))
    return u, v


def _colour(part: Part, u: np.ndarray, v: np.ndarray, look: Look) -> tuple[np.ndarray, np.ndarray | float]:
    """Return (colour [h, w, 3], opacity) of the points of a part."""
    if part.kind in ("wing", "scaled_wing", "membrane"):
        return _wing_colour(part, u, v, look)
    light = 0.62 + 0.45 * np.sqrt(np.clip(1.0 - v * v, 0.0, 1.0))
    shine = look.gloss * 110.0 * np.exp(-((v + 0.35) ** 2) * 14 - ((u - 0.35) ** 2) * 10)
    if part.kind == "eye":
        return look.eye * light[..., None] + shine[..., None], 1.0
    if part.kind in ("abdomen", "elytron"):
        amount = pattern(look.pattern, u, v, look.repeats, look.cover)
        base = look.body + amount[..., None] * (look.mark - look.body)
    elif part.kind in ("scutellum", "waist"):
        base = look.mark
    else:
        base = 0.8 * look.body if part.kind == "head" else 0.92 * look.body
    return base * light[..., None] + shine[..., None], 1.0


def _wing_colour(part: Part, u: np.ndarray, v: np.ndarray, look: Look) -> tuple[np.ndarray, np.ndarray | float]:
    amount = pattern(look.wing_pattern, u, v, max(1.5, 0.7 * look.repeats), look.cover)
    if part.kind == "scaled_wing":
        colour = look.wing + amount[..., None] * (look.wing_mark - look.wing)
        return colour * (0.85 + 0.2 * u)[..., None], 0.97
    tint = 0.3 * look.wing + 0.7 * np.array((214.0, 216.0, 206.0), np.float32)
    colour = tint + amount[..., None] * (0.35 * look.wing_mark - tint)  # clear wings have smoky marks
    return colour, 0.42 + 0.3 * amount


def pattern(kind: str, u: np.ndarray, v: np.ndarray, repeats: float, cover: float) -> np.ndarray:
    """Return the share of the mark's colour, 0..1, at each (u, v) of a surface."""
    turns = np.float32(2 * np.pi * repeats)
    if kind == "bands":
        field = np.cos(turns * u) - np.cos(np.pi * cover)
    elif kind == "saddle":
        field = 3.0 * (0.5 * cover - np.abs(u - 0.5))
    elif kind == "stripes":
        field = np.cos(np.float32(np.pi * round(repeats)) * v) - np.cos(np.pi * cover)
    elif kind == "spots":
        field = np.cos(turns * u) + np.cos(np.float32(2 * np.pi) * (v - 0.5)) - 2.4 * (1.0 - cover)
    elif kind == "dark_end":
        field = 3.0 * (u - 1.0 + cover)
    elif kind == "chevrons":
        field = np.cos(turns * (u - 0.35 * np.abs(v))) - np.cos(np.pi * cover)
    elif kind == "line":
        field = 3.0 * (0.5 * cover - np.abs(v))
    elif kind == "border":
        field = 3.0 * (np.maximum(np.abs(v), 2 * np.abs(u - 0.5)) - 1.0 + 0.6 * cover)
    elif kind == "eyespots":
        distance = np.hypot((u - 0.62) * 1.6, v - 0.1)
        field = 4.0 * np.minimum(0.2 + 0.3 * cover - distance, distance - 0.12)
    else:
        return np.zeros_like(u)
    return np.clip(0.5 + 4.0 * field, 0.0, 1.0)


def _background(rng: np.random.Generator, nuisance: float) -> np.ndarray:
    base = _BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))] * np.exp(rng.normal(0.0, 0.06 * nuisance, 3)).astype(
        np.float32
    )
    cells = int(rng.integers(3, 24))
    grain = rng.standard_normal((cells, cells), np.float32) * float(rng.uniform(2.0, 16.0)) * nuisance
    canvas = cv2.resize(grain, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)[..., None] + base
    if nuisance and rng.random() < 0.35:  # a leaf's or a board's lines
        x, y = np.arange(SIDE, dtype=np.float32), np.arange(SIDE, dtype=np.float32)[:, None]
        angle, step = rng.uniform(0, np.pi), rng.uniform(6.0, 24.0)
        canvas += (
            float(rng.uniform(4.0, 14.0))
            * np.cos((np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / step))[..., None]
        )
    return canvas.astype(np.float32)


def _photograph(canvas: np.ndarray, rng: np.random.Generator, nuisance: float) -> np.ndarray:
    """Light (strength, colour, slope over the picture), lens blur and sensor noise."""
    exposure = min(0.2, float(rng.normal(-0.04, 0.2)))
    gain = np.exp(nuisance * (exposure + rng.normal(0.0, 0.05, 3)))
    slope_x, slope_y = nuisance * rng.uniform(-0.2, 0.2, 2)
    ramp = np.linspace(-1.0, 1.0, SIDE)
    across = ((1.0 + slope_x * ramp)[:, None] * gain).reshape(-1).astype(np.float32)
    down = (slope_y * np.tile(gain, SIDE)).astype(np.float32)
    rows = canvas.reshape(SIDE, 3 * SIDE)
    rows = rows * (across + ramp.astype(np.float32)[:, None] * down)
    sigma = nuisance * float(rng.uniform(0.0, 1.6))
    if sigma > 0.3:
        rows = cv2.GaussianBlur(rows.reshape(SIDE, SIDE, 3), (0, 0), sigma).reshape(SIDE, 3 * SIDE)
    noise = np.frombuffer(rng.bytes(rows.size), np.uint8).reshape(rows.shape)
    strength = nuisance * float(rng.uniform(1.0, 9.0)) / 74.0  # 74: deviation of an even draw from 0..255
    rows += np.float32(strength) * noise
    rows -= np.float32(127.5 * strength)
    return np.clip(rows, 0.0, 255.0, out=rows).astype(np.uint8).reshape(SIDE, SIDE, 3)
