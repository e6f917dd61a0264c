"""The backbone phi: images in [0, 1] to features, with resizing and normalisation inside."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from aisec_common.torch.linf_pgd import evaluating
from torch import Tensor, nn
from torch.nn.functional import interpolate

LITE = "efficientnet-lite0"
_FRAMEWORKS = {"timm": "timm_backbone", "torchvision": "torchvision_backbone", "transformers": "hf_backbone"}
_PREFIXES = {"timm": "timm_backbone", "torchvision": "torchvision_backbone", "hf": "hf_backbone"}


class Backbone(nn.Module):
    """phi(resize(z) normalised): a feature extractor whose normalisation an attacker cannot leave out.

    Args:
        features: from normalised images [B, C, H, W] to features [B, d].
        dim: d.
        channels: C.
        mean, std: of the normalisation, one for all channels or one for each.
        size: side to which inputs of another size are resized (bilinear); None takes them as they come.
        pretrained: weight [K, d] and bias [K] of the classifier it was trained with.
        source: what `backbone_of` can build the architecture from again; None for a module of the user's own.

    Attributes:
        weights: those that `backbone_of` was asked for beside a name.

    Raises:
        ValueError: if mean and std fit neither one nor C channels, or std is not positive.

    >>> Backbone(nn.Flatten(), dim=12, channels=3, mean=0.5, std=0.5)(torch.full((1, 3, 2, 2), 0.5)).abs().sum().item()
    0.0
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: nn.Module,
        *,
        dim: int,
        channels: int = 3,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        size: int | None = None,
        pretrained: tuple[Tensor, Tensor] | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.dim, self.channels, self.size, self.source = dim, channels, size, source
        self.pretrained = pretrained
        self.weights: str | None = None
        for name, given in (("mean", mean), ("std", std)):
            values = torch.as_tensor(given, dtype=torch.float32).reshape(-1)
            if len(values) not in (1, channels):
                raise ValueError(f"{name} must be one number or one for each of {channels} channels, not {len(values)}")
            self.register_buffer(name, values.expand(channels).reshape(1, channels, 1, 1).clone())
        if not (self.std > 0).all():
            raise ValueError("std must be positive in every channel")

    def forward(self, images: Tensor) -> Tensor:
        """phi of inputs in [0, 1].

        Raises:
            TypeError: if the module returns anything but a tensor.
            ValueError: if that is not [B, d].
        """
        if self.size and images.shape[-2:] != (self.size, self.size):
            images = interpolate(images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        found = self.features((images - self.mean.to(images)) / self.std.to(images))
        if not isinstance(found, Tensor):
            kind = type(found).__name__
            raise TypeError(f"backbone must return a tensor of features [B, d], not {kind}; wrap it to return one")
        if found.ndim != 2 or found.shape[1] != self.dim:
            raise ValueError(
                f"backbone must return features [B, {self.dim}], not {list(found.shape)}; pool and flatten them"
            )
        return found

    def widen(self) -> None:
        """Doubles the input channels in place: the first convolution gets zero weights for the new ones.

        Raises:
            ValueError: if there is no convolution over all channels to widen.
        """
        first = next((module for module in self.modules() if isinstance(module, nn.Conv2d)), None)
        if first is None or first.groups != 1 or first.in_channels != self.channels:
            raise ValueError("interference 'channel' needs a backbone that begins with a convolution; use 'superpose'")
        first.weight = nn.Parameter(torch.cat([first.weight.detach(), torch.zeros_like(first.weight)], dim=1))
        first.in_channels *= 2
        self.channels *= 2
        self.mean, self.std = self.mean.repeat(1, 2, 1, 1), self.std.repeat(1, 2, 1, 1)


def backbone_of(
    given: str | nn.Module,
    *,
    weights: str | None = None,
    channels: int = 3,
    image_size: tuple[int, int] = (224, 224),
    size: int | None = None,
) -> Backbone:
    """The backbone that a name or a module stands for, always a copy of its own.

    Args:
        given: a name (`"resnet152"` of torchvision, `"timm:NAME"`, `"hf:FOLDER"` or `"hf:ORG/NAME"`,
            `"efficientnet-lite0"` for the fetched checkpoint), a classifier object of torchvision, timm or transformers
            (its last linear layer is taken off), a `Backbone`, or any module that returns features [B, d].
        weights: of a name: torchvision's (`"IMAGENET1K_V2"`); `"pretrained"` or a safetensors file for timm.
        channels: of the images, for a module of the user's own.
        image_size: H and W of the images, likewise.
        size: see `Backbone`; replaces the one it has.

    Returns:
        A new Backbone.

    Raises:
        ValueError: for a name that is not known, an extra that is not installed, or weights where none are taken.
        TypeError: if `given` is neither, or the module returns no tensor.
    """
    if isinstance(given, str):
        prefix, _, name = given.partition(":") if ":" in given else ("torchvision", "", given)
        if given == LITE:
            prefix, name = "timm", LITE
        if prefix not in _PREFIXES:
            raise ValueError(f"backbone {given!r}: the prefix must be one of {', '.join(_PREFIXES)}")
        backbone: Backbone = _adapter(_PREFIXES[prefix]).load(name, weights)
        backbone.weights = weights
    elif not isinstance(given, nn.Module):
        raise TypeError(f"backbone must be a name or a module, not {type(given).__name__}")
    elif weights is not None:
        raise ValueError("weights belong to a backbone given by name; load them into the module yourself")
    elif isinstance(given, Backbone):
        backbone = copy.deepcopy(given)
    else:
        library = type(given).__module__.partition(".")[0]
        if library in _FRAMEWORKS:
            backbone = _adapter(_FRAMEWORKS[library]).wrap(copy.deepcopy(given))
        else:
            backbone = _of_module(copy.deepcopy(given), channels, image_size)
    if size is not None:
        backbone.size = size
    return backbone


def split_head(model: nn.Module) -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """Takes the last linear layer off a classifier, in place.

    Returns:
        The model, now returning what that layer read; the layer's weight and bias; its input width d.

    Raises:
        ValueError: if there is no linear layer.

    >>> model, (weight, _), dim = split_head(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
    >>> model(torch.zeros(1, 3, 2, 2)).shape, weight.shape, dim
    (torch.Size([1, 12]), torch.Size([5, 12]), 12)
    """
    last = next(((name, m) for name, m in reversed(list(model.named_modules())) if isinstance(m, nn.Linear)), None)
    if last is None:
        raise ValueError(f"backbone {type(model).__name__} has no linear classifier to take off; give its features")
    name, head = last
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    bias = torch.zeros(head.out_features) if head.bias is None else head.bias.detach().clone()
    return model, (head.weight.detach().clone(), bias), head.in_features


def _of_module(features: nn.Module, channels: int, image_size: tuple[int, int]) -> Backbone:
    where = next(features.parameters(), torch.empty(0))
    with evaluating(features), torch.no_grad():
        found = features(torch.zeros(1, channels, *image_size, device=where.device, dtype=where.dtype))
    dim = found.shape[-1] if isinstance(found, Tensor) else 0  # forward says what is wrong with anything else
    backbone = Backbone(features, dim=dim, channels=channels).to(where.device)
    if not isinstance(found, Tensor) or found.ndim != 2:
        backbone(torch.zeros(1, channels, *image_size, device=where.device, dtype=where.dtype))
    return backbone


def _adapter(module: str) -> Any:
    try:
        return import_module(f"interference_nn.{module}")
    except ModuleNotFoundError as error:
        extra = module.removesuffix("_backbone")
        raise ValueError(
            f"backbone needs {error.name}; install it by `pip install aisec-interference-nn[{extra}]`"
        ) from None
