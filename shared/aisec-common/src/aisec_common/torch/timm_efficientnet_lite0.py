"""EfficientNet-Lite0 with ImageNet weights: the fetched checkpoint `efficientnet-lite0` in timm's own class."""

from __future__ import annotations

import timm
import torch
from aisec_common.data import checkpoint_path
from torch import nn

CHECKPOINT = "efficientnet-lite0"
FILE = "efficientnet-lite0-57934424.pth"


def efficientnet_lite0() -> nn.Module:
    """The pretrained classifier, from images (B, 3, H, W) to logits (B, 1000) over the classes of ImageNet.

    It was trained at 224 x 224 on images (x - mean) / std with the mean and std of its `pretrained_cfg`, which whoever
    calls it applies; other sizes work as well. The checkpoint's tensors have other names than timm's but their order.

    Returns:
        timm's `tf_efficientnet_lite0`, in training mode as timm makes it.

    Raises:
        FileNotFoundError: before `aisec data fetch efficientnet-lite0`.
        ValueError: if the tensors are not those of that class.

    Source: Tan and Le, EfficientNet, ICML 2019, and its authors' Lite variants.
    """
    state = torch.load(checkpoint_path(CHECKPOINT) / FILE, weights_only=True, map_location="cpu")
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = model.state_dict()
    if len(own) != len(state) or any(a.shape != b.shape for a, b in zip(own.values(), state.values(), strict=True)):
        raise ValueError(f"weights of {CHECKPOINT} do not have the layout of tf_efficientnet_lite0; fetch them anew")
    model.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return model
