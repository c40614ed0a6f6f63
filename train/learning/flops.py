"""How much of the machine a training step uses: counted operations against a measured rate.

Counted are matrix products, convolutions and attention of one step, forward and backward, recomputed ones included.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")

SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices that are multiplied: tens of milliseconds at most
REPEATS = 5


def counted(call: Callable[[], T]) -> tuple[T, float]:
    """Return what `call` returns, and its floating-point operations (a product and a sum are two)."""
    with FlopCounterMode(display=False) as counter:
        result = call()
    return result, float(counter.get_total_flops())


def matmul_rate(device: torch.device, precision: str) -> float:
    """Return operations a second of the best of a few large matrix products in `precision` (fp32, bf16)."""
    side = SIDE.get(device.type, SIDE["cpu"])
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(REPEATS):
        _wait(device)
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2.0 * side**3 / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
