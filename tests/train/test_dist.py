"""Collectives on two gloo ranks: gather with gradient, sums, and the guard against diverging replicas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.train.ranks import run_ranks
from train import dist

pytestmark = pytest.mark.middle


class TwoDoors(nn.Module):
    """A model that can be entered through forward, which DDP sees, or past it."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.untouched = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def encode(self, rows: Tensor) -> Tensor:
        return self.tower(rows) + 0.0 * self.untouched

    def forward(self, rows: Tensor) -> Tensor:
        return self.encode(rows)


def _train(enter: Callable[[nn.parallel.DistributedDataParallel], Callable[[Tensor], Tensor]]) -> str:
    """Two steps on rows that differ between ranks -> what the guard says."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(TwoDoors())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(dist.rank()))
    for _ in range(2):
        optimizer.zero_grad()
        enter(model)(rows).square().sum().backward()
        optimizer.step()
    return _guard(model)


def _guard(model: nn.Module) -> str:
    try:
        dist.check_replicas(model)
    except RuntimeError as error:
        return str(error)
    return "same"


def _everything() -> dict[str, Any]:
    rank = dist.rank()
    rows = (torch.arange(6.0, dtype=torch.float64).reshape(3, 2) + 10 * rank).requires_grad_()
    gathered = dist.gather(rows)
    factors = torch.arange(1.0, 7.0, dtype=torch.float64)[:, None] * (rank + 1)
    (gathered * factors).sum().backward()
    half = torch.full((1, 2), 0.5 + rank, dtype=torch.bfloat16, requires_grad=True)
    dist.gather(half).sum().backward()
    return {
        "sizes": (dist.rank(), dist.world_size()),
        "gathered": gathered.detach(),
        "gradient": rows.grad,
        "half": (dist.gather(half).detach(), half.grad),
        "bool": dist.gather(torch.tensor([rank == 0, True])),
        "int": dist.gather(torch.tensor([[rank - 1]])),
        "sum": dist.all_reduce_sum(torch.tensor([1.0, rank])),
        "metrics": dist.reduce_metrics({"b": torch.tensor(float(rank)), "a": 3} if rank else {"a": 1, "b": 0.5}),
        "forward": _train(lambda model: model),
        "bypassed": _train(lambda model: model.module.encode),
        "layout": _guard(nn.Linear(2, 2 + rank)),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(_everything, 2, tmp_path_factory.mktemp("ranks"))


def test_gather_stands_in_rank_order_and_sums_gradients(ranks: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(ranks):
        assert result["sizes"] == (rank, 2)
        expected = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
        assert torch.equal(result["gathered"], torch.cat([expected, expected + 10]))
        own = torch.arange(1.0, 7.0, dtype=torch.float64)[3 * rank : 3 * rank + 3, None]
        assert torch.equal(result["gradient"], (own * 3).expand(3, 2))  # factor 1 from rank 0, 2 from rank 1


def test_gather_of_other_types(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["bool"].tolist() == [True, True, False, True]
        assert result["int"].tolist() == [[-1], [0]]
        values, gradient = result["half"]
        assert values.dtype == torch.bfloat16 and values.tolist() == [[0.5, 0.5], [1.5, 1.5]]
        assert gradient.tolist() == [[2.0, 2.0]]


def test_reductions(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["sum"].tolist() == [2.0, 1.0]
        assert result["metrics"] == {"a": 2.0, "b": 0.75}


def test_guard_fires_when_forward_is_bypassed(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["forward"] == "same"
        assert "tower.weight, tower.bias" in result["bypassed"] and "untouched" not in result["bypassed"]
        assert "2 of 3 parameters" in result["bypassed"] and "ranks [1]" in result["bypassed"]
        assert "other parameters than rank 0" in result["layout"]


def test_nothing_happens_without_a_process_group() -> None:
    rows = torch.ones(2, 2, requires_grad=True)
    assert (dist.rank(), dist.world_size()) == (0, 1)
    assert dist.gather(rows) is rows
    assert dist.all_reduce_sum(torch.tensor(2.0)) == 2.0
    assert dist.reduce_metrics({"a": torch.tensor(2.0), "b": 3}) == {"a": 2.0, "b": 3.0}
    dist.check_replicas(nn.Linear(1, 1))
