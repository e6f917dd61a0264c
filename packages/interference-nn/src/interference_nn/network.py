"""The small convolutional backbone of the embedded default."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

WIDTH = 24


def conv_backbone(channels: int = 1, width: int = WIDTH) -> nn.Sequential:
    """Five layers of convolution, BatchNorm and ReLU, without a head; features keep 2 x 2 places.

    The second and the fourth layer halve the sides. [design; the paper takes a ResNet-152]

    Args:
        channels: of the images.
        width: w, channels of every layer.

    Returns:
        A module from images [B, channels, H, W] to features [B, 4w].

    >>> import torch
    >>> conv_backbone()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 96])
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, 6):
        layers[f"layer{i}"] = nn.Sequential(
            nn.Conv2d(channels if i == 1 else width, width, 3, stride=2 if i in (2, 4) else 1, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
    layers["pool"] = nn.AdaptiveAvgPool2d(2)
    layers["flat"] = nn.Flatten()
    return nn.Sequential(layers)


class Classifier(nn.Module):
    """A backbone with one linear head: the undefended network, logits = W phi(x) + c.

    Args:
        backbone: from images to features [B, d].
        features: d.
        classes: K.

    >>> import torch
    >>> Classifier(conv_backbone(), 96, 10)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, backbone: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images."""
        logits: Tensor = self.head(self.backbone(images))
        return logits
