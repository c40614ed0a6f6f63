"""Captions: the format, that no two lineages share one, and the random cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.specimens.captions import caption, cut

NAME = (
    st.none()
    | st.sampled_from(["A", "B", "?", "=", "%", "A B", "?%20", "A = B", "= A"])
    | st.text("AB =?%", max_size=5)
)
LINEAGE = st.tuples(NAME, NAME, NAME, NAME)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Diptera", "Chironomidae", "Chironomus", "Chironomus plumosus"), "Diptera Chironomidae Chironomus plumosus"),
        (("Diptera", "Chironomidae", "Chironomus", None), "Diptera Chironomidae Chironomus"),
        (("Diptera", None, None, None), "Diptera"),
        ((None, None, None, None), ""),
        (("", "", "", ""), ""),
        ((None, "Noctuidae", None, None), "? Noctuidae"),
        (("Diptera", None, "Aedes", "Aedes aegypti"), "Diptera ? Aedes aegypti"),
        (("Diptera", "Culicidae", None, "Aedes aegypti"), "Diptera Culicidae ? Aedes aegypti"),
        (("Diptera", "Culicidae", "Aedes", "Culex pipiens"), "Diptera Culicidae Aedes = Culex pipiens"),
        (("Diptera", "Culicidae", "Aedes", "aegypti"), "Diptera Culicidae Aedes = aegypti"),
        (("Diptera", "fam. indet.", None, None), "Diptera fam.%20indet."),
    ],
)
def test_caption_by_hand(names: tuple[str | None, ...], expected: str) -> None:
    assert caption(names) == expected


def test_one_name_per_rank_is_demanded() -> None:
    with pytest.raises(ValueError, match="got 3 names, allowed: one per rank"):
        caption(("Diptera", None, "Aedes"))


@given(LINEAGE, LINEAGE)
def test_different_lineages_never_share_a_caption(one: tuple[str | None, ...], other: tuple[str | None, ...]) -> None:
    same = [name or None for name in one] == [name or None for name in other]
    assert (caption(one) == caption(other)) == same


def test_captions_of_all_small_lineages_differ() -> None:
    words = [None, "A", "A A", "?", "=", "= A", "A = A", "A%20A"]
    seen = {caption((a, b, c, d)) for a in words for b in words for c in words for d in words}
    assert len(seen) == len(words) ** 4


@given(st.lists(st.tuples(*[st.integers(-1, 3)] * 4), min_size=1, max_size=8), st.integers(0, 999))
def test_cut_keeps_a_known_rank_and_all_above_it(rows: list[tuple[int, ...]], seed: int) -> None:
    labels = np.array(rows, dtype=np.int64)
    before, draws = labels.copy(), np.random.default_rng(seed).random((len(labels), 2))
    result = cut(labels, draws, 1.0)
    assert np.array_equal(labels, before) and result.dtype == np.int64
    for old, new in zip(labels, result, strict=True):
        kept = np.flatnonzero(new >= 0)
        last = kept[-1] if len(kept) else -1
        assert np.array_equal(new[: last + 1], old[: last + 1]) and (new[last + 1 :] == -1).all()
        assert (last >= 0) == (old >= 0).any()
    assert np.array_equal(cut(labels, draws, 0.0), labels)


def test_cut_ranks_are_uniform_and_as_frequent_as_asked() -> None:
    labels = np.tile(np.array([5, 6, -1, 7]), (30_000, 1))  # three known ranks: order, family, species
    result = cut(labels, np.random.default_rng(0).random((len(labels), 2)), 0.6)
    depth = (result >= 0).sum(axis=1)
    shares = np.bincount(depth, minlength=4)[1:] / len(labels)
    assert np.allclose(shares, [0.2, 0.2, 0.6], atol=0.012)  # 4 standard deviations
