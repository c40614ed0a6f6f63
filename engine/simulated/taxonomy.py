"""The taxonomy of the simulated specimens: real orders, invented families, genera and species, long-tailed sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.specimens.schema import rng_for

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
# Share of the species that have the barcodes of a sister. With it about 12% of the species cannot be separated by COI:
# as many as Mutanen et al. (2016, doi:10.1093/sysbio/syw044) found not monophyletic among European Lepidoptera.
SISTERS = 0.06
# Parts of invented names: genus = start + middle + the order's ending, epithet = stem + ending.
_STARTS = (
    "Al Bor Cal Dro El Far Gal Hel Is Kor Lam Mel Nor Ol Par Quer Rhod Sil Tar Ur Ver Xan Zel Bryoc Chlor Phaen "
    "Strat Trich Psil Myr"
)
_MIDDLES = "a i o ano ero ili ono uri adi ecto ila omo ura asti eri ophi"
_EPITHETS = (
    "alb alpin angul aquil arid aure bore brun caerul celer cinct clar coron decor dubi eleg fals ferr flav fulv "
    "fusc glac gracil grand hirt ign lact litor macul marmor mont niger nival noct obscur ornat pall parv pict "
    "pulch punct rivul rub sagitt sever silv striat tenu trist umbr vari vel virid vulg zon"
)
_EPITHET_ENDINGS = "ata ella ensis icola ina osa ula ifera"


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The simulated taxonomy. Arrays give the parent's index of every family, genus and species."""

    names: tuple[tuple[str, ...], ...]  # per rank
    parents: tuple[np.ndarray, ...]  # per rank below order: int64 [taxa of the rank], index into the rank above
    sister: np.ndarray  # int64 [species]: the species of the same genus whose BIN and commonest barcode it has, or -1
    deep: np.ndarray  # bool [species]: two deep lineages, hence two BINs

    def lineage(self, species: int) -> tuple[int, int, int, int]:
        """Return a species' indices of (order, family, genus, species)."""
        genus = int(self.parents[2][species])
        family = int(self.parents[1][genus])
        return int(self.parents[0][family]), family, genus, species

    def position(self, species: int) -> tuple[int, int, int, int]:
        """(order, number of the family in its order, of the genus in its family, of the species in its genus)."""
        order, family, genus, _ = self.lineage(species)
        numbers = (
            int((of_rank[:taxon] == of_rank[taxon]).sum())
            for of_rank, taxon in zip(self.parents, (family, genus, species), strict=True)
        )
        return order, next(numbers), next(numbers), next(numbers)


def build_tree(seed: int, num_species: int) -> Tree:
    """Grow the taxonomy: family and genus sizes are long-tailed, every taxon has at least one child."""
    rng = rng_for(seed, 0, "", "simulated/tree")
    num_families = max(len(ORDERS), round(0.22 * num_species))
    num_genera = max(num_families, round(0.46 * num_species))
    shares = np.array([share for share, _ in ORDERS.values()])
    parents = [
        np.repeat(np.arange(len(ORDERS)), spread(num_families, shares)),
        np.repeat(np.arange(num_families), spread(num_genera, rng.lognormal(0.0, 0.6, num_families))),
        np.repeat(np.arange(num_genera), spread(num_species, rng.lognormal(0.0, 0.8, num_genera))),
    ]
    sister = np.full(num_species, -1)
    siblings = np.flatnonzero(parents[2][1:] == parents[2][:-1]) + 1
    chosen = rng.choice(siblings, size=min(len(siblings), round(SISTERS * num_species)), replace=False)
    sister[chosen] = chosen - 1
    deep = rng.random(num_species) < 0.05
    deep[sister >= 0] = False
    return Tree(names=_names(parents, rng), parents=tuple(parents), sister=sister, deep=deep)


def spread(total: int, weights: np.ndarray) -> np.ndarray:
    """Integers [len(weights)] of at least 1 that sum to `total`, in proportion to the weights (largest remainders)."""
    extra = (total - len(weights)) * weights / weights.sum()
    counts = np.floor(extra).astype(np.int64)
    counts[np.argsort(counts - extra, kind="stable")[: total - len(weights) - int(counts.sum())]] += 1
    return counts + 1


def _names(parents: list[np.ndarray], rng: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    orders = tuple(ORDERS)
    used: set[str] = set()

    def fresh(*parts: Sequence[str], genus: str = "") -> str:
        """Return a name of these syllables that no taxon has yet."""
        for attempt in range(1000):
            middle = parts[1:-1] * (1 + attempt // 50)  # longer names when the short ones run out
            chosen = [choices[int(rng.integers(len(choices)))] for choices in (parts[0], *middle, parts[-1])]
            if (name := genus + "".join(chosen)) not in used:
                used.add(name)
                return name
        raise AssertionError("no unused name in 1000 draws")

    starts, middles, epithets, epithet_endings = (
        words.split() for words in (_STARTS, _MIDDLES, _EPITHETS, _EPITHET_ENDINGS)
    )
    families, genera, species = [], [], []
    stems = {}
    for family, order in enumerate(parents[0].tolist()):
        stems[family] = fresh(starts, middles, _GENUS_ENDINGS[orders[order]])
        families.append(stems[family].rstrip("aeiusx") + "idae")
    for genus, family in enumerate(parents[1].tolist()):
        first = genus == 0 or parents[1][genus - 1] != family  # the type genus names the family
        endings = _GENUS_ENDINGS[orders[int(parents[0][family])]]
        genera.append(stems[family] if first else fresh(starts, middles, endings))
    for genus in parents[2].tolist():
        species.append(fresh(epithets, epithet_endings, genus=f"{genera[genus]} "))
    return orders, tuple(families), tuple(genera), tuple(species)
