"""Counted operations and the measured rate."""

import pytest
import torch

from train.learning import flops, loop
from train.learning.loop import Meter


def test_a_product_and_its_gradients_are_counted() -> None:
    weight, rows = torch.ones(7, 5, requires_grad=True), torch.ones(3, 5, requires_grad=True)
    result, count = flops.counted(lambda: torch.nn.functional.linear(rows, weight).sum().backward())
    assert result is None and weight.grad is not None
    assert count == 3 * 2 * 3 * 5 * 7  # forward, and one product for each of the two gradients


def test_the_share_of_the_peak() -> None:
    meter = Meter()
    for _ in range(2):
        meter.add({"loss/total": torch.tensor(1.0)}, rows=10, wait=0.5, busy=1.5, flops=8e9)
    summary = meter.summary(peak=2e10)
    assert summary["perf/mfu"] == pytest.approx(0.2)  # 4e9 operations a second of 2e10
    assert summary["perf/samples_per_s"] == pytest.approx(5.0)
    assert (summary["data/wait_s"], summary["perf/step_s"]) == (0.5, 1.5)


def test_the_rate_is_one_of_a_computer() -> None:
    assert 1e8 < flops.matmul_rate(torch.device("cpu"), "fp32") < 1e14


def test_a_gpu_copies_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none here: what would be asked of it."""
    calls: list[tuple[str, object]] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (calls.append(("pin", self.dtype)), self)[1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: calls.append((device.type, non_blocking))
    )
    batch = {"image": torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "keys": ["a", "b"]}
    moved = loop.to_device(batch, torch.device("cuda"))
    assert calls == [("pin", torch.uint8), ("cuda", True)] and moved["keys"] == ["a", "b"]
    calls.clear()
    loop.to_device(batch, torch.device("cpu"))
    assert calls == [("cpu", True)]
