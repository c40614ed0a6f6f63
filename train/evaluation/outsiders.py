"""Photos and barcodes of nothing that a model or library knows: what an answer of any rank must not be sure of.

Barcodes are shuffled, or changed at many sites; photos are shuffled by tiles, or noise, or one colour. They are made of
specimens that there are, so that lengths, colours and contrasts are those of the source.

Legend: n outsiders, D embedding, S image side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.batches.prepare import MemberReader, Specimens
from engine.signals import images
from engine.signals.degrade import BarcodePreset, degrade_barcode, fragment
from engine.specimens.schema import rng_for
from train.evaluation.model_under_test import Setting
from train.inference.experts import sharpness
from train.inference.looks import MOST, NUMBERS, blurred, looks
from train.reference import Encoder

CHANGED = (0.14, 0.40)  # share of sites: COI of different insect orders differs at 15 to 25%
SHORT = (80, 320)
_TILES = 8  # a side
_BATCH = 64  # photos read at a time


@dataclass(frozen=True)
class Outsiders:
    """What n outsiders are asked with; zero rows where the specimen that one was made of lacks it."""

    barcodes: list[str]  # "" = none
    dna: np.ndarray  # float32 [n, D]
    image: np.ndarray  # float32 [n, D]
    sharp: np.ndarray  # float64 [n]
    looks: np.ndarray  # float32 [n, L]


def outside_barcode(barcode: str, key: str, kind: int) -> str:
    """Return a barcode of no taxon: kind 0 = letters shuffled, 1 = codons shuffled, others = changed at many sites."""
    rng = rng_for(0, 0, key, "outside")
    if kind < 2:
        size = (1, 3)[kind]
        pieces = [barcode[first : first + size] for first in range(0, len(barcode), size)]
        return "".join([pieces[place] for place in rng.permutation(len(pieces)).tolist()])
    return degrade_barcode(barcode, rng, 1.0, BarcodePreset.only(substitution=float(rng.uniform(*CHANGED))))


def outside_barcodes(barcodes: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Make an outsider of each barcode, of all kinds in turn, half of them cut to SHORT letters; "" stays."""
    found = []
    for number, (one, key) in enumerate(zip(barcodes, keys, strict=True)):
        changed = one and outside_barcode(one, key, number % 4)
        if number % 8 > 3 and changed:
            rng = rng_for(0, 0, key, "outside length")
            changed = fragment(changed, rng, int(rng.integers(*SHORT)))
        found.append(changed)
    return found


def outside_view(view: np.ndarray, key: str, kind: int) -> np.ndarray:
    """Return a photo of nothing, uint8 [S, S, 3]: 0 = noise, 1 = one colour, 2 = streaks, others = shuffled tiles."""
    rng = rng_for(0, 0, key, "outside photo")
    if kind == 0:
        return rng.integers(0, 256, view.shape).astype(np.uint8)
    if kind == 1:
        return np.broadcast_to(view.mean(axis=(0, 1)).astype(np.uint8), view.shape).copy()
    if kind == 2:
        return np.sort(view, axis=0)
    side = view.shape[0] // _TILES
    if not side:
        return view[::-1].copy()
    whole = view[: side * _TILES, : side * _TILES]
    tiles = whole.reshape(_TILES, side, _TILES, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    mixed = tiles[rng.permutation(len(tiles))].reshape(_TILES, _TILES, side, side, 3).swapaxes(1, 2)
    result = view.copy()
    result[: side * _TILES, : side * _TILES] = mixed.reshape(whole.shape)
    return result


def read_views(setting: Setting, rows: pa.Table) -> list[np.ndarray | None]:
    """Read the photos of rows of the index as the model sees them; None where there is none."""
    side = setting.config.data.image_size
    reader = MemberReader(Specimens.from_index(rows, setting.taxonomy))
    views: list[np.ndarray | None] = []
    for first in range(0, len(rows), _BATCH):
        for photo in reader.read(np.arange(first, min(len(rows), first + _BATCH)))[0]["image"]:
            try:
                views.append(images.evaluation_view(images.decode(photo or b"", side), side))
            except ValueError:
                views.append(None)  # evaluation has named it
    return views


def training_looks(setting: Setting) -> tuple[tuple[float, ...], ...]:
    """Return the numbers of MOST photos of the training split, spread over it, and of every second one blurred."""
    rows = setting.train.filter(pc.greater(setting.train["image_size"], 0))
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(int))
    views = [view for view in read_views(setting, rows.take(chosen)) if view is not None]
    views += [blurred(view, number) for number, view in enumerate(views[::2])]
    return tuple(tuple(looks(view).round(4).tolist()) for view in views)


def make(setting: Setting, rows: pa.Table, barcodes: Sequence[str]) -> Outsiders:
    """Make an outsider of each row of the index and encode it.

    Args:
        setting: whose model encodes.
        rows: n rows of the index.
        barcodes: theirs, clean, "" = none.
    """
    keys = rows["key"].to_pylist()
    encoder = Encoder(setting.model, setting.config.data)
    changed = outside_barcodes(barcodes, keys)
    views = [
        None if view is None else outside_view(view, keys[row], row % 4)
        for row, view in enumerate(read_views(setting, rows))
    ]
    sharp = [0.0 if view is None else sharpness(view) for view in views]
    seen = [np.zeros(NUMBERS) if view is None else looks(view) for view in views]
    found = np.array(seen, dtype=np.float32).reshape(-1, NUMBERS)
    return Outsiders(changed, encoder.dna(changed), encoder.images(views), np.array(sharp), found)
