"""Runs a function on several gloo ranks of one machine, for tests of distributed code."""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

TIMEOUT_S = 240


def _child(function: Callable[..., Any], rank: int, world_size: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        store = distributed.FileStore(str(folder / "store"), world_size)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        result = {"value": function(*arguments)}
        distributed.destroy_process_group()
    except BaseException:
        result = {"error": traceback.format_exc()}
    torch.save(result, folder / f"{rank}.pt")


def run_ranks(function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any) -> list[Any]:
    """`function(*arguments)` on every rank of a gloo group -> the results (tensors and plain types) in rank order.

    `function` must be importable (a module's top level); `folder` must exist and be empty. A failure on any rank is an
    AssertionError with that rank's traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "train.losses"])  # once, not for every rank
    children = [
        context.Process(target=_child, args=(function, rank, world_size, folder, arguments))
        for rank in range(world_size)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(TIMEOUT_S)
        if child.is_alive():
            child.kill()
    results = []
    for rank in range(world_size):
        path = folder / f"{rank}.pt"
        assert path.exists(), f"rank {rank} of {world_size} ended without a result (hung or killed)"
        results.append(torch.load(path, weights_only=False))
    errors = [f"rank {rank}: {result['error']}" for rank, result in enumerate(results) if "error" in result]
    assert not errors, "\n".join(errors)
    return [result["value"] for result in results]
