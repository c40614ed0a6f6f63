"""Fold batch normalisation with frozen statistics into the convolutions before it, exactly.

BatchNorm makes a photo depend on its batch while it trains, and even frozen it is a layer more to compute. With frozen
statistics it is a scale and a shift per channel, which the convolution before it can do. What cannot be folded so is
refused: swapping layers would silently spoil pretrained weights.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from engine.errors import UserError

TOLERANCE = 1e-9  # of the largest feature, in float64


def fold_batch_norm(trunk: nn.Module, side: int, name: str) -> int:
    """Fold every BatchNorm of an image trunk in place and return how many there were.

    Args:
        trunk: takes pixels [B, 3, side, side]; comes out in evaluation mode, float32.
        side: of the images that find out which layer follows which.
        name: of the trunk, for the message.

    Raises:
        UserError: a BatchNorm that does not directly follow a convolution of its own, or has no frozen statistics.
    """
    norms = {path: module for path, module in trunk.named_modules() if isinstance(module, _BatchNorm)}
    trunk.eval()
    if not norms:
        return 0
    trunk.double()
    pixels = torch.rand(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        feeds = _convolutions_before(trunk, pixels)
        before = trunk(pixels)
    unfit = [path for path, norm in norms.items() if path not in feeds or norm.running_mean is None]
    if unfit:
        raise UserError(
            "photo trunk",
            f"{name} with {len(unfit)} BatchNorm layers that cannot be folded into a convolution (first: {unfit[0]}), "
            f"which would make a photo depend on its batch",
            "trunks whose every BatchNorm has frozen statistics and directly follows a convolution of its own",
        )
    for path, norm in norms.items():
        _fold(trunk.get_submodule(feeds[path]), norm)
        rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]  # of timm's BatchNormAct2d
        trunk.set_submodule(path, nn.Sequential(*rest) if rest else nn.Identity())
    with torch.no_grad():
        after = trunk(pixels)
    if (after - before).abs().max() > TOLERANCE * before.abs().max():
        raise UserError("photo trunk", f"{name}, whose features folding changes", "another trunk")
    trunk.float()
    return len(norms)


def _convolutions_before(trunk: nn.Module, pixels: Tensor) -> dict[str, str]:
    """Return BatchNorm -> the convolution whose result is its input, where both ran once; found by one run."""
    made: dict[int, tuple[Tensor, str]] = {}  # results by identity, kept so that none is reused
    feeds: dict[str, str] = {}
    calls: dict[str, int] = {}
    handles = []
    for path, module in trunk.named_modules():
        if isinstance(module, nn.Conv2d):

            def note(_: nn.Module, inputs: object, result: Tensor, path: str = path) -> None:
                made[id(result)] = (result, path)
                calls[path] = calls.get(path, 0) + 1

            handles.append(module.register_forward_hook(note))
        elif isinstance(module, _BatchNorm):

            def look(_: nn.Module, inputs: tuple[Tensor, ...], path: str = path) -> None:
                calls[path] = calls.get(path, 0) + 1
                if id(inputs[0]) in made:
                    feeds[path] = made[id(inputs[0])][1]

            handles.append(module.register_forward_pre_hook(look))
    trunk(pixels)
    for handle in handles:
        handle.remove()
    shared = list(feeds.values())
    return {
        norm: conv for norm, conv in feeds.items() if calls[norm] == 1 and calls[conv] == 1 and shared.count(conv) == 1
    }


def _fold(conv: nn.Module, norm: _BatchNorm) -> None:
    assert isinstance(conv, nn.Conv2d) and norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
