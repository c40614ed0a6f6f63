"""Containment and overlap of barcodes against all pairs compared one by one."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.relations import containment, substrings
from engine.relations.containment import (
    containment_groups,
    novel_mask,
    related_groups,
    relations,
    shared_stretch_groups,
)


def groups_by_hand(barcodes: list[str], related: Callable[[str, str], bool]) -> list[int]:
    """Union of all pairs, numbered in order of appearance."""
    root = list(range(len(barcodes)))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for i, one in enumerate(barcodes):
        for j, other in enumerate(barcodes):
            if one and other and related(one, other):
                root[find(j)] = find(i)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(find(i), len(numbers)) for i in range(len(barcodes))]


def contains(one: str, other: str) -> bool:
    return other in one


def overlaps(one: str, other: str, width: int) -> bool:
    longest = min(len(one), len(other))
    return other in one or any(one[-n:] == other[:n] for n in range(width, longest + 1))


def share(one: str, other: str, width: int) -> bool:
    return other in one or any(one[i : i + width] in other for i in range(len(one) - width + 1))


def novel_by_hand(queries: list[str], references: list[str]) -> list[bool]:
    known = [reference for reference in references if reference]
    return [bool(query) and not any(query in other or other in query for other in known) for query in queries]


@st.composite
def related_barcodes(draw: st.DrawFn) -> list[str]:
    """Pieces of a few sequences, with doubles, empty ones, and repeats that give many near hits."""
    alphabet = draw(st.sampled_from(["ACGTN", "AC", "A"]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    sources = ["".join(rng.choice(list(alphabet), rng.integers(1, 150))) for _ in range(draw(st.integers(1, 5)))]
    result = []
    for _ in range(draw(st.integers(0, 40))):
        source = sources[rng.integers(len(sources))]
        start, stop = sorted(rng.integers(0, len(source) + 1, 2).tolist())
        result.append(source if rng.random() < 0.3 else source[start:stop])
    return result


@settings(deadline=None, max_examples=40)
@given(related_barcodes(), st.integers(20, 3000), st.integers(1, 500))
def test_equal_to_all_pairs_at_any_chunk_size(barcodes: list[str], chunk: int, batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(substrings, "_CHUNK", chunk)
        patch.setattr(substrings, "_BATCH", batch)
        assert containment_groups(barcodes).tolist() == groups_by_hand(barcodes, contains)
        half = len(barcodes) // 2
        queries, references = barcodes[:half], barcodes[half:]
        assert novel_mask(queries, references).tolist() == novel_by_hand(queries, references)


@settings(deadline=None, max_examples=40)
@given(related_barcodes(), st.integers(1, 60), st.integers(20, 3000), st.integers(1, 2000))
@pytest.mark.middle
def test_overlaps_and_stretches_equal_all_pairs(barcodes: list[str], width: int, chunk: int, windows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(substrings, "_CHUNK", chunk)
        patch.setattr(containment, "_PASS", windows)
        overlapping = partial(overlaps, width=width)
        assert related_groups(barcodes, width).tolist() == groups_by_hand(barcodes, overlapping)
        sharing = partial(share, width=width)
        assert shared_stretch_groups(barcodes, width).tolist() == groups_by_hand(barcodes, sharing)


@settings(deadline=None, max_examples=40)
@given(related_barcodes(), st.integers(1, 60))
def test_relations_are_the_closest_of_all_pairs(barcodes: list[str], width: int) -> None:
    half = len(barcodes) // 2
    queries, references = barcodes[:half], barcodes[half:]
    kinds, partners = relations(queries, references, width)
    for query, kind, partner in zip(queries, kinds.tolist(), partners.tolist(), strict=True):
        pairs = [relation(query, reference, width) for reference in references]
        assert kind == max(pairs, default=0)
        assert (partner == -1) if kind == 0 else pairs[partner] == kind


def relation(query: str, reference: str, width: int) -> int:
    """Position in RELATIONS."""
    if not query or not reference:
        return 0
    if query == reference:
        return 3
    if query in reference or reference in query:
        return 2
    return int(overlaps(query, reference, width) or overlaps(reference, query, width))


def test_overlap_needs_200_nucleotides_and_both_ends() -> None:
    rng = np.random.default_rng(0)
    whole = "".join(rng.choice(list("ACGT"), 900))
    other = "".join(rng.choice(list("ACGT"), 100))
    begin, end, short = whole[:500], whole[300:], whole[301:]
    assert related_groups([begin, end]).tolist() == [0, 0]
    assert related_groups([begin, short]).tolist() == [0, 1]  # 199 nucleotides
    assert containment_groups([begin, end, begin]).tolist() == [0, 1, 0]
    aside = [whole[:500] + other, end]  # the same 200, but one goes on differently: two molecules
    assert related_groups(aside).tolist() == [0, 1] and shared_stretch_groups(aside).tolist() == [0, 0]
    chain = [whole[:300], whole[100:500], whole[300:600]]  # the ends share nothing, the middle joins them
    assert related_groups(chain).tolist() == [0, 0, 0]


def test_groups_by_hand_written_case() -> None:
    whole = "ACGTTGCAATCGGATTACAGGCATCAGGACTACGATCAGCATCAGCGACTACG"  # 53 letters
    barcodes = [whole, "TTTT", whole[3:40], whole[:35], "", "G" + whole[:35], whole, "", "CTTTTC"]
    assert containment_groups(barcodes).tolist() == [0, 1, 0, 0, 2, 0, 0, 3, 1]


def test_n_is_a_plain_letter() -> None:
    assert novel_mask(["ACNT", "CNT", "CGT"], ["AACNTT", "ACGTA"]).tolist() == [False, False, False]
    assert novel_mask(["ACNT"], ["ACGT"]).tolist() == [True]
    long = "ACGT" * 12
    assert novel_mask([long[:20] + "N" + long[21:40]], [long]).tolist() == [True]  # the same 2-bit code as with A


def test_both_directions_and_equality() -> None:
    long = "".join(np.random.default_rng(0).choice(list("ACGT"), 600))
    queries = [long[100:500], "C" + long, long, long[::-1], ""]
    assert novel_mask(queries, [long]).tolist() == [False, False, False, True, False]


def test_nothing_to_compare() -> None:
    assert novel_mask([], ["ACGT"]).tolist() == []
    assert novel_mask(["ACGT", ""], []).tolist() == [True, False]
    assert novel_mask(["ACGT"], ["", ""]).tolist() == [True]
    assert containment_groups([]).tolist() == [] and containment_groups([]).dtype == np.int64
