"""Barcodes of the simulated specimens: sequences like COI evolved down a tree, haplotypes, a laboratory's blemishes.

The root is the protein that every barcoded fly has (the 219 codons of the Folmer fragment of Drosophila COI, 658 nt,
whose first whole codon starts at the second base). Substitutions fall mostly on third positions, towards A and T,
more often between A-G and C-T, and are kept when the codon stays no stop (TAA, TAG) and mostly when the amino acid
stays the same. The branch lengths are tuned to the divergence of real BOLD records:
tests/benchmarks/simulated_divergence.py prints both.
"""

from dataclasses import dataclass

import numpy as np

from engine.signals.nucleotides import BASES, GENETIC_CODE, reverse_complement
from engine.simulated.taxonomy import ORDERS, Tree
from engine.specimens.schema import rng_for
from engine.specimens.taxonomy import RANKS

LENGTH = 658
FRAME = 1  # index of the first base of the first whole codon
PROTEIN = (
    "TLYFIFGAWAGMVGTSLSILIRAELGHPGALIGDDQIYNVIVTAHAFIMIFFMVMPIMIGGFGNWLVPLMLGAPDMAFPRMNNMSFWLLPPALSLLLVSSMVENGAGTGW"
    "TVYPPLSAGIAHGGASVDLAIFSLHLAGISSILGAVNFITTVINMRSTGISLDRMPLFVWSVVITALLLLLSLPVLAGAITMLLTDRNLNTSFFDPAGGGDPILYQHLF"
)
_IUPAC = "RYKMSW"


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Proposed substitutions per site from the parent down to each kind of taxon, and how much that varies."""

    order: float = 0.8
    family: float = 0.50
    genus: float = 0.32
    species: float = 0.44
    sister: float = 0.0  # between two species that share a BIN: their roots are one haplotype, which both carry
    spread: float = 0.7  # sigma of the log-normal branch length


class Evolution:
    """What is common to a whole tree: where substitutions fall, what they turn into, and the root sequence.

    Sequences are lists of 658 codes 0..3 = A C G T.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        position = (np.arange(LENGTH) - FRAME) % 3
        weight = np.choose(position, (0.36, 0.11, 1.0)) * rng.gamma(4.0, 0.25, LENGTH)
        weight[0] = 0.0  # the lone base before the first codon
        self._cumulative = np.cumsum(weight / weight.sum())
        # Chance that a change of amino acid stays: few sites are free, most are not (gamma with a long tail).
        self._tolerance = np.minimum(rng.gamma(0.35, 0.25, LENGTH // 3), 1.0)
        self.root = self._back_translate(rng)

    @staticmethod
    def composition(at: float, rng: np.random.Generator) -> np.ndarray:
        """Return base frequencies that a lineage's substitutions drift to.

        [4] over A C G T, a share `at` of A and T.
        """
        share_t, share_c = rng.uniform(0.48, 0.56), rng.uniform(0.6, 0.72)
        return np.array([at * (1 - share_t), (1 - at) * share_c, (1 - at) * (1 - share_c), at * share_t])

    def evolve(self, parent: list[int], length: float, composition: np.ndarray, rng: np.random.Generator) -> list[int]:
        """Return a descendant after `length` proposed substitutions per site, of which selection refuses some."""
        return self._substitute(parent, int(rng.poisson(length * LENGTH)), composition, rng)

    def mutate(self, parent: list[int], count: int, composition: np.ndarray, rng: np.random.Generator) -> list[int]:
        """Return a descendant that differs from the parent at 1 to `count` sites."""
        for _ in range(1000):
            child = self._substitute(parent, 2 * count, composition, rng, limit=count)
            if child != parent:
                return child
        raise AssertionError("no substitution was accepted in 1000 rounds")

    def _substitute(
        self, parent: list[int], proposals: int, composition: np.ndarray, rng: np.random.Generator, limit: int = LENGTH
    ) -> list[int]:
        sequence = list(parent)
        sites = np.searchsorted(self._cumulative, rng.random(proposals)).tolist()
        # Third positions drift to the lineage's composition; the others, held by the protein, towards an even one.
        third = np.cumsum(_preference(composition), axis=1).tolist()
        other = np.cumsum(_preference(0.6 * composition + 0.1), axis=1).tolist()
        draws, luck = rng.random(proposals).tolist(), rng.random(proposals).tolist()
        accepted = 0
        for site, draw, chance in zip(sites, draws, luck, strict=True):
            row = (third if site % 3 == 0 else other)[sequence[site]]
            new = (draw > row[0]) + (draw > row[1]) + (draw > row[2])
            old = sequence[site]
            if new == old or not self._survives(sequence, site, new, chance):
                continue
            sequence[site] = new
            accepted += 1
            if accepted == limit:
                break
        return sequence

    def _survives(self, sequence: list[int], site: int, new: int, chance: float) -> bool:
        codon, place = divmod(site - FRAME, 3)
        bases = sequence[FRAME + 3 * codon : FRAME + 3 * codon + 3]
        before = GENETIC_CODE[16 * bases[0] + 4 * bases[1] + bases[2]]
        bases[place] = new
        after = GENETIC_CODE[16 * bases[0] + 4 * bases[1] + bases[2]]
        return after != "*" and (after == before or chance < self._tolerance[codon])

    def _back_translate(self, rng: np.random.Generator) -> list[int]:
        at_weight = np.array([10.0, 1.0, 1.0, 10.0])
        sequence = [0] * FRAME
        for amino in PROTEIN:
            codons = np.array([c for c in range(64) if GENETIC_CODE[c] == amino])
            weight = at_weight[codons // 16] * at_weight[codons // 4 % 4] * at_weight[codons % 4]
            codon = int(rng.choice(codons, p=weight / weight.sum()))
            sequence += [codon // 16, codon // 4 % 4, codon % 4]
        return sequence


def _preference(composition: np.ndarray, transition_bias: float = 5.0) -> np.ndarray:
    """[4, 4] chance of each new base given the old one; the diagonal (no change) keeps the rows summing to 1."""
    rates = np.tile(composition, (4, 1))
    for old, new in ((0, 2), (2, 0), (1, 3), (3, 1)):
        rates[old, new] *= transition_bias
    np.fill_diagonal(rates, 0.0)
    rates /= rates.sum(axis=1).max()
    np.fill_diagonal(rates, 1.0 - rates.sum(axis=1))
    return rates


def to_text(sequence: list[int]) -> str:
    """Codes 0 to 3 -> a string of A, C, G, T."""
    return BASES[np.array(sequence)].tobytes().decode()


def blemish(barcode: str, rng: np.random.Generator) -> str:
    """Return a barcode as sequencing and data entry leave it: most stay clean.

    Rates: 22% lose up to 60 nt at an end, 4% are short (300-500 nt), 7% have Ns (a few or one run), 1% an IUPAC
    letter, 2% gap characters, 2% lower case, 3% are the reverse complement.
    """
    draw = rng.random(7)
    if draw[0] < 0.04:
        keep = int(rng.integers(300, 501))
        start = int(rng.integers(0, len(barcode) - keep + 1))
        barcode = barcode[start : start + keep]
    elif draw[0] < 0.26:
        cut_start, cut_end = (min(60, int(rng.exponential(15.0))) for _ in range(2))
        barcode = barcode[cut_start : len(barcode) - cut_end]
    letters = list(barcode)
    if draw[1] < 0.05:
        for site in rng.integers(0, len(letters), int(rng.integers(1, 9))).tolist():
            letters[site] = "N"
    elif draw[1] < 0.07:
        start, run = int(rng.integers(0, len(letters) - 40)), int(rng.integers(5, 40))
        letters[start : start + run] = "N" * run
    if draw[2] < 0.01:
        letters[int(rng.integers(len(letters)))] = _IUPAC[int(rng.integers(len(_IUPAC)))]
        return "".join(letters)
    barcode = "".join(letters)
    if draw[3] < 0.03:
        barcode = reverse_complement(barcode)
    if draw[4] < 0.01:
        barcode = "-" * int(rng.integers(1, 12)) + barcode + "-" * int(rng.integers(1, 12))
    elif draw[4] < 0.02:
        site = int(rng.integers(1, len(barcode)))
        barcode = barcode[:site] + "-" + barcode[site:]
    return barcode.lower() if draw[5] < 0.02 else barcode


@dataclass(frozen=True, kw_only=True)
class Haplotypes:
    """The barcodes of one species before blemishes."""

    sequences: list[str]  # 658 nt each, ACGT, all different
    lineage: list[int]  # per sequence: 0, or 1 for the second of two deep lineages (another BIN)
    of_specimen: list[int]  # per specimen: index into sequences


def populate(
    evolution: Evolution,
    root: list[int],
    composition: np.ndarray,
    held_out: np.ndarray,
    rng: np.random.Generator,
    deep_split: float = 0.0,
) -> Haplotypes:
    """Return the haplotypes of a species and who carries which, by a Chinese restaurant process.

    Args:
        evolution: of the tree.
        root: the species' own sequence.
        composition: base frequencies that its substitutions drift to, [4].
        rng: where the haplotypes come from.
        held_out: bool [specimens]; such specimens carry haplotypes that no other kind of specimen carries.
        deep_split: proposed substitutions per site between two lineages of the species, 0 for one lineage.
    """
    theta = float(np.exp(rng.normal(0.3, 1.0)))  # diversity: expected number of haplotypes grows with it
    reach = float(np.exp(rng.normal(0.6, 1.5)))  # mean number of steps between a haplotype and its parent
    sequences, lineages = [root], [0]
    if deep_split:
        second = evolution.evolve(root, deep_split, composition, rng)
        if second != root:
            sequences, lineages = [root, second], [0, 1]
    known = {tuple(sequence) for sequence in sequences}
    carriers: dict[bool, list[int]] = {False: [], True: []}
    if not deep_split:
        carriers[False] = [0]  # somebody carries the root
    of_specimen = []
    for held in held_out.tolist():
        earlier = carriers[held]
        if rng.random() * (theta + len(earlier)) >= theta:
            chosen = earlier[int(rng.integers(len(earlier)))]
        elif len(earlier) < 2 and deep_split and not held:
            chosen = len(earlier)  # the two lineages' roots come first
        else:
            parent = int(rng.integers(len(sequences)))
            if rng.random() < 0.6:
                parent = min(parent, lineages[parent])  # most haplotypes surround a lineage's root
            child = evolution.mutate(sequences[parent], 1 + int(rng.poisson(reach)), composition, rng)
            chosen = len(sequences)
            while tuple(child) in known:
                child = evolution.mutate(child, 1, composition, rng)
            known.add(tuple(child))
            sequences.append(child)
            lineages.append(lineages[parent])
        earlier.append(chosen)
        of_specimen.append(chosen)
    return Haplotypes(sequences=[to_text(s) for s in sequences], lineage=lineages, of_specimen=of_specimen)


def grow(seed: int, tree: Tree) -> tuple[Evolution, list[list[int]], list[np.ndarray]]:
    """Evolve from the root of all orders down to the species.

    Returns:
        What the whole tree has in common; per species the sequence at its root; per species its composition [4].
    """
    rng = rng_for(seed, 0, "", "simulated/phylogeny")
    evolution, branch = Evolution(rng), Branch()
    above, composition_above = [evolution.root], [np.zeros(4)]
    parents = (np.zeros(len(ORDERS), dtype=np.int64), *tree.parents)
    lengths = (branch.order, branch.family, branch.genus, branch.species)
    for rank, length, parents_of_rank in zip(RANKS, lengths, parents, strict=True):
        here: list[list[int]] = []
        compositions: list[np.ndarray] = []
        stems: dict[int, list[list[int]]] = {}  # per parent: where a child may branch off
        for taxon, parent in enumerate(parents_of_rank.tolist()):
            if rank in ("order", "family"):
                composition = Evolution.composition(rng.uniform(0.86, 0.95), rng)
            else:
                composition = composition_above[parent]
            reach = length * float(np.exp(rng.normal(0.0, branch.spread)))
            nodes = stems.setdefault(parent, [above[parent]])
            start = nodes[int(rng.integers(len(nodes)))]
            if rank == "species" and tree.sister[taxon] >= 0:
                start, reach = here[int(tree.sister[taxon])], branch.sister
            middle = float(rng.uniform(0.2, 0.6))
            node = evolution.evolve(start, middle * reach, composition, rng)
            nodes.append(node)
            here.append(evolution.evolve(node, (1 - middle) * reach, composition, rng))
            compositions.append(composition)
        above, composition_above = here, compositions
    return evolution, above, composition_above
