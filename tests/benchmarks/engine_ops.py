"""Time of every engine operation on one core, from generated inputs.

    python -m tests.benchmarks.engine_ops [--repeats 7]

CPU time of this process (not wall time, so that other load on the machine matters less), the median of the repeats and
their range. Photos: 256 x 256 JPEGs, quality 90, about 20 kB each. Barcodes: 658 nt.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import cv2
import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from engine.config import AugmentConfig
from engine.relations import containment
from engine.signals import barcodes, degrade, images
from engine.specimens import captions
from engine.specimens.schema import rng_for, uniforms_for

NUM_PHOTOS, NUM_BARCODES = 64, 512


def photo(seed: int, side: int = 256) -> bytes:
    """A JPEG with the amount of detail of a specimen photo."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(
        rng.integers(60, 256, (12, 12, 3)).astype(np.uint8), (side, side), interpolation=cv2.INTER_CUBIC
    )
    grain = cv2.GaussianBlur(rng.normal(0, 60, (side, side, 1)), (0, 0), 1.0)[..., None]
    return images.encode_jpeg(np.clip(coarse + grain, 0, 255).astype(np.uint8), 90)


def milliseconds(operation: Callable[[], object], items: int, repeats: int) -> tuple[float, float, float]:
    """Median, least and greatest CPU milliseconds per item."""
    operation()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        operation()
        times.append((time.process_time() - start) / items * 1e3)
    return statistics.median(times), min(times), max(times)


def photo_operations() -> dict[str, tuple[Callable[[], object], int]]:
    photos = [photo(seed) for seed in range(NUM_PHOTOS)]
    large = [photo(seed, 1024) for seed in range(8)]
    decoded = [images.decode(data) for data in photos]
    augment, draws = AugmentConfig(), np.random.default_rng(0).random(images.VIEW_DRAWS)

    def views(size: int, least: int) -> None:
        for data in photos:
            image = images.decode(data, least)
            images.training_view(image, size, draws, augment)
            images.training_view(image, size, draws, augment)

    def each(function: Callable[..., object], items: list, *arguments: object) -> tuple[Callable[[], object], int]:
        return lambda: [function(item, *arguments) for item in items], len(items)

    side = images.decode_side(64, augment)
    view = [images.evaluation_view(image, 224) for image in decoded]
    return {
        "decode 256 px": each(images.decode, photos),
        f"decode 256 px, sides >= {side}": each(images.decode, photos, side),
        "decode 1024 px": each(images.decode, large),
        f"decode 1024 px, sides >= {side}": each(images.decode, large, side),
        "evaluation view 224": each(images.evaluation_view, decoded, 224),
        "evaluation view 64": each(images.evaluation_view, decoded, 64),
        "training view 224": each(images.training_view, decoded, 224, draws, augment),
        "training view 64": each(images.training_view, decoded, 64, draws, augment),
        "decode + two views 224": (lambda: views(224, 0), NUM_PHOTOS),
        "decode + two views 64": (lambda: views(64, side), NUM_PHOTOS),
        "colour jitter 224": each(images.jitter, view, 1.1, 0.9, 1.2, 0.1),
        "blur 224, k = 7": each(degrade.blur, view, 7),
        "to_jpeg, bytes copied": each(images.to_jpeg, photos),
        "encode_jpeg 256 px": each(images.encode_jpeg, decoded),
    }


def byte_pairs(sequences: list[str]) -> barcodes.BpeTokenizer:
    """A byte-pair tokenizer of DNABERT-2's size, trained on these barcodes."""
    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    trainer = BpeTrainer(vocab_size=4096, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(sequences, trainer)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/bpe.json")
        return barcodes.BpeTokenizer(f"{folder}/bpe.json", 660)


def barcode_operations() -> dict[str, tuple[Callable[[], object], int]]:
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGT"), 658)) for _ in range(NUM_BARCODES)]
    names = ("Diptera", "Chironomidae", "Chironomus", "Chironomus plumosus")
    separate, overlapping = barcodes.KmerTokenizer(5, 5, 660), barcodes.KmerTokenizer(6, 1, 660)
    labels = np.tile(np.arange(4), (NUM_BARCODES, 1))
    keys = [f"KEY{i:06d}" for i in range(NUM_BARCODES)]
    pairs = byte_pairs(sequences)
    return {
        "rng_for": (lambda: [rng_for(0, 0, sequence[:10], "x") for sequence in sequences], NUM_BARCODES),
        "uniforms_for, 24 numbers, batch": (lambda: uniforms_for(0, 0, keys, "views", 24), NUM_BARCODES),
        "clean": (lambda: [barcodes.clean(sequence) for sequence in sequences], NUM_BARCODES),
        "orient": (lambda: [barcodes.orient(sequence) for sequence in sequences], NUM_BARCODES),
        "orient, batch": (lambda: barcodes.orient_batch(sequences), NUM_BARCODES),
        "5-mers apart, batch": (lambda: separate.encode(sequences), NUM_BARCODES),
        "5-mers apart, one by one": (lambda: [separate(sequence) for sequence in sequences], NUM_BARCODES),
        "6-mers overlapping, batch": (lambda: overlapping.encode(sequences), NUM_BARCODES),
        "byte pairs, 4096 tokens, batch": (lambda: pairs.encode(sequences), NUM_BARCODES),
        "degrade_barcode": (lambda: [degrade.degrade_barcode(s, rng) for s in sequences], NUM_BARCODES),
        "fragment": (lambda: [degrade.fragment(s, rng, 200) for s in sequences], NUM_BARCODES),
        "caption": (lambda: [captions.caption(names) for _ in sequences], NUM_BARCODES),
        "cut, batch": (lambda: captions.cut(labels, rng.random((len(labels), 2)), 0.3), NUM_BARCODES),
        "containment_groups": (lambda: containment.containment_groups(sequences), NUM_BARCODES),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    images.single_thread()
    print(f"{'operation':34s} {'ms each':>9s}  {'range':>17s} {'each/s':>10s}")
    for name, (operation, items) in (photo_operations() | barcode_operations()).items():
        median, least, greatest = milliseconds(operation, items, repeats)
        print(f"{name:34s} {median:9.4f}  {least:8.4f}-{greatest:8.4f} {1000 / median:10.0f}")


if __name__ == "__main__":
    main()
