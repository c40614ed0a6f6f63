"""Simulated specimens: a real-shaped taxonomy, evolved barcodes, drawn photos, labels missing as in BIOSCAN.

The embedded default of the main job. Everything is a pure function of (seed, num_specimens, num_species); a photo is drawn from its
reference and the seed alone, so that any worker can draw it. Names of families, genera and species are invented.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.datasets import simulated_barcodes, simulated_photos
from engine.schema import SPECIMEN_SCHEMA, rng_for
from engine.taxonomy import RANKS

logger = logging.getLogger(__name__)

MIN_SPECIMENS_PER_SPECIES = 8  # 2 val, 2 test, and train specimens of which 2 are named to species
ORDERS = {  # name: (share of the families, weight of a species' specimens); flies dominate as in BIOSCAN
    "Diptera": (0.28, 2.6),
    "Hymenoptera": (0.16, 1.0),
    "Coleoptera": (0.16, 0.7),
    "Hemiptera": (0.12, 0.9),
    "Lepidoptera": (0.12, 0.8),
    "Orthoptera": (0.06, 0.5),
    "Neuroptera": (0.05, 0.4),
    "Odonata": (0.05, 0.4),
}
_GENUS_ENDINGS = {
    "Diptera": ("myia", "phora", "styla", "noma"),
    "Hymenoptera": ("sphex", "gaster", "cerus", "pone"),
    "Coleoptera": ("carabus", "derus", "cephalus", "lus"),
    "Hemiptera": ("coris", "tettix", "metra", "psa"),
    "Lepidoptera": ("ptera", "thea", "nympha", "lia"),
    "Orthoptera": ("acris", "ptila", "gryllus", "podes"),
    "Neuroptera": ("chrysa", "leon", "perla", "bia"),
    "Odonata": ("aeschna", "phlebia", "lestes", "gomphus"),
}
_STARTS = ("Al", "Bor", "Cal", "Dro", "El", "Far", "Gal", "Hel", "Is", "Kor", "Lam", "Mel", "Nor", "Ol", "Par", "Quer", "Rhod")
_STARTS += ("Sil", "Tar", "Ur", "Ver", "Xan", "Zel", "Bryoc", "Chlor", "Phaen", "Strat", "Trich", "Psil", "Myr")
_MIDDLES = ("a", "i", "o", "ano", "ero", "ili", "ono", "uri", "adi", "ecto", "ila", "omo", "ura", "asti", "eri", "ophi")
_EPITHETS = ("alb", "alpin", "angul", "aquil", "arid", "aure", "bore", "brun", "caerul", "celer", "cinct", "clar", "coron", "decor")
_EPITHETS += ("dubi", "eleg", "fals", "ferr", "flav", "fulv", "fusc", "glac", "gracil", "grand", "hirt", "ign", "lact", "litor")
_EPITHETS += ("macul", "marmor", "mont", "niger", "nival", "noct", "obscur", "ornat", "pall", "parv", "pict", "pulch", "punct")
_EPITHETS += ("rivul", "rub", "sagitt", "sever", "silv", "striat", "tenu", "trist", "umbr", "vari", "vel", "virid", "vulg", "zon")
_EPITHET_ENDINGS = ("ata", "ella", "ensis", "icola", "ina", "osa", "ula", "ifera")
_COUNTRIES = ("Costa Rica", "Canada", "South Africa", "Australia", "Norway", "Argentina", "Thailand", "Malaysia", "Egypt", "Peru")
# Share of training specimens named at least to the rank, as BIOSCAN's labels are.
NAMED = {"order": 0.997, "family": 0.96, "genus": 0.27, "species": 0.10}
HOLE = 0.02  # share of the specimens named to genus or below whose family is not given
NO_IMAGE = {"train": 0.03, "val": 0.01, "test": 0.01}
NO_BARCODE = {"train": 0.03, "val": 0.01, "test": 0.01}
HELD_OUT = 0.45  # share of val and test specimens whose haplotype no training specimen carries


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The simulated taxonomy. Arrays give the parent's index of every family, genus and species."""

    names: tuple[tuple[str, ...], ...]  # per rank
    parents: tuple[np.ndarray, ...]  # per rank below order: int64 [taxa of the rank], index into the rank above
    sister: np.ndarray  # int64 [species]: the species of the same genus it split from lately (they share a BIN), or -1
    deep: np.ndarray  # bool [species]: two deep lineages, hence two BINs

    def lineage(self, species: int) -> tuple[int, int, int, int]:
        genus = int(self.parents[2][species])
        family = int(self.parents[1][genus])
        return int(self.parents[0][family]), family, genus, species

    def position(self, species: int) -> tuple[int, int, int, int]:
        """(order, number of the family in its order, of the genus in its family, of the species in its genus)."""
        order, *rest = self.lineage(species)
        return order, *(int((p[:i] == p[i]).sum()) for p, i in zip(self.parents, rest, strict=True))


def build_tree(seed: int, num_species: int) -> Tree:
    """Grow the taxonomy: family and genus sizes are long-tailed, every taxon has at least one child."""
    rng = rng_for(seed, 0, "", "simulated/tree")
    num_families = max(len(ORDERS), round(0.22 * num_species))
    num_genera = max(num_families, round(0.46 * num_species))
    shares = np.array([share for share, _ in ORDERS.values()])
    parents = [
        np.repeat(np.arange(len(ORDERS)), _spread(num_families, shares)),
        np.repeat(np.arange(num_families), _spread(num_genera, rng.lognormal(0.0, 0.6, num_families))),
        np.repeat(np.arange(num_genera), _spread(num_species, rng.lognormal(0.0, 0.8, num_genera))),
    ]
    sister = np.full(num_species, -1)
    siblings = np.flatnonzero(parents[2][1:] == parents[2][:-1]) + 1
    chosen = rng.choice(siblings, size=min(len(siblings), round(0.04 * num_species)), replace=False)
    sister[chosen] = chosen - 1
    deep = rng.random(num_species) < 0.05
    deep[sister >= 0] = False
    return Tree(names=_names(parents, rng), parents=tuple(parents), sister=sister, deep=deep)


def _spread(total: int, weights: np.ndarray) -> np.ndarray:
    """Integers [len(weights)] of at least 1 that sum to `total`, in proportion to the weights (largest remainders)."""
    extra = (total - len(weights)) * weights / weights.sum()
    counts = np.floor(extra).astype(np.int64)
    counts[np.argsort(counts - extra, kind="stable")[: total - len(weights) - int(counts.sum())]] += 1
    return counts + 1


def _rows_by(species: np.ndarray, num_species: int) -> list[np.ndarray]:
    """Row numbers of every species, ascending."""
    return np.split(np.argsort(species, kind="stable"), np.cumsum(np.bincount(species, minlength=num_species))[:-1])


def _names(parents: list[np.ndarray], rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    orders = tuple(ORDERS)
    used: set[str] = set()

    def fresh(parts: list[tuple[str, ...]]) -> str:
        for attempt in range(1000):
            middle = parts[1:-1] * (1 + attempt // 50)  # longer names when the short ones run out
            name = "".join(choices[int(rng.integers(len(choices)))] for choices in [parts[0], *middle, parts[-1]])
            if name not in used:
                used.add(name)
                return name
        raise AssertionError("no unused name in 1000 draws")

    families, genera, species = [], [], []
    stems = {}
    for family, order in enumerate(parents[0].tolist()):
        stems[family] = fresh([_STARTS, _MIDDLES, _GENUS_ENDINGS[orders[order]]])
        families.append(stems[family].rstrip("aeiusx") + "idae")
    for genus, family in enumerate(parents[1].tolist()):
        first = genus == 0 or parents[1][genus - 1] != family  # the type genus names the family
        endings = _GENUS_ENDINGS[orders[int(parents[0][family])]]
        genera.append(stems[family] if first else fresh([_STARTS, _MIDDLES, endings]))
    for genus in parents[2].tolist():
        species.append(f"{genera[genus]} {fresh([_EPITHETS, _EPITHET_ENDINGS])}")
    return orders, tuple(families), tuple(genera), tuple(species)


@dataclass(frozen=True, kw_only=True)
class SimulatedSource:
    """Specimen source over simulated specimens; small and picklable, workers get it as it is."""

    seed: int
    num_specimens: int
    num_species: int

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Specimens that could not be read: none."""
        return []

    def load_image(self, ref: str) -> bytes:
        """JPEG of 128 x 128 pixels of the reference "order/family/genus/species/specimen" that `table` gives."""
        return simulated_photos.photo_jpeg(self.seed, *(int(part) for part in ref.split("/")))

    def tree(self) -> Tree:
        return build_tree(self.seed, self.num_species)

    def table(self) -> pa.Table:
        """All specimens with the schema SPECIMEN_SCHEMA, in random order."""
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
        return pa.table(columns, schema=SPECIMEN_SCHEMA)

    def true_labels(self) -> dict[str, list[str]]:
        """The names at all four ranks of every specimen of `table`, none missing."""
        tree, (species, _) = self.tree(), self._specimens()
        lineages = [tree.lineage(s) for s in range(self.num_species)]
        return {rank: [tree.names[r][lineages[s][r]] for s in species.tolist()] for r, rank in enumerate(RANKS)}

    def haplotypes(self) -> list[str]:
        """The barcode of every specimen of `table` before blemishes: 658 nt of ACGT."""
        return self._barcodes(self.tree(), *self._specimens())[0]

    def _specimens(self) -> tuple[np.ndarray, list[str]]:
        """(species int64 [N], split of each), shuffled. Counts are long-tailed; val and test take about 8% and 16% of each species."""
        tree = self.tree()
        rng = rng_for(self.seed, 0, "", "simulated/counts")
        weights = rng.lognormal(0.0, 0.9, self.num_species)
        by_order = [weight for _, weight in ORDERS.values()]
        weights *= [by_order[tree.lineage(s)[0]] for s in range(self.num_species)]
        spare = self.num_specimens - (MIN_SPECIMENS_PER_SPECIES - 1) * self.num_species
        counts = _spread(spare, weights) + MIN_SPECIMENS_PER_SPECIES - 1
        species = np.repeat(np.arange(self.num_species), counts)
        split = []
        for count in counts.tolist():
            num_val, num_test = max(2, round(0.08 * count)), max(2, round(0.16 * count))
            split += ["val"] * num_val + ["test"] * num_test + ["train"] * (count - num_val - num_test)
        shuffled = rng.permutation(self.num_specimens)
        return species[shuffled], [split[i] for i in shuffled]

    def _labels(self, tree: Tree, species: np.ndarray, split: list[str]) -> list[tuple[str | None, ...]]:
        """Names per specimen and rank; in train most stop at family, but two of every species are named in full."""
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
        """(haplotype of 658 nt, BIN) of every specimen."""
        evolution, roots, compositions = self._species_roots(tree)
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

    def _species_roots(self, tree: Tree) -> tuple[simulated_barcodes.Evolution, list[list[int]], list[np.ndarray]]:
        """The barcode at the root of every species, grown from the root of all orders rank by rank."""
        rng = rng_for(self.seed, 0, "", "simulated/phylogeny")
        evolution = simulated_barcodes.Evolution(rng)
        branch = simulated_barcodes.Branch()
        above, composition_above = [evolution.root], [np.zeros(4)]
        parents = [np.zeros(len(ORDERS), dtype=np.int64), *tree.parents]
        for rank, length in zip(RANKS, (branch.order, branch.family, branch.genus, branch.species), strict=True):
            here: list[list[int]] = []
            compositions = []
            stems: dict[int, list[list[int]]] = {}
            for taxon, parent in enumerate(parents[RANKS.index(rank)].tolist()):
                if rank in ("order", "family"):
                    composition_at = simulated_barcodes.Evolution.composition(rng.uniform(0.86, 0.95), rng)
                else:
                    composition_at = composition_above[parent]
                reach = length * float(np.exp(rng.normal(0.0, branch.spread)))
                nodes = stems.setdefault(parent, [above[parent]])
                start = nodes[int(rng.integers(len(nodes)))]
                if rank == "species" and tree.sister[taxon] >= 0:
                    start, reach = here[int(tree.sister[taxon])], 0.012
                middle = float(rng.uniform(0.2, 0.6))
                node = evolution.evolve(start, middle * reach, composition_at, rng)
                nodes.append(node)
                here.append(evolution.evolve(node, (1 - middle) * reach, composition_at, rng))
                compositions.append(composition_at)
            above, composition_above = here, compositions
        return evolution, above, composition_above


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
        raise ValueError(f"simulated: num_specimens, got {num_specimens}, allowed: {fewest} or more for {num_species} species")
    return SimulatedSource(seed=seed, num_specimens=num_specimens, num_species=num_species)
