"""Safe LoRA: after fine-tuning, adapters that left the aligned-minus-base subspace are projected back onto it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ProjectedAdapter:
    """One adapted layer: cos(C B A, B A), and whether it was projected for lying at or below the threshold."""

    layer: str
    cosine: float
    projected: bool


def alignment_projection(aligned: Tensor, base: Tensor) -> Tensor:
    """C = V Vᵀ / ‖V‖_F, V = W_aligned − W_base: the cheap stand-in of Safe LoRA for the projection onto V's columns.

    C is no projection in the strict sense: it also scales, by the squared singular values of V over its norm.

    Args:
        aligned: weights [out, in] of the aligned model.
        base: weights of the same layer before alignment.

    Returns:
        [out, out], float32.

    Raises:
        ValueError: for other shapes, or equal weights.

    >>> alignment_projection(torch.tensor([[3.0], [4.0]]), torch.zeros(2, 1))
    tensor([[1.8000, 2.4000],
            [2.4000, 3.2000]])

    Source: Hsu et al., Safe LoRA (arXiv 2405.16833), equation of the approximate alignment matrix.
    """
    if aligned.shape != base.shape or aligned.ndim != 2:
        raise ValueError(
            f"base must have the shape of aligned, [out, in], got {list(base.shape)} and {list(aligned.shape)}"
        )
    v = (aligned.detach() - base.detach().to(aligned.device)).float()
    length = float(v.norm())
    if not length or not math.isfinite(length):
        raise ValueError("base must differ from the aligned weights; give the model from before its alignment")
    return v @ v.T / length


def safe_lora(
    model: PeftModel, base: nn.Module, *, threshold: float = 0.5, adapter: str = "default"
) -> list[ProjectedAdapter]:
    """Replaces B by C B in every adapted layer where cos(C B A, B A) ≤ threshold, in place.

    Args:
        model: the aligned model with its fine-tuned LoRA adapter, not merged.
        base: the same architecture before alignment; every adapted layer is looked up in it by name.
        threshold: 1 projects every layer, −1 hardly any; the paper tunes it per model.
        adapter: which adapter of `model`.

    Returns:
        One entry per adapted layer, in the model's order.

    Raises:
        ValueError: for a threshold outside [−1, 1], an unknown adapter, or a base without a layer or the same.

    Source: Hsu et al., Safe LoRA (arXiv 2405.16833).
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine in [-1, 1], got {threshold}")
    if adapter not in model.peft_config:
        raise ValueError(f"adapter {adapter!r} is not there; the model has {', '.join(model.peft_config)}")
    found = []
    originals: dict[str, nn.Module] = dict(base.named_modules())
    for name, module in model.get_base_model().named_modules():
        if not isinstance(module, LoraLayer) or adapter not in module.lora_A:
            continue
        layer: Any = module  # as a module its attributes have no types
        weight = getattr(originals.get(name), "weight", None)
        if not isinstance(weight, Tensor):
            raise ValueError(f"base has no layer {name!r}; give the model that the aligned one was made from")
        aligned = layer.get_base_layer().weight
        if getattr(layer, "fan_in_fan_out", False):  # Conv1D of GPT-2 keeps [in, out]
            weight, aligned = weight.T, aligned.T
        up, down = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight.detach().float()
        moved = alignment_projection(aligned, weight) @ up.detach().float()
        update = (up.detach().float() @ down).flatten()
        cosine = float(torch.nn.functional.cosine_similarity((moved @ down).flatten(), update, dim=0))
        if cosine <= threshold:
            up.data.copy_(moved)
        found.append(ProjectedAdapter(layer=name, cosine=cosine, projected=cosine <= threshold))
    return found
