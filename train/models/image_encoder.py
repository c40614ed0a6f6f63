"""Photos to features: the image tower of an open_clip model, fed with uint8.

Shapes: B images, S side in pixels, D embedding.
"""

import torch
from torch import Tensor, nn

from train.models.open_clip_source import Source


def side(source: Source) -> int:
    """Return the side of the square image the model takes, pixels. Raises ValueError when it is not a square."""
    size = source.model_cfg["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"model.image_text: {source.name} takes {height} x {width} images; allowed: square ones")
    return height


def check_image_size(source: Source, image_size: int) -> None:
    """Raise ValueError naming both numbers when `data.image_size` is not what the model takes.

    Our own convolutional configurations take any multiple of 16 from 32 on.
    """
    if source.own:
        if image_size < 32 or image_size % 16:
            raise ValueError(f"data.image_size: {source.name} takes multiples of 16 from 32 on, got {image_size}")
    elif side(source) != image_size:
        raise ValueError(
            f"data.image_size is {image_size}, but {source.name} takes {side(source)}: "
            f"set data.image_size={side(source)}"
        )


class ImageEncoder(nn.Module):
    """uint8 [B, S, S, 3] (RGB) -> [B, D], not normalised. `frozen`: no gradient and no dropout."""

    mean: Tensor
    std: Tensor

    def __init__(self, tower: nn.Module, source: Source) -> None:
        super().__init__()
        self.tower = tower
        self.frozen = False
        self.register_buffer("mean", torch.tensor(source.mean).view(1, 3, 1, 1) * 255.0)
        self.register_buffer("std", torch.tensor(source.std).view(1, 3, 1, 1) * 255.0)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Set the mode as `nn.Module.train` does; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, image: Tensor) -> Tensor:
        """Encode uint8 RGB [B, S, S, 3]: [B, D], not normalised."""
        pixels = image.permute(0, 3, 1, 2)  # a view: the memory stays channels-last, which the convolutions want
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.tower((pixels.to(self.mean.dtype) - self.mean) / self.std)
        return features[0] if isinstance(features, tuple) else features  # towers with output_tokens give both
