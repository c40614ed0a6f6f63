"""Accuracy against damage: barcodes at growing severity, fragments, amplified parts, photos at growing blur.

One input is damaged, the other (for average and fusion) stays clean. Damage is drawn from the specimen's key alone.
Only roll-up is scored. Specimens are streamed: memory holds a batch and one position per specimen, rank and point.

Legend: N specimens, n of a batch, S image side, L tokens, D embedding, R ranks.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from engine.batches.prepare import MemberReader, Specimens
from engine.signals import barcodes, degrade, images
from engine.signals.degrade import PAPER, BarcodePreset
from engine.specimens.schema import rng_for, uniforms_for
from engine.specimens.taxonomy import RANKS
from train import metrics
from train.evaluation import subsets
from train.evaluation.amplicons import AMPLICONS
from train.evaluation.model_under_test import Setting
from train.evaluation.predict import Encoded, combined

MOST = 20_000  # specimens; of more, those of the lowest hashes
BATCH = 512
SEVERITIES, SINGLE = (0.5, 1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 4.0)
LENGTHS = (50, 75, 100, 150, 200, 300, 400, 500, 600)
KERNELS = (3, 5, 7, 11, 15, 21, 31)
OPERATIONS = {
    "substitution": ("substitution",),
    "masking": ("masking",),
    "indels": ("deletion", "insertion"),
    "run": ("run",),
    "truncation": ("truncation",),
}

Damage = Callable[[str, str], str]
"""(clean barcode on its coding strand, specimen's key) -> what is left of it; "" = nothing."""


@dataclass(frozen=True)
class Point:
    """One damage: `curve` and the place on it."""

    curve: str  # preset, substitution ..., fragment, amplicon, blur
    at: float | str  # severity, nucleotides, name of the part, side of the mean filter

    @property
    def key(self) -> str:
        """Return the point's part of a metric's name."""
        return f"{self.curve}/{self.at if isinstance(self.at, str) else f'{self.at:g}'}"


def _preset(severity: float, preset: BarcodePreset) -> Damage:
    return lambda s, key: degrade.degrade_barcode(s, rng_for(0, 0, key, "degrade"), severity, preset)


def _fragment(length: int) -> Damage:
    return lambda s, key: degrade.fragment(s, rng_for(0, 0, key, "fragment"), length)


def dna_points() -> dict[Point, Damage]:
    """Every damage of a barcode; `clean` is severity 0."""
    none = dict.fromkeys(asdict(PAPER), 0.0)
    points: dict[Point, Damage] = {Point("preset", 0.0): lambda s, key: s}
    points |= {Point("preset", severity): _preset(severity, PAPER) for severity in SEVERITIES}
    for name, fields in OPERATIONS.items():
        alone = BarcodePreset(**(none | {field: getattr(PAPER, field) for field in fields}))
        points |= {Point(name, severity): _preset(severity, alone) for severity in SINGLE}
    points |= {Point("fragment", float(length)): _fragment(length) for length in LENGTHS}
    for one in AMPLICONS:
        points[Point("amplicon", one.name)] = lambda s, key, one=one: one.cut(s)  # type: ignore[misc]
    return points


class Positions:
    """Where the truth stands at every point, for every query: int32 [N, R], UNSCORED until it is known."""

    def __init__(self, setting: Setting, labels: np.ndarray) -> None:
        self.setting, self.labels = setting, labels
        self.found: dict[tuple[Point, str], np.ndarray] = {}

    def add(self, point: Point, query: str, rows: np.ndarray, features: np.ndarray) -> None:
        """Rank some rows (int64 [n]) by their features [n, D]."""
        key = (point, query)
        if key not in self.found:
            self.found[key] = np.full(self.labels.shape, metrics.UNSCORED, dtype=np.int32)
        if len(rows):
            ranking = self.setting.scorer.rank(features, self.labels[rows])
            self.found[key][rows] = ranking.position[:, : len(RANKS)]


@torch.inference_mode()
def _encode_dna(setting: Setting, tokenizer: Any, sequences: list[str]) -> np.ndarray:
    """Barcodes, none of them empty -> float32 [n, D]."""
    if setting.config.data.orient:
        sequences = barcodes.orient_batch(sequences)
    tokens = torch.from_numpy(tokenizer.encode(sequences).astype(np.int64)).to(setting.device)
    features: torch.Tensor = setting.model.encode_dna(tokens, tokens > 0).float()
    return features.cpu().numpy()


@torch.inference_mode()
def _encode_images(setting: Setting, views: np.ndarray) -> np.ndarray:
    """uint8 [n, S, S, 3] -> float32 [n, D]."""
    features: torch.Tensor = setting.model.encode_image(torch.from_numpy(views).to(setting.device)).float()
    return features.cpu().numpy()


def _batches(rows: np.ndarray, name: str, steps: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Rows BATCH at a time, with a progress bar that counts every point."""
    with tqdm(total=len(rows) * steps, desc=name, unit=" inputs", disable=None, leave=False) as bar:
        for first in range(0, len(rows), BATCH):
            yield rows[first : first + BATCH], bar


def _damage_dna(setting: Setting, encoded: Encoded, sequences: list[str], rows: np.ndarray, result: Positions) -> None:
    tokenizer = barcodes.make_tokenizer(setting.config.data)
    points = dna_points()
    rows = rows[encoded.has_dna[rows]]
    for batch, bar in _batches(rows, "damaged barcodes", len(points)):
        clean = barcodes.orient_batch([sequences[row] for row in batch])
        for point, damage in points.items():
            damaged = [damage(text, encoded.keys[row]) for text, row in zip(clean, batch, strict=True)]
            left = np.array([bool(text.strip("N")) for text in damaged])
            known = batch[left]
            if left.any():
                dna = _encode_dna(setting, tokenizer, [text for text in damaged if text.strip("N")])
                result.add(point, "dna", known, dna)
                _add_pairs(result, point, known, encoded, "image", dna)
            bar.update(len(batch))


def _damage_images(
    setting: Setting, encoded: Encoded, specimens: Specimens, rows: np.ndarray, result: Positions
) -> None:
    reader, side = MemberReader(specimens), setting.config.data.image_size
    for batch, bar in _batches(rows[encoded.has_image[rows]], "blurred photos", len(KERNELS) + 1):
        members, _ = reader.read(batch)
        views = np.stack([images.evaluation_view(images.decode(raw, side), side) for raw in members["image"] if raw])
        for kernel in (1, *KERNELS):
            features = _encode_images(setting, np.stack([degrade.blur(view, kernel) for view in views]))
            point = Point("blur", float(kernel))
            result.add(point, "image", batch, features)
            _add_pairs(result, point, batch, encoded, "dna", features)
            bar.update(len(batch))


def _add_pairs(
    result: Positions, point: Point, rows: np.ndarray, encoded: Encoded, other: str, damaged: np.ndarray
) -> None:
    """Average and fusion of a damaged input with the clean `other` one, for the rows that have it."""
    both = encoded.mask(other)[rows]
    if not both.any():
        return
    kept = encoded.features[other][rows[both]]
    pair = [kept, damaged[both]] if other == "image" else [damaged[both], kept]
    device, fuse = result.setting.device, result.setting.model.fuse
    for query in ("average", "fused"):
        features = combined(query, pair, lambda image, dna: fuse(image.to(device), dna.to(device)))
        result.add(point, query, rows[both], features)


def measure(setting: Setting) -> dict[str, float]:
    """Return accuracies at every point, the area under each curve, and what the photo adds to each damaged barcode.

    Metrics: `test/curves/fragment/100/dna/species/top1`, `test/curves/fragment/dna/species/area`.
    """
    split = setting.split
    index = subsets.without_provisional(setting.rows(split))[0]
    encoded = setting.encoded(split)
    hashes = uniforms_for(0, 0, encoded.keys, "curves", 1)[:, 0]
    rows = np.sort(np.argsort(hashes, kind="stable")[:MOST])
    result = Positions(setting, encoded.labels)
    sequences = subsets.read_barcodes(index)
    _damage_dna(setting, encoded, sequences, rows, result)
    _damage_images(setting, encoded, Specimens.from_index(index, setting.taxonomy), rows, result)
    group = subsets.barcode_groups(sequences)
    values: dict[str, float] = {f"{split}/curves/specimens": len(rows)}
    for (point, query), position in result.found.items():
        start = f"{split}/curves/{point.key}/{query}"
        values |= {f"{start}/{name}": value for name, value in _accuracies(setting, position, encoded, group).items()}
    return values | _gains(setting, result, encoded, group) | areas(values, split)


def _gains(setting: Setting, result: Positions, encoded: Encoded, group: np.ndarray) -> dict[str, float]:
    """Return what the clean photo adds to a damaged barcode: fused minus dna at species, paired.

    Of the specimens with both:
    `test/curves/preset/2/fused_minus_dna/species/{first, second, difference, low, high, rows}`.
    """
    values: dict[str, float] = {}
    for (point, query), fused in result.found.items():
        if query != "fused" or (point, "dna") not in result.found:
            continue
        own, other = (position[:, -1] for position in (fused, result.found[point, "dna"]))
        rows = encoded.has_both & (own != metrics.UNSCORED) & (other != metrics.UNSCORED)
        if rows.any():
            first, second = metrics.hits(own[rows], 1), metrics.hits(other[rows], 1)
            gap = metrics.paired_difference(first, second, group[rows], resamples=setting.config.eval.bootstrap)
            start = f"{setting.split}/curves/{point.key}/fused_minus_dna/species"
            values |= {f"{start}/first": gap.first, f"{start}/second": gap.second, f"{start}/rows": gap.rows}
            values |= {f"{start}/difference": gap.value, f"{start}/low": gap.low, f"{start}/high": gap.high}
    return values


def _accuracies(setting: Setting, position: np.ndarray, encoded: Encoded, group: np.ndarray) -> dict[str, float]:
    result: dict[str, float] = {}
    scored, correct = position != metrics.UNSCORED, metrics.hits(position, 1)
    bounds = metrics.intervals(correct, scored, group, setting.config.eval.bootstrap)
    for column, rank in enumerate(RANKS):
        kinds = np.where(scored[:, column], encoded.labels[:, column], -1)
        result[f"{rank}/rows"] = int(scored[:, column].sum())
        result[f"{rank}/top1"] = metrics.micro(correct[:, column], scored[:, column])
        result[f"{rank}/macro_top1"] = metrics.macro(correct[:, column], kinds)
        result[f"{rank}/top1_low"], result[f"{rank}/top1_high"] = bounds[column].tolist()
    return result


def curve_of(
    values: Mapping[str, float], split: str, curve: str, query: str, rank: str, what: str = "top1"
) -> list[tuple[float, float]]:
    """(place, value) of one curve, in order; the single operations begin where the preset does, at severity 0."""
    ends = f"/{query}/{rank}/{what}"
    start = f"{split}/curves/{curve}/"
    found = {
        float(place): value
        for name, value in values.items()
        if name.startswith(start) and name.endswith(ends) and _is_number(place := name[len(start) : -len(ends)])
    }
    clean = values.get(f"{split}/curves/preset/0{ends}")
    if curve in OPERATIONS and found and clean is not None:
        found[0.0] = clean
    return sorted(found.items())


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def areas(values: Mapping[str, float], split: str) -> dict[str, float]:
    """Mean height of every curve between its ends (trapezoids): `test/curves/blur/image/species/area`."""
    result = {}
    for curve in ("preset", *OPERATIONS, "fragment", "blur"):
        for query in ("image", "dna", "average", "fused"):
            for rank in RANKS:
                points = np.array(curve_of(values, split, curve, query, rank))
                if len(points) > 1:
                    x, y = points.T
                    result[f"{split}/curves/{curve}/{query}/{rank}/area"] = float(np.trapezoid(y, x) / (x[-1] - x[0]))
    return result
