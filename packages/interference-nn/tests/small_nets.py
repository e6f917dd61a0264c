"""Small networks and banks that several tests share."""

import torch
from torch import nn

from interference_nn import InterferenceNet, ProceduralBackgrounds
from interference_nn.network import conv_backbone

SIZE = 8
CLASSES = 5


def bank(n=16, **changes):
    return ProceduralBackgrounds(**{"n": n, "classes": 4, "size": SIZE, "channels": 1, **changes})


def net(backbone=None, seed=0, **changes):
    """On a conv backbone whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(seed)
    if backbone is None:
        backbone = conv_backbone(width=4)
        backbone.train()(torch.rand(32, 1, SIZE, SIZE))
    arguments = {"classes": CLASSES, "bank": bank(), **changes}
    made = InterferenceNet.from_backbone(backbone, **arguments).eval()
    with torch.no_grad():  # far enough from uniform predictions to see differences
        made.target_head.weight.mul_(10)
    return made


def images(n=6, seed=0, channels=1, size=SIZE):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def labels(n=6, classes=CLASSES):
    return torch.arange(n) % classes


class Pair(nn.Module):
    """A model that returns a tuple."""

    def forward(self, x):
        return x.flatten(1), x
