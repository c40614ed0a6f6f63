"""The parts of the search in compiled code: seeds, alignment, clusters, and all of it beside brute force."""

import edlib
import numpy as np
import pytest

from engine.signals.degrade import BarcodePreset, degrade_barcode
from engine.signals.nucleotides import CODES, codes, letters
from train.reference.align import BAND, align, differences, least_overlap
from train.reference.clusters import MOST, Clusters
from train.reference.search import ROUNDS, Targets, search
from train.reference.seeds import Scratch, SeedIndex, lookup

ANY = [(letter, "N") for letter in "ACGT"]


def random_barcode(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list("ACGT"), length))


def mutate(sequence: str, rng: np.random.Generator, rate: float) -> str:
    return degrade_barcode(sequence, rng, 1.0, BarcodePreset.only(substitution=rate))


def laid_out(sequences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return letters("".join(sequences)), np.cumsum([0, *map(len, sequences)])


def aligned(query: str, reference: str, place: int) -> tuple[int, int]:
    size = len(query) + 2 * BAND
    room = np.empty((4, size // 64 + 3), np.uint64), np.empty((len(query), 2), np.uint64), np.empty((2, size), np.uint8)
    _, (edits, overlap) = align(codes(query), letters(reference), CODES, place - BAND, room)
    return edits, overlap


def relatives(rng: np.random.Generator) -> list[str]:
    """Return 4 families of 5 species of 8 specimens, some of them shorter, shifted or with N."""
    found = []
    for _ in range(4):
        root = random_barcode(rng, 400)
        for _ in range(5):
            species = mutate(root, rng, 0.06)
            for number in range(8):
                one = mutate(species, rng, 0.008)
                one = one[rng.integers(0, 60) : 400 - rng.integers(0, 60)] if number % 3 == 0 else one
                found.append(one[:100] + "N" * 5 + one[105:] if number % 4 == 1 else one)
    return list(dict.fromkeys(found))


def test_a_lookup_counts_shared_seeds_and_says_where_the_query_begins() -> None:
    rng = np.random.default_rng(1)
    sequences = [random_barcode(rng, 300) for _ in range(20)]
    flat, starts = laid_out(sequences)
    index = SeedIndex.build(flat, starts[:-1], starts[1:])
    scratch = Scratch(20).arrays
    for query, reference, place in (
        (sequences[7][100:220], 7, 100),
        (random_barcode(rng, 80) + sequences[3][:120], 3, -80),
    ):
        chosen = np.empty((5, 3), np.int32)
        written, seeds = lookup(codes(query), index.arrays, (10**6, 1), scratch, chosen)
        assert 0 < written <= 5 and (np.diff(chosen[:written, 1]) <= 0).all()
        assert chosen[0, 0] == reference and chosen[0, 2] == place
        assert 20 < chosen[0, 1] <= seeds < 0.5 * len(query), "one k-mer in three"
    assert not scratch[0].any(), "a lookup leaves nothing to the next"


def test_seeds_do_not_depend_on_where_a_reference_begins() -> None:
    rng = np.random.default_rng(2)
    molecule = random_barcode(rng, 400)
    flat, starts = laid_out([molecule, molecule[1:], molecule[2:]])
    chosen = np.empty((3, 3), np.int32)
    index = SeedIndex.build(flat, starts[:-1], starts[1:])
    lookup(codes(molecule[50:350]), index.arrays, (10**6, 1), Scratch(3).arrays, chosen)
    assert len(set(chosen[:, 1])) == 1


def test_alignment_is_edlibs_where_the_reference_covers_the_query() -> None:
    for seed in range(20):
        _alignment_is_edlibs(np.random.default_rng(seed))


def _alignment_is_edlibs(rng: np.random.Generator) -> None:
    reference = random_barcode(rng, 400)
    damage = BarcodePreset.only(masking=0.05, deletion=0.02, insertion=0.02)
    query = degrade_barcode(mutate(reference[60:330], rng, 0.05), rng, 1.0, damage)
    expected = edlib.align(query, reference, mode="HW", additionalEqualities=ANY)["editDistance"]
    edits, overlap = aligned(query, reference, 60 + int(rng.integers(-9, 10)))
    assert edits == expected
    assert overlap <= sum(letter != "N" for letter in query)


def test_ends_that_hang_over_and_unknown_letters_cost_nothing_and_are_no_overlap() -> None:
    rng = np.random.default_rng(4)
    molecule = random_barcode(rng, 300)
    query = molecule[80:230]
    assert aligned(query, molecule[:200], 80) == (0, 120)
    assert aligned(query, molecule[100:], -20) == (0, 130)
    assert aligned(query, molecule[:120] + "N" * 30 + molecule[150:], 80) == (0, 120)
    assert aligned(query[:40] + "N" * 10 + query[50:], molecule, 80) == (0, 140)


def test_unknown_letters_neither_help_nor_win() -> None:
    rng = np.random.default_rng(5)
    query = random_barcode(rng, 200)
    near, masked = mutate(query, rng, 0.02), "".join("N" if row % 2 else letter for row, letter in enumerate(query))
    found = [aligned(query, reference, 0) for reference in (near, masked)]
    ranked = np.empty(2)
    edits, overlap = (np.array(column, np.int32) for column in zip(*found, strict=True))
    differences(edits, overlap, 200, ranked)
    assert found[1] == (0, 100) and ranked[0] < ranked[1]
    assert least_overlap(200) == 60 and least_overlap(90) == 30


def test_members_are_their_leaders_but_for_their_changes() -> None:
    sequences = relatives(np.random.default_rng(6))
    flat, starts = laid_out(sequences)
    found = Clusters.build(flat, starts)
    assert sorted(found.member.tolist()) == list(range(len(sequences)))
    assert len(found.leader) < len(sequences) / 3
    for cluster, leader in enumerate(found.leader.tolist()):
        assert found.member[found.first[cluster]] == leader
        for row in range(found.first[cluster], found.first[cluster + 1]):
            text = sequences[found.member[row]]
            places = range(found.begin[row], found.begin[row] + len(text))
            made = [sequences[leader][place] if 0 <= place < len(sequences[leader]) else "N" for place in places]
            changes = slice(found.change[row], found.change[row + 1])
            assert changes.stop - changes.start <= MOST
            for place, letter in zip(found.place[changes].tolist(), found.letter[changes].tolist(), strict=True):
                made[place - found.begin[row]] = chr(letter)
            assert "".join(made) == text


@pytest.mark.parametrize("condition", ["whole", "damaged", "fragment"])
def test_the_nearest_is_that_of_brute_force(condition: str) -> None:
    rng = np.random.default_rng(7)
    sequences = relatives(rng)
    targets = Targets.build(sequences)
    queries = [mutate(sequence, rng, 0.01).strip("N") for sequence in sequences[::4]]
    if condition == "damaged":
        queries = [degrade_barcode(query, rng, 3.0).strip("N") for query in queries]
    if condition == "fragment":
        queries = [query[90:210].strip("N") for query in queries]
    hits = search(queries, targets, ROUNDS, threads=2)
    texts = [targets.letters[one:other] for one, other in zip(targets.starts, targets.starts[1:], strict=False)]
    missed = 0
    for row, query in enumerate(queries):
        asked = query if hits.strand[row] > 0 else "".join("TGCAN"["ACGTN".index(letter)] for letter in query[::-1])
        places = range(-60, 400)
        pairs = np.array(
            [
                min(
                    (aligned(asked, bytes(text).decode(), place) for place in places[::25]),
                    key=lambda two: two[0] - two[1],
                )
                for text in texts
            ],
            np.int32,
        )
        ranked = np.empty(len(texts))
        differences(pairs[:, 0].copy(), pairs[:, 1].copy(), sum(letter != "N" for letter in asked), ranked)
        assert hits.start[row] < hits.start[row + 1]
        missed += hits.difference[hits.start[row]] > ranked.min() + 0.5
    assert missed == 0
