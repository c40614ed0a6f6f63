"""How often is a model sure of barcodes of other orders and families than it knows?

    python -m tests.benchmarks.outsiders SHARDS --checkpoint RUN --others OTHER_SHARDS [--threshold 0.95] [--most 1000]

RUN: trained on SHARDS, with `train.evaluate --calibration`. Barcodes of OTHER_SHARDS' test split are asked as a service
answers them, without and with a library of SHARDS' train split. A name at a rank is right where the specimen has it.
Then specimens of SHARDS' own test split, barcode, photo and both: how many are named, and how many of these rightly.
"""

import argparse
from pathlib import Path

import numpy as np

from engine.batches.pipeline import label_columns, load_index, select_split
from engine.specimens.taxonomy import RANKS
from engine.store.shards import ShardReader
from serve.answers.answer import Answer, Query
from serve.answers.predictor import Predictor
from train.evaluation.subsets import read_barcodes
from train.reference import Library


def counted(answers: list, truth: dict[str, list]) -> str:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--others", type=Path, required=True)
    parser.add_argument("--threshold", type=float, default=0.95)
    parser.add_argument("--most", type=int, default=1000)
    options = parser.parse_args()
    bare = Predictor.load(options.checkpoint)
    train = select_split(load_index([options.shards]), "train")
    library = Library.build(train, read_barcodes(train))
    backed = Predictor(bare.model, bare.data, bare.scorer, calibration=bare.calibration, library=library)
    orders, families = (set(bare.taxonomy.names[rank]) for rank in (0, 1))
    others = select_split(load_index([options.others]), "test")
    names = label_columns(others)
    kinds = {
        "other orders": np.array([bool(one) and one not in orders for one in names["order"]]),
        "other families of its orders": np.array(
            [
                one in orders and bool(two) and two not in families
                for one, two in zip(names["order"], names["family"], strict=True)
            ]
        ),
    }
    for kind, mask in kinds.items():
        rows = np.flatnonzero(mask)
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), options.most)).astype(int))]
        chosen = others.take(rows)
        barcodes = read_barcodes(chosen)
        for name, predictor in (("barcode", bare), ("barcode and library", backed)):
            asked = [Query(str(number), (), text) for number, text in enumerate(barcodes)]
            answers = predictor.identify(asked, threshold=options.threshold, top=1)
            print(f"{len(rows)} {kind}, {name}: {counted(answers, label_columns(chosen))}", flush=True)
    test = select_split(load_index([options.shards]), "test")
    rows = test.to_pylist()
    there = [number for number, row in enumerate(rows) if row["image_size"] and row["dna_size"]]
    own, barcodes, reader = test.take(there), read_barcodes(test.take(there)), ShardReader("/")
    photos = [
        reader.read(str(Path(rows[n]["folder"]) / rows[n]["shard"]), rows[n]["image_offset"], rows[n]["image_size"])
        for n in there
    ]
    for what in ("barcode", "photo", "both"):
        asked = [
            Query(str(n), (photo,) if what != "barcode" else (), text if what != "photo" else None)
            for n, (photo, text) in enumerate(zip(photos, barcodes, strict=True))
        ]
        for name, predictor in (("model", bare), ("model and library", backed)):
            answers = predictor.identify(asked, threshold=options.threshold, top=1)
            print(f"{len(there)} of its own, {what}, {name}: {counted(answers, label_columns(own))}", flush=True)


if __name__ == "__main__":
    main()
