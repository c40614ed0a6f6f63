"""CPU time of embedding photos by stage, beside plain timm and torch at the same batch.

    python -m tests.benchmarks.photo_embedding shards/moths [--photos 64] [--threads 1]

Plain: PIL and timm's evaluation transform, timm's model of the same architecture as it comes, both views. Both sides
take turns, so that a busy machine slows both; the ratio is of the best rounds.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from train.embed import BATCH, PhotoEncoder, open_photos


def plain(architecture: str, side: int) -> tuple[Callable[[bytes], Any], Callable[[Sequence[Any]], Any]]:
    """Return decoding and encoding as a user of timm writes them."""
    model = timm.create_model(architecture, num_classes=0).eval()
    config = timm.data.resolve_data_config({"input_size": (3, side, side)}, model=model)
    transform: Any = timm.data.create_transform(**config)

    def decode(photo: bytes) -> Any:
        return transform(Image.open(io.BytesIO(photo)).convert("RGB"))

    def encode(views: Sequence[Any]) -> Any:
        with torch.inference_mode():
            for start in range(0, len(views), BATCH):
                batch = torch.stack(list(views[start : start + BATCH]))
                for one in (batch, batch.flip(3)):
                    model(one)

    return decode, encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    photos = open_photos([str(options.shards)])
    files = [photos.load(row) for row in range(options.photos)]
    encoder = PhotoEncoder("pretrained")
    sides = {
        "ours": (encoder.view, encoder.encode),
        "plain": plain(encoder.source.config["architecture"], encoder.side),
    }
    best = {name: np.full(2, np.inf) for name in sides}
    for _ in range(options.rounds):
        for name, (decode, encode) in sides.items():
            times = [time.process_time()]
            views = [decode(photo) for photo in files]
            times.append(time.process_time())
            encode(views)
            times.append(time.process_time())
            best[name] = np.minimum(best[name], np.diff(times))
    for name, (decoding, encoding) in best.items():
        scale = 1e3 / options.photos
        print(f"{name}: CPU-ms a photo: decoding {decoding * scale:.1f}, two views encoded {encoding * scale:.1f}")
    print(f"photos per CPU second, ours over plain: {best['plain'].sum() / best['ours'].sum():.2f}")


if __name__ == "__main__":
    main()
