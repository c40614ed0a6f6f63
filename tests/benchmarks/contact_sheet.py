"""Draw the contact sheet of the simulated insects: one row per family, its species from left to right.

python -m tests.benchmarks.contact_sheet --out tests/golden/simulated_contact_sheet.png [--seed S]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from engine.datasets import simulated_photos
from engine.datasets.simulated import SimulatedSource, open_dataset


def family_strip(source: SimulatedSource, family: int, columns: int, tile: int, nuisance: float) -> np.ndarray:
    """One family's species in a row, uint8 [tile + 14, columns * tile, 3] RGB with the names above."""
    tree = source.tree()
    species = [s for s in range(source.num_species) if tree.lineage(s)[1] == family]
    strip = np.full((tile + 14, columns * tile, 3), 255, np.uint8)
    order = tree.names[0][tree.lineage(species[0])[0]]
    title = f"{order}: {tree.names[1][family]}"
    cv2.putText(strip, title, (3, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.33, (40, 40, 40), 1, cv2.LINE_AA)
    for column in range(columns):
        number = 10_000_000 + 100 * family + column  # no specimen of the table
        photo = simulated_photos.draw(source.seed, *tree.position(species[column % len(species)]), number, nuisance)
        small = cv2.resize(photo, (tile, tile), interpolation=cv2.INTER_AREA)
        strip[14:, column * tile : (column + 1) * tile] = small
    return strip


def contact_sheet(source: SimulatedSource, columns: int = 5, tile: int = 80, nuisance: float = 1.0) -> np.ndarray:
    """All families in two columns of strips, uint8 [H, W, 3] RGB."""
    num_families = len(source.tree().names[1])
    strips = [family_strip(source, family, columns, tile, nuisance) for family in range(num_families)]
    strips += [np.full_like(strips[0], 255)] * (len(strips) % 2)
    half = len(strips) // 2
    gap = np.full((half * len(strips[0]), 8, 3), 255, np.uint8)
    return np.hstack([np.vstack(strips[:half]), gap, np.vstack(strips[half:])])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tile", type=int, default=80, help="side of a photo, pixels")
    parser.add_argument("--nuisance", type=float, default=1.0, help="0 = plates without pose, light, noise")
    options = parser.parse_args(arguments)
    sheet = contact_sheet(open_dataset([], seed=options.seed), tile=options.tile, nuisance=options.nuisance)
    cv2.imwrite(str(options.out), sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
