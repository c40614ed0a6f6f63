"""Draw the contact sheet of the simulated insects: a strip per family, its species from left to right; or, with
--shards, what the loader makes of stored photos: clean and blurred for evaluation, then two views in two epochs.

python -m tests.benchmarks.contact_sheet --coarse --out tests/golden/simulated_contact_sheet.png
python -m tests.benchmarks.contact_sheet --shards FOLDER --tile 224 --columns 4 --out views.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from engine.batches.pipeline import load_index
from engine.batches.prepare import Prepare, Specimens
from engine.config import DataConfig
from engine.simulated import photos as simulated_photos
from engine.simulated.source import SimulatedSource, open_dataset
from engine.specimens.taxonomy import RANKS, Taxonomy


def _strip(photos: Sequence[np.ndarray], title: str, tile: int) -> np.ndarray:
    """Photos in a row under a title, uint8 [tile + 14, len(photos) * tile, 3] RGB."""
    strip = np.full((tile + 14, len(photos) * tile, 3), 255, np.uint8)
    cv2.putText(strip, title, (3, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (40, 40, 40), 1, cv2.LINE_AA)
    strip[14:] = np.hstack([cv2.resize(photo, (tile, tile), interpolation=cv2.INTER_AREA) for photo in photos])
    return strip


def _family_photos(source: SimulatedSource, family: int, columns: int, nuisance: float) -> list[np.ndarray]:
    tree = source.tree()
    species = [s for s in range(source.num_species) if tree.lineage(s)[1] == family]
    numbers = range(10_000_000 + 100 * family, 10_000_000 + 100 * family + columns)  # no specimens of the table
    return [
        simulated_photos.draw(source.seed, tree.position(species[column % len(species)]), number, nuisance)
        for column, number in enumerate(numbers)
    ]


def contact_sheet(source: SimulatedSource, columns: int, tile: int, nuisance: float) -> np.ndarray:
    """All families in two columns of strips, below them one photo of each order as the training sees it; uint8 RGB."""
    names, (family_order, *_) = source.tree().names, source.tree().parents
    strips = [
        _strip(_family_photos(source, family, columns, nuisance), f"{names[0][order]}: {names[1][family]}", tile)
        for family, order in enumerate(family_order.tolist())
    ]
    strips += [np.full_like(strips[0], 255)] * (len(strips) % 2)
    half = len(strips) // 2
    gap = np.full((half * len(strips[0]), 8, 3), 255, np.uint8)
    sheet = np.hstack([np.vstack(strips[:half]), gap, np.vstack(strips[half:])])
    firsts = [int(np.flatnonzero(family_order == order)[-1]) for order in range(len(names[0]))]
    photos = [photo for family in firsts for photo in _family_photos(source, family, 1, nuisance=1.0)]
    row = _strip(photos[: sheet.shape[1] // tile], "as the training sees them, with light, pose, blur and noise", tile)
    return np.vstack([sheet, np.pad(row, ((0, 0), (0, sheet.shape[1] - row.shape[1]), (0, 0)), constant_values=255)])


def loader_sheet(shards: Path, photos: int, side: int) -> np.ndarray:
    """A row for each of some photos spread over the shards: evaluation, blurred, views 1 and 2 of epochs 0 and 1."""
    index = load_index([shards])
    specimens = Specimens.from_index(index, Taxonomy.build({rank: index[rank] for rank in RANKS}))
    stored = np.flatnonzero(specimens.image_size > 0)
    rows = stored[np.linspace(0, len(stored) - 1, photos).astype(int)]
    data = DataConfig(image_size=side)
    clean = Prepare(specimens, data, 0, training=False)(rows, 0)
    views = [Prepare(specimens, data, 0, training=True)(rows, epoch) for epoch in (0, 1)]
    tiles = [clean["image"], clean["image_noisy"], *(v[name] for v in views for name in ("image", "image_view2"))]
    return np.concatenate([np.concatenate(list(tile), axis=0) for tile in tiles], axis=1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=4, help="photos of a family")
    parser.add_argument("--tile", type=int, default=72, help="side of a photo, pixels")
    parser.add_argument("--nuisance", type=float, default=0.0, help="0 = plates, 1 = as the training sees them")
    parser.add_argument("--coarse", action="store_true", help="16 levels a channel: a third of the file size")
    parser.add_argument("--shards", type=Path, help="draw the loader's views of these photos instead")
    options = parser.parse_args(arguments)
    if options.shards:
        sheet = loader_sheet(options.shards, options.columns, options.tile)
        cv2.imwrite(str(options.out), sheet[..., ::-1])
        return
    sheet = contact_sheet(open_dataset([], seed=options.seed), options.columns, options.tile, options.nuisance)
    sheet = (sheet & 0xF0) + (sheet >> 4) if options.coarse else sheet
    cv2.imwrite(str(options.out), sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
