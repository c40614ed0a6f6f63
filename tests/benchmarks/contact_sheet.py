"""Draw the contact sheet of the simulated insects: a strip per family, its species from left to right.

python -m tests.benchmarks.contact_sheet --coarse --out tests/golden/simulated_contact_sheet.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from engine.datasets import simulated_photos
from engine.datasets.simulated import SimulatedSource, open_dataset


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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--columns", type=int, default=4, help="photos of a family")
    parser.add_argument("--tile", type=int, default=72, help="side of a photo, pixels")
    parser.add_argument("--nuisance", type=float, default=0.0, help="0 = plates, 1 = as the training sees them")
    parser.add_argument("--coarse", action="store_true", help="16 levels a channel: a third of the file size")
    options = parser.parse_args(arguments)
    sheet = contact_sheet(open_dataset([], seed=options.seed), options.columns, options.tile, options.nuisance)
    sheet = (sheet & 0xF0) + (sheet >> 4) if options.coarse else sheet
    cv2.imwrite(str(options.out), sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
