"""Photos and barcodes of nothing that a model or library knows: what an answer of any rank must not be sure of.

Barcodes are shuffled, or changed at many sites; photos are shuffled by tiles, or noise, or one colour. They are made of
specimens that there are, so that lengths, colours and contrasts are those of the source.

Legend: n outsiders, D embedding, S image side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from engine.batches.prepare import MemberReader, Specimens
from engine.signals import images
from engine.signals.degrade import BarcodePreset, degrade_barcode
from engine.specimens.schema import rng_for
from train.evaluation.model_under_test import Setting
from train.inference.experts import sharpness
from train.reference import Encoder

CHANGED = (0.14, 0.40)  # share of sites: COI of different insect orders differs at 15 to 25%
_TILES = 8  # a side
_BATCH = 64  # photos read at a time


@dataclass(frozen=True)
class Outsiders:
    """What n outsiders are asked with; zero rows where the specimen that one was made of lacks it."""

    barcodes: list[str]  # "" = none
    dna: np.ndarray  # float32 [n, D]
    image: np.ndarray  # float32 [n, D]
    sharp: np.ndarray  # float64 [n]


def outside_barcode(barcode: str, key: str, kind: int) -> str:
    """Return a barcode of no taxon: kind 0 = letters shuffled, 1 = codons shuffled, others = changed at many sites."""
    rng = rng_for(0, 0, key, "outside")
    if kind < 2:
        size = (1, 3)[kind]
        pieces = [barcode[first : first + size] for first in range(0, len(barcode), size)]
        return "".join([pieces[place] for place in rng.permutation(len(pieces)).tolist()])
    return degrade_barcode(barcode, rng, 1.0, BarcodePreset.only(substitution=float(rng.uniform(*CHANGED))))


def outside_view(view: np.ndarray, key: str, kind: int) -> np.ndarray:
    """Return a photo of nothing, uint8 [S, S, 3]: 0 = noise, 1 = one colour, others = shuffled tiles."""
    rng = rng_for(0, 0, key, "outside photo")
    if kind == 0:
        return rng.integers(0, 256, view.shape).astype(np.uint8)
    if kind == 1:
        return np.broadcast_to(view.mean(axis=(0, 1)).astype(np.uint8), view.shape).copy()
    side = view.shape[0] // _TILES
    if not side:
        return view[::-1].copy()
    whole = view[: side * _TILES, : side * _TILES]
    tiles = whole.reshape(_TILES, side, _TILES, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    mixed = tiles[rng.permutation(len(tiles))].reshape(_TILES, _TILES, side, side, 3).swapaxes(1, 2)
    result = view.copy()
    result[: side * _TILES, : side * _TILES] = mixed.reshape(whole.shape)
    return result


def make(setting: Setting, rows: pa.Table, barcodes: Sequence[str]) -> Outsiders:
    """Make an outsider of each row of the index and encode it.

    Args:
        setting: whose model encodes.
        rows: n rows of the index.
        barcodes: theirs, clean, "" = none.
    """
    data, keys = setting.config.data, rows["key"].to_pylist()
    encoder = Encoder(setting.model, data)
    changed = [
        one and outside_barcode(one, key, number % 4)
        for number, (one, key) in enumerate(zip(barcodes, keys, strict=True))
    ]
    reader = MemberReader(Specimens.from_index(rows, setting.taxonomy))
    views: list[np.ndarray | None] = []
    for first in range(0, len(rows), _BATCH):
        batch = np.arange(first, min(len(rows), first + _BATCH))
        raw = reader.read(batch)[0]["image"]
        for row, photo in zip(batch.tolist(), raw, strict=True):
            try:
                view = images.evaluation_view(images.decode(photo or b"", data.image_size), data.image_size)
            except ValueError:
                views.append(None)  # evaluation has named it
            else:
                views.append(outside_view(view, keys[row], row % 4))
    sharp = [0.0 if view is None else sharpness(view) for view in views]
    return Outsiders(changed, encoder.dna(changed), encoder.images(views), np.array(sharp))
