"""Splits: groups never cross, closed sets are closed, queries have keys; the same for any order of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.relations.containment import related_groups
from engine.relations.splits import SCHEMES, SplitOptions, draw_splits
from engine.specimens.schema import SPLITS

TRAINING = ("pretrain", "train")
Rows = tuple[list[str], list[str], np.ndarray]


def make_rows(seed: int, num_rows: int, num_species: int, missing: float) -> Rows:
    """Keys, barcodes (whole, trimmed, shared between species, none) and labels with holes."""
    rng = np.random.default_rng(seed)
    pool = ["".join(rng.choice(list("ACGT"), 260)) for _ in range(max(1, num_rows // 3))]
    barcodes = []
    for _ in range(num_rows):
        whole = pool[rng.integers(len(pool))]
        barcodes.append(["", whole, whole[:240], whole[20:]][rng.choice(4, p=[0.1, 0.5, 0.2, 0.2])])
    species = rng.integers(num_species, size=num_rows)
    labels = np.stack([species // 8, species // 4, species // 2, species], axis=1)
    labels[rng.random(labels.shape) < missing] = -1
    return [f"k{i}" for i in range(num_rows)], barcodes, labels


rows_of_any_kind = st.builds(
    make_rows, st.integers(0, 2**32 - 1), st.integers(0, 80), st.integers(1, 40), st.sampled_from([0.0, 0.3])
)
NONE = -1


def names(codes: np.ndarray) -> list[str]:
    return [SPLITS[code] for code in codes.tolist()]


@settings(deadline=None, max_examples=40)
@given(rows_of_any_kind, st.sampled_from(SCHEMES), st.integers(0, 99))
def test_groups_do_not_cross_and_taxa_are_where_they_must_be(rows: Rows, scheme: str, seed: int) -> None:
    keys, barcodes, labels = rows
    result = draw_splits(keys, barcodes, labels, np.full(len(keys), NONE), SplitOptions(scheme=scheme, seed=seed))
    split = names(result.codes)
    if scheme != "by-specimen":
        for group in np.unique(result.groups):
            assert len({split[row] for row in np.flatnonzero(result.groups == group)}) == 1
        assert result.related in (None, 0.0) and result.identical in (None, 0.0)
    if scheme == "seen-unseen":
        check_seen_unseen(split, labels[:, 3], result.groups)
        return
    for rank in range(4):
        known = set(labels[[name == "train" for name in split], rank].tolist())
        assert set(labels[:, rank].tolist()) - {-1} <= known


def check_seen_unseen(split: list[str], species: np.ndarray, groups: np.ndarray) -> None:
    """What holds of CLIBD's recipe in groups."""
    where: dict[int, set[str]] = {}
    for name, one in zip(split, species.tolist(), strict=True):
        where.setdefault(one, set()).add(name)
    assert where.pop(-1, set()) <= set(SPLITS)
    for one, found in where.items():
        unseen = found & {"key_unseen", "val_unseen", "test_unseen"}
        assert not unseen or not found & {"train", "val", "test"}, "a species is seen or unseen"
        assert not found & {"val", "test"} or "train" in found
        assert not found & {"val_unseen", "test_unseen"} or "key_unseen" in found
        assert not {"val_unseen", "test_unseen"} <= found
        assert "other_heldout" not in found or found == {"other_heldout"}
        if "train" in found and len(groups):
            cluster = np.isin(groups, groups[species == one])
            assert cluster.any()
    named = np.isin(groups, groups[species >= 0])
    for row in np.flatnonzero(~named):
        assert split[row] == "pretrain"


@settings(deadline=None, max_examples=40)
@given(rows_of_any_kind, st.sampled_from(SCHEMES), st.integers(0, 99), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(rows: Rows, scheme: str, seed: int, random: "np.random.Generator") -> None:
    keys, barcodes, labels = rows
    order = list(range(len(keys)))
    random.shuffle(order)
    options = SplitOptions(scheme=scheme, seed=seed)
    one = draw_splits(keys, barcodes, labels, np.full(len(keys), NONE), options).codes
    other = draw_splits(
        [keys[i] for i in order], [barcodes[i] for i in order], labels[order], np.full(len(keys), NONE), options
    ).codes
    assert one[order].tolist() == other.tolist()


@settings(deadline=None, max_examples=40)
@given(rows_of_any_kind, st.sampled_from(SCHEMES), st.integers(0, 2**32 - 1))
def test_given_splits_stay_and_their_groups_follow(rows: Rows, scheme: str, seed: int) -> None:
    keys, barcodes, labels = rows
    rng = np.random.default_rng(seed)
    came = np.where(rng.random(len(keys)) < 0.3, rng.integers(len(SPLITS), size=len(keys)), NONE)
    result = draw_splits(keys, barcodes, labels, came, SplitOptions(scheme=scheme))
    assert (result.codes[came >= 0] == came[came >= 0]).all() and (result.codes >= 0).all()
    crossing = 0
    for group in np.unique(result.groups):
        members = result.groups == group
        splits = set(came[members & (came >= 0)].tolist())
        crossing += len(splits) > 1
        if splits and scheme != "by-specimen":
            assert set(result.codes[members & (came < 0)].tolist()) <= {min(splits)}
    assert result.crossing_given == crossing


def many(num_species: int = 60, per_species: int = 30) -> Rows:
    rng = np.random.default_rng(1)
    barcodes = ["".join(rng.choice(list("ACGT"), 60)) for _ in range(num_species * per_species)]
    species = np.repeat(np.arange(num_species), per_species)
    return (
        [f"k{i}" for i in range(len(species))],
        barcodes,
        np.stack([species // 20, species // 10, species // 5, species], 1),
    )


def test_shares_are_those_asked_for() -> None:
    keys, barcodes, labels = many()
    none = np.full(len(keys), NONE)
    closed = draw_splits(keys, barcodes, labels, none, SplitOptions(fractions=(0.7, 0.1, 0.2), seed=3)).codes
    for name, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert abs((closed == SPLITS.index(name)).mean() - share) < 0.03
    parted = draw_splits(keys, barcodes, labels, none, SplitOptions(scheme="seen-unseen", seed=3)).codes
    unseen = {
        one
        for one, code in zip(labels[:, 3].tolist(), parted.tolist(), strict=True)
        if SPLITS[code] not in ("train", "val", "test")
    }
    assert 3 <= len(unseen) <= 22  # of 60, 20% = 12 expected
    held = np.isin(labels[:, 3], list(unseen))
    assert abs((parted[held] == SPLITS.index("key_unseen")).mean() - 0.5) < 0.1
    other = draw_splits(keys, barcodes, labels, none, SplitOptions(seed=4)).codes
    assert (other != closed).any()


def test_by_specimen_leaks_and_says_so() -> None:
    keys, barcodes, labels = many(20, 10)
    keys, barcodes, labels = keys + [f"{key}b" for key in keys], barcodes * 2, np.concatenate([labels, labels])
    none = np.full(len(keys), NONE)
    leaking = draw_splits(keys, barcodes, labels, none, SplitOptions(scheme="by-specimen"))
    assert leaking.identical is not None and 0.6 < leaking.identical < 0.95  # its twin is in train with probability 0.8
    assert leaking.related == leaking.identical
    tidy = draw_splits(keys, barcodes, labels, none, SplitOptions())
    assert tidy.identical == 0.0 and tidy.related == 0.0
    assert len(np.unique(related_groups(barcodes))) == 200


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"fractions": (0.5, 0.1, 0.1)}, "split fractions: got 0.5,0.1,0.1, allowed: three"),
        ({"fractions": (1.5, -0.5, 0.0)}, "split fractions: got 1.5,-0.5,0.0"),
        ({"fractions": (0.0, 0.5, 0.5)}, "got no train"),
        ({"scheme": "random"}, "split scheme: got 'random', allowed: closed-set, by-specimen"),
        ({"grouping": "none"}, "split grouping: got 'none', allowed: overlap"),
    ],
)
def test_wrong_options(wrong: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SplitOptions(**wrong)
