"""torchvision's ResNet-18 for small images: a 3 x 3 stem without pooling, normalisation inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet


class SmallImageResNet18(ResNet):  # type: ignore[misc]  # torchvision has no types
    """ResNet-18 as it is trained on 32 x 32 images; the stages keep torchvision's names, `layer1` .. `layer4`.

    Args:
        classes: number of classes K.
        channels: of an image.
        mean, std: of the pixels of each channel.

    >>> SmallImageResNet18(10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, classes: int, *, channels: int = 3, mean: tuple[float, ...] = (0.5,), std: tuple[float, ...] = (0.25,)
    ) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=classes)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.maxpool = nn.Identity()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        logits: Tensor = super().forward((x - self.mean) / self.std)
        return logits
