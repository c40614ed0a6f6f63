"""Simulated specimens: a real-shaped taxonomy, evolved barcodes, drawn photos, labels missing as in BIOSCAN.

The embedded default of the main job. Everything is a pure function of (seed, num_specimens, num_species); a photo is
drawn from its reference and the seed alone, so that any worker can draw it. Names of families, genera and species are
invented.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.simulated import barcodes as simulated_barcodes
from engine.simulated import photos as simulated_photos
from engine.simulated.taxonomy import ORDERS, Tree, build_tree, spread
from engine.specimens.schema import SPECIMEN_SCHEMA, rng_for
from engine.specimens.taxonomy import RANKS

MIN_SPECIMENS_PER_SPECIES = 8  # 2 val, 2 test, and train specimens of which 2 are named to species
_COUNTRIES = (
    "Costa Rica",
    "Canada",
    "South Africa",
    "Australia",
    "Norway",
    "Argentina",
    "Thailand",
    "Malaysia",
    "Peru",
)
# Share of training specimens named at least to the rank, as BIOSCAN's labels are.
NAMED = {"order": 0.997, "family": 0.96, "genus": 0.27, "species": 0.10}
HOLE = 0.02  # share of the specimens named to genus or below whose family is not given
NO_IMAGE = {"train": 0.03, "val": 0.01, "test": 0.01}
NO_BARCODE = {"train": 0.03, "val": 0.01, "test": 0.01}
HELD_OUT = 0.45  # share of val and test specimens whose haplotype no training specimen carries


def _rows_by(species: np.ndarray, num_species: int) -> list[np.ndarray]:
    """Return the row numbers of every species, ascending."""
    return np.split(np.argsort(species, kind="stable"), np.cumsum(np.bincount(species, minlength=num_species))[:-1])


@dataclass(frozen=True, kw_only=True)
class SimulatedSource:
    """Specimen source over simulated specimens; small and picklable, workers get it as it is."""

    seed: int
    num_specimens: int
    num_species: int
    skipped: list[tuple[str, str]] = field(default_factory=list)  # nothing is ever left out

    def load_image(self, ref: str) -> bytes:
        """Return the JPEG (128 x 128 pixels) of a reference "order/family/genus/species/specimen" of `batches`."""
        order, family, genus, species, specimen = (int(part) for part in ref.split("/"))
        return simulated_photos.photo_jpeg(self.seed, (order, family, genus, species), specimen)

    def tree(self) -> Tree:
        """Return the taxonomy that the specimens are drawn from, the same for the same seed and size."""
        return build_tree(self.seed, self.num_species)

    def batches(self) -> Iterator[pa.Table]:
        """Yield all specimens, in random order, in one table."""
        species, split = self._specimens()
        tree = self.tree()
        barcodes, bins = self._barcodes(tree, species, split)
        labels = self._labels(tree, species, split)
        columns: dict[str, list[str | None]] = {name: [] for name in SPECIMEN_SCHEMA.names}
        positions = ["/".join(str(i) for i in tree.position(s)) for s in range(self.num_species)]
        for i, s in enumerate(species.tolist()):
            rng = rng_for(self.seed, 0, str(i), "simulated/record")
            lost, country = rng.random(), _COUNTRIES[min(int(rng.exponential(2.5)), len(_COUNTRIES) - 1)]
            no_image = lost < NO_IMAGE[split[i]]
            no_barcode = not no_image and lost < NO_IMAGE[split[i]] + NO_BARCODE[split[i]]
            columns["key"].append(f"SIM{self.seed}-{i:06d}")
            columns["image"].append(None if no_image else f"{positions[s]}/{i}")
            columns["barcode"].append(None if no_barcode else simulated_barcodes.blemish(barcodes[i], rng))
            for rank, name in zip(RANKS, labels[i], strict=True):
                columns[rank].append(name)
            columns["split"].append(split[i])
            columns["bin_uri"].append(None if no_barcode or rng.random() < 0.01 else bins[i])
            columns["country"].append(None if rng.random() < 0.03 else country)
        columns.update({name: [None] * len(species) for name in ("latitude", "longitude", "group")})
        yield pa.table(columns, schema=SPECIMEN_SCHEMA)

    def true_labels(self) -> dict[str, list[str]]:
        """Return the names at all four ranks of every specimen of `batches`, none missing."""
        tree, (species, _) = self.tree(), self._specimens()
        lineages = [tree.lineage(s) for s in range(self.num_species)]
        return {rank: [tree.names[r][lineages[s][r]] for s in species.tolist()] for r, rank in enumerate(RANKS)}

    def haplotypes(self) -> list[str]:
        """Return the barcode of every specimen of `batches` before blemishes: 658 nt of ACGT."""
        return self._barcodes(self.tree(), *self._specimens())[0]

    def _specimens(self) -> tuple[np.ndarray, list[str]]:
        """Return (species int64 [N], split of each), shuffled.

        Counts are long-tailed; val and test take about 8% and 16% of each species.
        """
        tree = self.tree()
        rng = rng_for(self.seed, 0, "", "simulated/counts")
        weights = rng.lognormal(0.0, 0.9, self.num_species)
        by_order = [weight for _, weight in ORDERS.values()]
        weights *= [by_order[tree.lineage(s)[0]] for s in range(self.num_species)]
        spare = self.num_specimens - (MIN_SPECIMENS_PER_SPECIES - 1) * self.num_species
        counts = spread(spare, weights) + MIN_SPECIMENS_PER_SPECIES - 1
        species = np.repeat(np.arange(self.num_species), counts)
        split = []
        for count in counts.tolist():
            num_val, num_test = max(2, round(0.08 * count)), max(2, round(0.16 * count))
            split += ["val"] * num_val + ["test"] * num_test + ["train"] * (count - num_val - num_test)
        shuffled = rng.permutation(self.num_specimens)
        return species[shuffled], [split[i] for i in shuffled]

    def _labels(self, tree: Tree, species: np.ndarray, split: list[str]) -> list[tuple[str | None, ...]]:
        """Return names per specimen and rank; in train most stop at family, but two of a species are named in full."""
        depth_draw, hole_draw = rng_for(self.seed, 0, "", "simulated/labels").random((2, len(species)))
        in_train = np.array([part == "train" for part in split])
        for rows in _rows_by(species, self.num_species):
            rows = rows[in_train[rows]]
            depth_draw[rows[np.argsort(depth_draw[rows], kind="stable")[:2]]] = 0.0
        depth_draw[~in_train], hole_draw[~in_train] = 0.0, 1.0
        depths = (depth_draw[:, None] < np.array(list(NAMED.values()))).sum(axis=1)
        labels = []
        for s, depth, draw in zip(species.tolist(), depths.tolist(), hole_draw.tolist(), strict=True):
            full = [tree.names[rank][taxon] for rank, taxon in enumerate(tree.lineage(s))]
            names = [name if rank < depth else None for rank, name in enumerate(full)]
            if depth > 2 and draw < HOLE:
                names[1] = None
            labels.append(tuple(names))
        return labels

    def _barcodes(self, tree: Tree, species: np.ndarray, split: list[str]) -> tuple[list[str], list[str]]:
        """Return (haplotype of 658 nt, BIN) of every specimen."""
        evolution, roots, compositions = simulated_barcodes.grow(self.seed, tree)
        barcodes, bins = [""] * len(species), [""] * len(species)
        in_train = np.array([part == "train" for part in split])
        held_out = ~in_train & (rng_for(self.seed, 0, "", "simulated/held").random(len(species)) < HELD_OUT)
        for s, rows in enumerate(_rows_by(species, self.num_species)):
            rng = rng_for(self.seed, 0, str(s), "simulated/haplotypes")
            deep = float(rng.uniform(0.05, 0.08)) if tree.deep[s] else 0.0
            found = simulated_barcodes.populate(evolution, roots[s], compositions[s], held_out[rows], rng, deep)
            home = tree.sister[s] if tree.sister[s] >= 0 else s
            for row, haplotype in zip(rows.tolist(), found.of_specimen, strict=True):
                number = 2 * int(home) + found.lineage[haplotype]
                barcodes[row] = found.sequences[haplotype]
                bins[row] = f"SIM:{''.join(chr(65 + number // 26**place % 26) for place in (2, 1, 0))}{1000 + number}"
        return barcodes, bins


def open_dataset(
    paths: list[Path], seed: int = 0, num_specimens: int = 9200, num_species: int = 120
) -> SimulatedSource:
    """Open the simulated source.

    Args:
        paths: must be empty, nothing is read.
        seed: of everything.
        num_specimens: of all splits together; about 76% train, 8% val, 16% test.
        num_species: all of them occur in every split.

    Raises:
        ValueError: paths given, fewer than 8 species, or fewer than 8 specimens per species.
    """
    if paths:
        raise ValueError(f"simulated: reads no paths, got {[str(path) for path in paths]}, allowed: none")
    if num_species < len(ORDERS):
        raise ValueError(f"simulated: num_species, got {num_species}, allowed: {len(ORDERS)} or more")
    fewest = MIN_SPECIMENS_PER_SPECIES * num_species
    if num_specimens < fewest:
        raise ValueError(
            f"simulated: num_specimens, got {num_specimens}, allowed: {fewest} or more for {num_species} species"
        )
    return SimulatedSource(seed=seed, num_specimens=num_specimens, num_species=num_species)
