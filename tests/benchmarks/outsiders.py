"""How often is a model sure of specimens that are none of what it knows? Barcodes of other taxa, photos of nothing.

    python -m tests.benchmarks.outsiders SHARDS --checkpoint RUN --others OTHER_SHARDS ... [--lengths 658 205]

RUN: trained on SHARDS, with `train.evaluate --calibration`. Asked as a service answers, without and with a library of
SHARDS' train split: barcodes of the OTHER_SHARDS (--split) of other orders, and of other families of its orders, whole
and cut; photos of nothing (KINDS, none of which the fit saw), alone, with other orders' barcodes, and with barcodes of
its own. A name at a rank is right where the specimen has it. Then specimens of SHARDS'
own split, barcode, photo and both: how many are named, and how many of these rightly.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg

from engine.batches.pipeline import label_columns, load_index, select_split
from engine.signals.degrade import fragment
from engine.simulated import photos
from engine.specimens.schema import rng_for
from engine.specimens.taxonomy import RANKS
from engine.store.shards import ShardReader
from serve.answers.answer import Answer, Query
from serve.answers.predictor import Predictor
from train.evaluation.subsets import read_barcodes
from train.reference import Library

KINDS = ("simulated insect", "pixels shuffled", "gradient", "text", "clouds", "shapes")
SIDE = 160  # pixels
WHOLE = 658
Names = dict[str, list]


@dataclass(frozen=True)
class Asker:
    """The model without and with a library."""

    predictors: dict[str, Predictor]
    threshold: float

    def ask(self, what: str, images: Sequence[bytes | None], barcodes: Sequence[str | None], truth: Names) -> None:
        """Print the shares named at each rank, and wrongly, of all."""
        asked = [
            Query(str(number), (image,) if image else (), text)
            for number, (image, text) in enumerate(zip(images, barcodes, strict=True))
        ]
        for name, predictor in self.predictors.items():
            if name == "model" or any(barcodes):
                answers = predictor.identify(asked, threshold=self.threshold, top=1)
                print(f"{len(asked)} {what}, {name}: {counted(answers, truth)}", flush=True)


def counted(answers: list, truth: Names) -> str:
    """Shares named at each rank, and rightly, of all."""
    cells = []
    for rank in RANKS:
        named = right = 0
        for answer, name in zip(answers, truth[rank], strict=True):
            if not isinstance(answer, Answer) or answer.stopped == "not_coi":
                continue
            one = next(one for one in answer.ranks if one.rank == rank)
            named += one.reached
            right += one.reached and one.name == name
        cells.append(
            f"{rank} named {100 * named / len(answers):.1f}%, wrongly {100 * (named - right) / len(answers):.1f}%"
        )
    novel = np.mean([isinstance(one, Answer) and bool(one.novelty.flagged) for one in answers])
    return "; ".join(cells) + f"; flagged novel {100 * novel:.0f}%"


def nothing(kind: str, number: int, own: np.ndarray) -> np.ndarray:
    """Return a photo without a specimen that the model could know, uint8; `own` is one of its photos."""
    rng = rng_for(0, 0, str(number), kind)
    if kind == "simulated insect":
        return photos.draw(1, (int(rng.integers(3)), 0, 0, 0), number)
    if kind == "pixels shuffled":
        return rng.permutation(own.reshape(-1, 3)).reshape(own.shape)
    if kind == "gradient":
        ends = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
        return cv2.resize(ends, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    if kind == "clouds":
        layers = [cv2.resize(rng.random((2**n, 2**n, 3)).astype(np.float32), (SIDE, SIDE)) / n for n in range(1, 7)]
        whole = np.sum(layers, axis=0)
        return (255 * (whole - whole.min()) / np.ptp(whole)).astype(np.uint8)
    canvas = np.full((SIDE, SIDE, 3), rng.integers(200, 256), np.uint8)
    for _ in range(8):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        place = tuple(int(p) for p in rng.integers(0, SIDE, 2))
        if kind == "text":
            letters = "".join(chr(int(c)) for c in rng.integers(65, 91, 14))
            cv2.putText(canvas, letters, (2, place[1]), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 20, 20), 1)
        else:
            cv2.circle(canvas, place, int(rng.integers(5, 40)), colour, -1)
    return canvas


def others_of(index: pa.Table, predictor: Predictor, most: int) -> dict[str, pa.Table]:
    """Return specimens of other orders, and of other families of the orders that the model knows."""
    orders, families = (set(predictor.taxonomy.names[rank]) for rank in (0, 1))
    names = label_columns(index)
    pairs = list(zip(names["order"], names["family"], strict=True))
    kinds = {
        "other orders": [bool(order) and order not in orders for order, _ in pairs],
        "other families of its orders": [o in orders and bool(f) and f not in families for o, f in pairs],
    }
    found = {}
    for kind, mask in kinds.items():
        rows = np.flatnonzero(mask)
        if len(rows):
            chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int))
            found[kind] = index.take(rows[chosen])
    return found


def ask_others(asker: Asker, index: pa.Table, options: argparse.Namespace, images: list[bytes]) -> None:
    """Ask barcodes of other taxa, whole and cut; those of other orders also with a photo of nothing."""
    for kind, rows in others_of(index, asker.predictors["model"], options.most).items():
        truth, barcodes, keys = label_columns(rows), read_barcodes(rows), rows["key"].to_pylist()
        for length in options.lengths:
            cut = [
                text if length == WHOLE else fragment(text, rng_for(0, 0, key, "fragment"), length)
                for text, key in zip(barcodes, keys, strict=True)
            ]
            asker.ask(f"{kind}, barcode of {length} nt", [None] * len(cut), cut, truth)
        if kind == "other orders" and images:
            few = {rank: names[: len(images)] for rank, names in truth.items()}
            asker.ask(f"{kind}, barcode and photo of nothing", images[: len(barcodes)], barcodes[: len(images)], few)


def own_specimens(folder: Path, split: str) -> tuple[pa.Table, list[str], list[bytes]]:
    """Return the rows with photo and barcode, and these."""
    index = select_split(load_index([folder]), split)
    rows = index.to_pylist()
    there = [number for number, row in enumerate(rows) if row["image_size"] and row["dna_size"]]
    reader = ShardReader("/")
    images = [
        reader.read(str(Path(rows[n]["folder"]) / rows[n]["shard"]), rows[n]["image_offset"], rows[n]["image_size"])
        for n in there
    ]
    return index.take(there), read_barcodes(index.take(there)), images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    parser.add_argument("--split", default="test")
    parser.add_argument("--lengths", type=int, nargs="+", default=[WHOLE])
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--most", type=int, default=1000)
    options = parser.parse_args()
    bare = Predictor.load(options.checkpoint)
    train = select_split(load_index([options.shards]), "train")
    library = Library.build(train, read_barcodes(train))
    backed = Predictor(bare.model, bare.data, bare.scorer, calibration=bare.calibration, library=library)
    asker = Asker({"model": bare, "model and library": backed}, options.threshold)
    own, barcodes, images = own_specimens(options.shards, options.split)
    made: list[bytes] = []
    nobody: Names = {rank: [None] * len(images) for rank in RANKS}
    for kind in KINDS if images else ():
        views = [nothing(kind, n, simplejpeg.decode_jpeg(one)) for n, one in enumerate(images)]
        encoded = [simplejpeg.encode_jpeg(np.ascontiguousarray(view), quality=90) for view in views]
        asker.ask(f"photos of nothing: {kind}", encoded, [None] * len(encoded), nobody)
        made += encoded[:: len(KINDS)]
    for folder in options.others:
        ask_others(asker, select_split(load_index([folder]), options.split), options, made)
    for what in ("barcode", "photo", "both"):
        photo = images if what != "barcode" else [None] * len(images)
        text = barcodes if what != "photo" else [None] * len(barcodes)
        asker.ask(f"of its own, {what}", photo, text, label_columns(own))
    few = {rank: names[: len(made)] for rank, names in label_columns(own).items()}
    asker.ask("of its own, barcode and photo of nothing", made[: len(own)], barcodes[: len(made)], few)


if __name__ == "__main__":
    main()
