"""The plan: what every epoch must hold, whatever the sizes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling import Plan, partner_order


def random_labels(count: int, seed: int, num_species: int = 81) -> np.ndarray:
    """A nested taxonomy with missing tails: a third as many genera as species, and so on up."""
    rng = np.random.default_rng(seed)
    species = rng.integers(0, num_species, count)
    labels = np.stack([species // 27, species // 9, species // 3, species], axis=1)
    depth = rng.integers(0, 5, count)
    labels[np.arange(4) >= depth[:, None]] = -1
    return labels


def plan_of(count: int, seed: int = 0, batch: int = 32, **kwargs: object) -> Plan:
    return Plan(labels=random_labels(count, 7), seed=seed, global_batch_size=batch, **kwargs)  # type: ignore[arg-type]


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


def coverage(plan: Plan) -> np.ndarray:
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
    plans = [Plan(labels=labels, seed=0, global_batch_size=128, partners=p) for p in (True, False)]
    with_partners, shuffled = map(coverage, plans)
    assert (with_partners > 0.9 * np.array(attainable)).all(), (with_partners, attainable)
    assert with_partners[3] > 3 * shuffled[3], (with_partners, shuffled)


def test_partner_order_keeps_windows_together() -> None:
    labels, window_of = random_labels(300, 1), np.arange(300) // 100
    order = partner_order(labels, window_of, np.random.default_rng(0))
    assert sorted(order) == list(range(300))
    assert (np.diff(window_of[order]) != 0).sum() == 2


def test_unlabelled_specimens_are_ordered_too() -> None:
    labels = np.full((64, 4), -1)
    assert sorted(partner_order(labels, np.zeros(64, int), np.random.default_rng(0))) == list(range(64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch": 30}, "multiple of data.lanes=8, got 30"), ({"batch": 512}, "100 specimens, fewer than one batch")],
)
def test_impossible_batches_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(100, **changes)


def test_workers_must_divide_lanes() -> None:
    with pytest.raises(ValueError, match=r"one of \[1, 2, 4, 8\], got 3"):
        plan_of(100).worker_order(0, 0, 3)
