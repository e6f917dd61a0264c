"""WRN-34-10, the wide residual network on which CIFAR robustness is reported; timm and torchvision have none of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PreActivation(nn.Module):
    """y = shortcut(x) + W2 * relu(BN(W1 * relu(BN(x)))), the block with activations before convolutions."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.relu = nn.ReLU()  # a module, so that a loss with second derivatives sees that there are kinks
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        same = before == after and stride == 1
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, before, H, W) -> (B, after, H / stride, W / stride)."""
        active = self.relu(self.norm1(features))
        skipped = features if self.shortcut is None else self.shortcut(active)
        inner: Tensor = self.conv2(self.relu(self.norm2(self.conv1(active))))
        return skipped + inner


class WideResNet(nn.Module):
    """A wide residual network (Zagoruyko & Komodakis, 2016) with stages `layer1`, `layer2`, `layer3`.

    Args:
        classes: number of classes K.
        depth: 6 n + 4 for n blocks a stage.
        width: factor k: the stages have 16 k, 32 k and 64 k channels.
        channels: of an image.
        mean, std: of the pixels of each channel, normalised away inside the model.

    Raises:
        ValueError: if the depth is none of 10, 16, 22, ...

    >>> WideResNet(10, depth=10, width=1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: int,
        *,
        depth: int = 34,
        width: int = 10,
        channels: int = 3,
        mean: tuple[float, ...] = (0.5,),
        std: tuple[float, ...] = (0.25,),
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6 n + 4, such as 10, 28 or 34, not {depth}")
        sizes = (16, 16 * width, 32 * width, 64 * width)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                *(
                    PreActivation(before if number == 0 else after, after, stride if number == 0 else 1)
                    for number in range(blocks)
                )
            )
            for before, after, stride in zip(sizes, sizes[1:], (1, 2, 2), strict=False)
        )
        self.norm = nn.BatchNorm2d(sizes[-1])
        self.relu = nn.ReLU()
        self.head = nn.Linear(sizes[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        features = self.stem((images - self.mean) / self.std)
        features = self.relu(self.norm(self.layer3(self.layer2(self.layer1(features)))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits
