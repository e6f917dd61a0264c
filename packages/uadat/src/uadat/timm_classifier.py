"""Any image classifier of timm, on images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from aisec_common.torch.timm_efficientnet_lite0 import efficientnet_lite0
from torch import Tensor, nn


class Normalise:
    """A forward pre-hook, (x - mean) / std, so that the layers keep the names timm gives them."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = arguments
        return ((images - self.mean.to(images)) / self.std.to(images), *rest)


def timm_classifier(name: str, classes: int, *, channels: int = 3) -> nn.Module:
    """A model of timm with random weights; what it expects as mean and spread of the pixels is applied inside.

    Args:
        name: as `timm.list_models()` tells it.
        classes: number of classes K.
        channels: of an image.

    Raises:
        ValueError: if timm has no such model.

    >>> timm_classifier("resnet10t", 10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:3]) or "see timm.list_models()"
        raise ValueError(f"name: timm has no model {name!r}; near: {near}")
    return _normalised(timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels), channels)


def pretrained_lite0(classes: int) -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights for other classes: the same layers, but a new last one.

    Args:
        classes: number of classes K.

    Raises:
        FileNotFoundError: before `aisec data fetch efficientnet-lite0`.
    """
    model: Any = efficientnet_lite0()
    model.reset_classifier(classes)
    return _normalised(model, 3)


def layer_of_stride(model: nn.Module, stride: int) -> str | None:
    """The last layer, of those at which timm says how large a model's features are, that divides the side by `stride`.

    None where there is no such layer, as in a transformer of patches, or channels do not come first.

    >>> layer_of_stride(timm_classifier("resnet10t", 10), 8)
    'layer2'
    """
    if getattr(model, "output_fmt", "NCHW") != "NCHW":
        return None
    stages: Any = getattr(model, "feature_info", ())
    return next((str(stage["module"]) for stage in reversed(stages) if stage["reduction"] == stride), None)


def _normalised(model: nn.Module, channels: int) -> nn.Module:
    config: Any = getattr(model, "pretrained_cfg", {})
    mean, std = ((tuple(config.get(key, (0.5,) * 3)) * channels)[:channels] for key in ("mean", "std"))
    model.register_forward_pre_hook(Normalise(mean, std))
    return model
