"""Backbones of torchvision."""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models

from interference_nn.backbone import Backbone, split_head

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as all of torchvision's classifiers


def load(name: str, weights: str | None = None) -> Backbone:
    """A torchvision classifier without its last linear layer.

    Args:
        name: as in `torchvision.models.list_models()`.
        weights: such as `"IMAGENET1K_V2"` (torchvision downloads them); None for random ones.

    Returns:
        phi with the normalisation of the weights.

    Raises:
        ValueError: for an unknown name or unknown weights.
    """
    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join([each for each in known if each[:4] == name[:4]][:3]) or "see torchvision.models.list_models()"
        raise ValueError(f"backbone: torchvision has no classifier {name!r}; near: {near}")
    mean, std = MEAN, STD
    if weights is not None:
        named = {each.name: each for each in models.get_model_weights(name)}
        if weights not in named:
            raise ValueError(f"weights of {name} must be one of {', '.join(named)}, not {weights!r}")
        transform = named[weights].transforms()
        mean, std = tuple(transform.mean), tuple(transform.std)
    backbone = wrap(models.get_model(name, weights=weights))
    backbone.mean.copy_(torch.tensor(mean).reshape(1, 3, 1, 1))
    backbone.std.copy_(torch.tensor(std).reshape(1, 3, 1, 1))
    backbone.source = f"torchvision:{name}"
    return backbone


def wrap(model: nn.Module) -> Backbone:
    """A torchvision classifier object, its last linear layer taken off in place."""
    model, pretrained, dim = split_head(model)
    return Backbone(model, dim=dim, mean=MEAN, std=STD, pretrained=pretrained)
