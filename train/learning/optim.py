"""AdamW with decay on weight matrices only, under a one-cycle schedule."""

import torch
from torch import nn

from train.config import OptimConfig

EMBEDDINGS = ("position", "class_embedding")  # in the names of embeddings that are bare parameters


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return trainable parameters in two groups: what multiplies activations decays.

    Biases, norms, scalars (below 2 dimensions) and embeddings (of tokens, positions, classes) do not.
    """
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            still = parameter.ndim < 2 or id(parameter) in tables or any(part in name for part in EMBEDDINGS)
            groups[still].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def build_optimizer(
    model: nn.Module, config: OptimConfig, total_steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
    """Return optimizer and schedule for `total_steps` optimizer steps.

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
