"""AdamW with decay on matrices only, under a one-cycle schedule."""

import torch
from torch import nn

from train.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices decay; biases, norms and scalars (below 2 dimensions) do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module, config: OptimConfig, total_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
    """Optimizer and schedule for `total_steps` optimizer steps.

    The momentum stays fixed while the rate moves, as in the authors' release. `total_steps` is raised to 2, because a
    cycle of one step has no warm-up to divide by.
    """
    total_steps = max(2, total_steps)
    one_step = config.warmup * total_steps == 1  # torch would divide by the 0 steps between its first and its peak
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.max_lr, betas=config.betas, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.max_lr,
        total_steps=total_steps,
        pct_start=0.0 if one_step else config.warmup,
        div_factor=config.initial_divisor,
        final_div_factor=config.final_divisor,
        cycle_momentum=False,
    )
    return optimizer, schedule
