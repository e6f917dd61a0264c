"""Backbones of timm, and the fetched checkpoint `efficientnet-lite0`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from aisec_common.torch.timm_efficientnet_lite0 import efficientnet_lite0
from safetensors.torch import load_file
from torch import nn

from interference_nn.backbone import LITE, Backbone, split_head


def load(name: str, weights: str | None = None) -> Backbone:
    """A timm model without its classifier.

    Args:
        name: as in `timm.list_models()`, or `"efficientnet-lite0"`: that checkpoint, fetched by
            `aisec data fetch efficientnet-lite0`.
        weights: None for random ones, `"pretrained"` (timm downloads them), or a safetensors file.

    Returns:
        phi with the normalisation of the model's own configuration.

    Raises:
        ValueError: for an unknown name, or weights that do not fit.
        FileNotFoundError: for a checkpoint that has not been fetched.
    """
    if name == LITE:
        if weights is not None:
            raise ValueError(f"weights of {LITE} come with the checkpoint; leave them out")
        return wrap(efficientnet_lite0())
    if name not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:3]) or "see timm.list_models()"
        raise ValueError(f"backbone: timm has no model {name!r}; near: {near}")
    model = timm.create_model(name, pretrained=weights == "pretrained")
    if weights not in (None, "pretrained"):
        if not Path(weights).is_file():
            raise ValueError(f"weights must be 'pretrained' or a safetensors file, not {weights!r}")
        try:
            model.load_state_dict(load_file(weights))
        except RuntimeError:
            raise ValueError(f"weights {weights} do not fit {name}; give those of that architecture") from None
    return wrap(model)


def wrap(model: nn.Module) -> Backbone:
    """A timm classifier object, its classifier taken off in place."""
    about: Any = model.pretrained_cfg
    model, pretrained, dim = split_head(model)
    return Backbone(
        model,
        dim=dim,
        channels=about["input_size"][0],
        mean=about["mean"],
        std=about["std"],
        pretrained=pretrained,
        source=f"timm:{about['architecture']}",
    )
