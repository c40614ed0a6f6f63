"""What tests of training share."""

from collections.abc import Iterator

import pytest
import torch

from tests.train.planted import encoded, parts, rankings, taxonomy, values  # noqa: F401 (fixtures)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread: sums come in one order, and small tensors go faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
