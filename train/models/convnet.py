"""A small convolutional image trunk that trains from scratch on a CPU.

Registered with timm as `taxafuse_convnet`, so that an open_clip config names it like any other timm tower. Residual
blocks of plain 3 x 3 convolutions with GroupNorm in channels-last memory: the fastest of the forms compared in
`tests/benchmarks/results/training_step.md`, and among the widths tried the better learner per CPU second.

Shapes: B images, S side, C channels of a stage.
"""

from typing import ClassVar

import torch.nn.functional as F
from timm.models import register_model
from torch import Tensor, channels_last, nn

from train.models.towers import run_block

GROUP_WIDTH = 16  # channels per normalisation group


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // GROUP_WIDTH), channels)


class ResidualBlock(nn.Module):
    """Pre-activation block: [B, C_in, S, S] -> [B, C_out, S / stride, S / stride]."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.norm1, self.norm2 = _norm(width_in), _norm(width_out)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        changes = stride > 1 or width_in != width_out
        self.shortcut = nn.Conv2d(width_in, width_out, 1, bias=False) if changes else nn.Identity()
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C_in, S, S] to [B, C_out, S / stride, S / stride]."""
        hidden = F.relu(self.norm1(x))
        branch = self.conv2(F.relu(self.norm2(self.conv1(hidden))))
        if isinstance(self.shortcut, nn.Identity):
            return x + branch
        return self.shortcut(F.avg_pool2d(hidden, self.stride) if self.stride > 1 else hidden) + branch


class ConvNet(nn.Module):
    """[B, 3, S, S] -> [B, widths[-1]], the mean over the last map; S is a multiple of `reduction`."""

    default_cfg: ClassVar[dict[str, object]] = {"pool_size": (4, 4)}  # read by open_clip's timm tower

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), depths: tuple[int, ...] = (1, 1, 1)) -> None:
        super().__init__()
        self.num_features = widths[-1]
        self.grad_checkpointing = False
        self.reduction = 2 ** (len(widths) + 1)
        self.stem = nn.Conv2d(3, widths[0], 3, 2, 1)
        blocks, width = [], widths[0]
        for wide, depth in zip(widths, depths, strict=True):
            for index in range(depth):
                blocks.append(ResidualBlock(width, wide, stride=2 if index == 0 else 1))
                width = wide
        self.blocks = nn.Sequential(*blocks)
        self.norm = _norm(width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=channels_last)

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Accept what timm asks for: no classifier and the mean pool. Raises ValueError for anything else."""
        if num_classes or global_pool != "avg":
            raise ValueError(
                f"taxafuse_convnet: pool {global_pool!r} with {num_classes} classes; allowed: 'avg' with 0"
            )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks' activations again in the backward pass instead of keeping them, or stop doing so."""
        self.grad_checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        """Encode normalised pixels [B, 3, S, S]: [B, widths[-1]]."""
        x = self.stem(x.contiguous(memory_format=channels_last))
        for block in self.blocks:
            x = run_block(block, self.grad_checkpointing, x)
        return F.relu(self.norm(x)).mean((2, 3))


@register_model
def taxafuse_convnet(pretrained: bool = False, **_: object) -> ConvNet:
    """Build the trunk for timm. Raises ValueError for `pretrained`: there are no published weights."""
    if pretrained:
        raise ValueError("taxafuse_convnet has no pretrained weights; leave timm_model_pretrained false")
    return ConvNet()
