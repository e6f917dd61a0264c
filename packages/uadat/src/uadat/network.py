"""The embedded default's classifier: five convolutions in three named stages, in the manner of a ResNet."""

from __future__ import annotations

import torch
from aisec_common.seeding import derived_seed
from torch import Tensor, nn


class Residual(nn.Module):
    """One convolution with batch norm and the shortcut around it, y = relu(x + BN(W * x)); (B, C, H, W) both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """y for x."""
        return torch.relu(features + self.norm(self.conv(features)))


class SmallResNet(nn.Module):
    """A classifier of five convolutions: `stage1` (16 channels), `stage2` and `stage3` (32, half the resolution).

    The end of `stage2` is where a distributional adversary perturbs the features, as the end of `layer2` is in a
    ResNet-18 (ours); `stage3` and the linear `head` still lie behind it.

    Args:
        classes: number of classes K.
        channels: of an image.

    >>> net = small_resnet(10, seed=0)
    >>> net(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int, channels: int = 1) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(*_convolution(channels, 16), Residual(16))
        self.stage2 = nn.Sequential(*_convolution(16, 32, stride=2), Residual(32))
        self.stage3 = Residual(32)
        self.head = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]."""
        features = self.stage3(self.stage2(self.stage1(images - 0.5)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def _convolution(before: int, after: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(after), nn.ReLU()


def small_resnet(classes: int, channels: int = 1, *, seed: int) -> SmallResNet:
    """A `SmallResNet` whose weights are drawn from a seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "initial weights"))
        return SmallResNet(classes, channels)
