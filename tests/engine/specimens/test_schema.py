"""Random numbers of specimens: the same one by one and side by side, another stream for each purpose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.specimens.schema import rng_for, uniforms_for


@given(st.integers(0, 2**40), st.integers(0, 999), st.lists(st.text(max_size=12), max_size=5), st.integers(1, 30))
def test_many_streams_at_once_are_the_numbers_of_each(seed: int, epoch: int, keys: list[str], count: int) -> None:
    together = uniforms_for(seed, epoch, keys, "views", count)
    assert together.shape == (len(keys), count) and together.dtype == np.float64
    for row, key in zip(together, keys, strict=True):
        assert np.array_equal(row, rng_for(seed, epoch, key, "views").random(count))


@pytest.mark.parametrize("other", [(1, 0, "views"), (0, 1, "views"), (0, 0, "caption")])
def test_seed_epoch_and_purpose_change_every_number(other: tuple[int, int, str]) -> None:
    keys = [f"K{i}" for i in range(50)]
    one, two = uniforms_for(0, 0, keys, "views", 4), uniforms_for(other[0], other[1], keys, other[2], 4)
    assert not np.isclose(one, two).any()
    assert one.min() >= 0 and one.max() < 1 and one.mean() == pytest.approx(0.5, abs=0.1)
