"""The plan: what every epoch must hold, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batches import sampling
from engine.batches.sampling import READ_TOGETHER, EpochPlan, partner_order


def random_labels(count: int, seed: int, num_species: int = 81) -> np.ndarray:
    """A nested taxonomy with missing tails: a third as many genera as species, and so on up."""
    rng = np.random.default_rng(seed)
    species = rng.integers(0, num_species, count)
    labels = np.stack([species // 27, species // 9, species // 3, species], axis=1)
    depth = rng.integers(0, 5, count)
    labels[np.arange(4) >= depth[:, None]] = -1
    return labels


def plan_of(count: int, seed: int = 0, batch: int = 32, **kwargs: object) -> EpochPlan:
    return EpochPlan(labels=random_labels(count, 7), seed=seed, global_batch_size=batch, **kwargs)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(32, 700), seed=st.integers(0, 5), window=st.integers(8, 300), partners=st.booleans())
def test_every_specimen_once_and_the_remainder_first(count: int, seed: int, window: int, partners: bool) -> None:
    plan = plan_of(count, seed, window=window, partners=partners)
    for epoch in range(3):
        order = plan.order(epoch)
        assert order.shape == (count // 32, 8, 4)
        visited = order.reshape(-1)
        assert len(np.unique(visited)) == len(visited)
        assert set(range(count)) - set(visited.tolist()) == set(plan.left_out(epoch).tolist())
        carried = plan.left_out(epoch - 1)
        first_steps = order[: -(-len(carried) // 32)].reshape(-1)
        assert set(carried.tolist()) <= set(first_steps.tolist())


def test_nothing_is_left_out_twice_in_a_row() -> None:
    plan = plan_of(100, batch=64, lanes=8)
    assert plan.num_left_out == 36
    for epoch in range(1, 6):
        assert not set(plan.left_out(epoch).tolist()) & set(plan.left_out(epoch - 1).tolist())


def test_order_is_a_pure_function() -> None:
    later, fresh = plan_of(333), plan_of(333)
    for epoch in (0, 1, 2):
        later.order(epoch)
    assert np.array_equal(later.order(5), fresh.order(5))
    assert not np.array_equal(fresh.order(5), fresh.order(6))
    assert not np.array_equal(fresh.order(5), plan_of(333, seed=1).order(5))


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_workers_share_one_global_order(workers: int) -> None:
    plan = plan_of(500)
    shares = [plan.worker_order(2, rank, workers) for rank in range(workers)]
    assert np.array_equal(np.concatenate(shares, axis=1), plan.order(2).reshape(plan.steps_per_epoch, -1))


def coverage(plan: EpochPlan) -> np.ndarray:
    """Share of labelled specimens with another of the same taxon in their global batch, per rank [R]."""
    found, anchors = np.zeros(4), np.zeros(4)
    for step in plan.order(0).reshape(plan.steps_per_epoch, -1):
        for rank in range(4):
            known = plan.labels[step, rank][plan.labels[step, rank] >= 0]
            found[rank] += (np.bincount(known)[known] > 1).sum()
            anchors[rank] += len(known)
    return found / anchors


def test_partners_stand_in_the_same_batch() -> None:
    """Of the specimens that have a relative in their window, 9 in 10 meet one in their batch at every rank."""
    labels = random_labels(4096, 7, num_species=1500)
    attainable = [(np.bincount(known)[known] > 1).mean() for known in (c[c >= 0] for c in labels.T)]
    plans = [EpochPlan(labels=labels, seed=0, global_batch_size=128, partners=p) for p in (True, False)]
    with_partners, shuffled = map(coverage, plans)
    assert (with_partners > 0.9 * np.array(attainable)).all(), (with_partners, attainable)
    assert with_partners[3] > 3 * shuffled[3], (with_partners, shuffled)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 400), window=st.integers(1, 500), seed=st.integers(0, 9), num_species=st.integers(1, 200))
def test_partner_order_permutes_inside_windows(count: int, window: int, seed: int, num_species: int) -> None:
    labels = random_labels(count, seed, num_species)
    order = partner_order(labels, window, np.random.default_rng(seed))
    assert sorted(order) == list(range(count))
    assert np.array_equal(order // window, np.arange(count) // window)


@pytest.mark.parametrize("num_species", [60, 400])
@pytest.mark.parametrize("rank", range(4))
def test_nobody_with_a_relative_in_the_window_stands_alone(rank: int, num_species: int) -> None:
    """The partner at a rank stands within the unit made there: of 3 at species, 9 at genus, 27, 81 at most."""
    labels = random_labels(900, 5, num_species)
    order = partner_order(labels, 300, np.random.default_rng(0))
    for window in np.split(order, 3):
        column = labels[window, rank]
        for label in np.unique(column[column >= 0]):
            places = np.flatnonzero(column == label)
            if len(places) > 1:
                gap = np.minimum(np.diff(places, prepend=-(10**6)), np.diff(places, append=10**6))
                assert gap.max() < 3 ** (4 - rank)


def test_species_partners_stand_side_by_side_and_change_with_the_draw() -> None:
    labels = np.repeat(np.arange(50), 4)[:, None] * np.ones(4, dtype=int)
    first, second = (partner_order(labels, 200, np.random.default_rng(seed)) for seed in (0, 1))
    assert np.array_equal(labels[first[0::2], 3], labels[first[1::2], 3])
    pairs = [{frozenset(pair) for pair in order.reshape(-1, 2).tolist()} for order in (first, second)]
    assert len(pairs[0] & pairs[1]) < 60  # of 100; a third of them by chance


DEGENERATE = {
    "no label": np.full((100, 4), -1),
    "one taxon": np.zeros((100, 4), dtype=int),
    "all different": np.repeat(np.arange(100)[:, None], 4, axis=1),
    "holes": np.where(np.arange(4) % 2, -1, random_labels(100, 3, 9)),
    "finest only": np.where(np.arange(4) < 3, -1, random_labels(100, 3, 9)),
    "int32": random_labels(100, 3).astype(np.int32),
}


@pytest.mark.parametrize("labels", DEGENERATE.values(), ids=DEGENERATE.keys())
@pytest.mark.parametrize(("batch", "lanes", "window"), [(96, 8, 16), (100, 4, 4096), (8, 8, 1), (1, 1, 7)])
def test_degenerate_labels_and_sizes(labels: np.ndarray, batch: int, lanes: int, window: int) -> None:
    plan = EpochPlan(labels=labels, seed=0, global_batch_size=batch, lanes=lanes, window=window)
    for epoch in range(2):
        order = plan.order(epoch)
        assert order.shape == (100 // batch, lanes, batch // lanes)
        assert set(order.reshape(-1).tolist()) | set(plan.left_out(epoch).tolist()) == set(range(100))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 9000), seed=st.integers(0, 3), window=st.integers(1, 5000))
def test_windows_are_read_in_whole_stored_runs(count: int, seed: int, window: int) -> None:
    """Every epoch reads each row once, in runs of stored rows, and visits the windows one after another."""
    plan = EpochPlan(labels=np.full((count, 4), -1), seed=seed, global_batch_size=1, lanes=1, window=window)
    assert plan.window_rows <= max(1.5 * window + 1, 2)
    for epoch in range(2):
        reading = plan.reading(epoch)
        assert sorted(reading) == list(range(count))
        breaks = (np.diff(reading) != 1).sum()
        assert breaks < -(-count // min(READ_TOGETHER, plan.window_rows))
        visited = plan.order(epoch).reshape(-1)
        for first in range(0, count, plan.window_rows):
            window_rows = slice(first, first + plan.window_rows)
            assert set(visited[window_rows].tolist()) == set(reading[window_rows].tolist())


def test_windows_mix_differently_in_every_epoch() -> None:
    plan = EpochPlan(labels=np.full((20_000, 4), -1), seed=0, global_batch_size=100, lanes=4, window=4096)
    first, second = (set(plan.reading(epoch)[:4096].tolist()) for epoch in range(2))
    assert len(first & second) < 4096


@settings(max_examples=25, deadline=None)
@given(count=st.integers(16, 900), batch=st.sampled_from([8, 16]), epochs=st.integers(2, 12))
def test_remainders_wander_through_all_specimens(count: int, batch: int, epochs: int) -> None:
    plan = EpochPlan(labels=random_labels(count, 1), seed=0, global_batch_size=batch)
    left = [set(plan.left_out(epoch).tolist()) for epoch in range(epochs)]
    assert all(len(part) == count % batch for part in left)
    if 2 * (count % batch) <= count:
        assert not any(left[epoch] & left[epoch + 1] for epoch in range(epochs - 1))


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many windows are ordered at once decides the draw, but never lets a row leave its window."""
    plan = plan_of(700, window=64)
    monkeypatch.setattr(sampling, "BLOCK_ROWS", 130)
    order = plan.order(0).reshape(-1)
    assert len(np.unique(order)) == len(order) == 672


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 30}, "got 30, allowed: a multiple of data.lanes=8"),
        ({"batch": 512}, "got 512, allowed: at most the 100 specimens"),
    ],
)
def test_impossible_batches_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(100, **changes)


def test_workers_must_divide_lanes() -> None:
    with pytest.raises(ValueError, match=r"got 3, allowed: .* one of \[1, 2, 4, 8\]"):
        plan_of(100).worker_order(0, 0, 3)
