"""Collectives of training: gathering features with gradient, global sums, and the guard against diverging replicas.

Every function is a no-op without an initialised process group, so that the same code runs on one process. Works on
gloo (CPU) and nccl (GPU). Legend: W world size, n rows on each rank.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as torch_dist

T = TypeVar("T")


def world_size() -> int:
    """Return the number of ranks; 1 without a process group."""
    return torch_dist.get_world_size() if _initialised() else 1


def rank() -> int:
    """Return this process' rank; 0 without a process group."""
    return torch_dist.get_rank() if _initialised() else 0


def _initialised() -> bool:
    return torch_dist.is_available() and torch_dist.is_initialized()


def _collective_device() -> torch.device:
    """Where tensors must lie for the default group: nccl moves only GPU memory."""
    backend = torch_dist.get_backend() if _initialised() else "gloo"
    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")


def _all_gather(tensor: Tensor) -> Tensor:
    # As bytes: gloo knows neither bool nor every float type, and bytes are exact.
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    out = torch.empty(world_size() * flat.numel(), dtype=torch.uint8, device=flat.device)
    torch_dist.all_gather_into_tensor(out, flat)
    return out.view(tensor.dtype).reshape(-1, *tensor.shape[1:])


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums every rank's gradient of this rank's rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        ctx.num_rows = len(tensor)  # type: ignore[attr-defined]
        return _all_gather(tensor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        """Sum the gradients of all ranks and return this rank's rows."""
        (grad,) = grads
        wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
        total = all_reduce_sum(grad.to(wide))
        start = rank() * ctx.num_rows  # type: ignore[attr-defined]
        return total[start : start + ctx.num_rows].to(grad.dtype)  # type: ignore[attr-defined]


def gather(tensor: Tensor) -> Tensor:
    """[n, ...] of each rank -> [W * n, ...] in rank order, on every rank; n must be equal on all ranks.

    Differentiable for floating point: the gradient of a rank's rows is the *sum* over ranks of what each of them
    derived for those rows, so with losses `local sum x W / global count` DDP's mean is the exact global gradient.
    The backward is a collective: every rank must reach it, i.e. let its loss depend on the result (times 0 if need be).
    """
    if world_size() == 1:
        return tensor
    if tensor.requires_grad:
        result: Tensor = _Gather.apply(tensor)
        return result
    return _all_gather(tensor)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Element-wise sum over ranks; a new tensor without gradient."""
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    if world_size() > 1:
        torch_dist.all_reduce(result)
    return result


def reduce_metrics(metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
    """Mean over ranks of every entry, in one collective. The keys must be the same on every rank.

    For the terms of `train.losses` this mean is the value over the global batch (see `losses.total_loss`).
    """
    if not metrics:
        return {}
    device = _collective_device()
    names = sorted(metrics)
    values = [torch.as_tensor(metrics[name]).detach().to(device, torch.float64) for name in names]
    means = all_reduce_sum(torch.stack(values)) / world_size()
    return dict(zip(names, means.tolist(), strict=True))


def gather_objects(value: T) -> list[T]:
    """Every rank's plain Python value, in rank order, on every rank."""
    found: list[Any] = [None] * world_size()
    if world_size() == 1:
        return [value]
    torch_dist.all_gather_object(found, value)
    return found


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return dict(inner.named_parameters())


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def check_replicas(model: nn.Module) -> None:
    """Compare the parameters of all ranks bit by bit (through hashes); collective, cheap enough for every epoch.

    Raises RuntimeError on every rank, naming the parameters that differ and the ranks that differ from rank 0. The
    usual cause: a forward that went round the DDP wrapper (`ddp.module.encode_image`), whose gradients nobody averages.
    """
    if world_size() == 1:
        return
    device, parameters = _collective_device(), _parameters(model)
    layout = ";".join(f"{name}{tuple(parameter.shape)}" for name, parameter in parameters.items())
    layouts = gather(torch.tensor([_digest(layout.encode())], device=device))
    if (layouts != layouts[0]).any():
        raise RuntimeError(f"replicas differ: ranks {_odd_ranks(layouts[:, None])} have other parameters than rank 0")
    hashes = gather(torch.tensor([[_digest(_bytes(p)) for p in parameters.values()]], device=device))  # [W, parameters]
    differs = (hashes != hashes[0]).any(dim=0).tolist()
    if any(differs):
        names = [name for name, odd in zip(parameters, differs, strict=True) if odd]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise RuntimeError(
            f"replicas differ in {len(names)} of {len(parameters)} parameters ({shown}): ranks {_odd_ranks(hashes)} "
            "against rank 0; was the model entered past DDP's forward?"
        )


def _odd_ranks(rows: Tensor) -> list[int]:
    return (rows != rows[0]).any(dim=1).nonzero().flatten().tolist()
