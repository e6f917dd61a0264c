"""How strongly, where and against which reference projections are held in place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Norm = Literal["abs", "l2_tokens", "squared"]
Reduction = Literal["mean", "layer_sum", "paper_sum"]
ScheduleName = Literal["constant", "warmup"]
ReferenceName = Literal["adapter_off", "cache", "model"]
CacheDtype = Literal["float32", "float16"]
ConstrainedTokens = Literal["response", "prompt_last", "both"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "schedule": get_args(ScheduleName),
    "norm": get_args(Norm),
    "reduction": get_args(Reduction),
    "reference": get_args(ReferenceName),
    "cache_dtype": get_args(CacheDtype),
    "tokens": get_args(ConstrainedTokens),
}


@dataclass(frozen=True, kw_only=True)
class ProConConfig:
    """The settings of L = L_CE + α · L_ProCon; scalars and names only, so that it has a hash and a JSON form.

    Directions, safety data and any other course of α are arguments of the trainer.

    Raises:
        TypeError: for a tensor, a data set, a callable or anything else that is no scalar or name.
        ValueError: for a name that is not offered, or a number out of range.

    >>> ProConConfig(alpha=1.0, schedule="warmup").warmup_epochs
    4.0

    Source: arXiv 2509.06795, section 4; the defaults of `norm`, `reduction`, `reference` and `tokens` are ours.
    """

    alpha: float = 0.1
    """Weight of the term. It does not transfer between norms and reductions, nor, without `normalize`, models."""
    schedule: ScheduleName = "constant"
    """constant: α throughout. warmup: α for `warmup_epochs`, which are added to the training's own epochs, then 0."""
    warmup_epochs: float = 4.0
    """The paper's: 4 (Llama-2-7B, Llama-3-8B) or 16 (Qwen2-7B), halved with safety data."""
    norm: Norm = "abs"
    """See `projection_term`."""
    reduction: Reduction = "mean"
    """See `projection_term`."""
    normalize: bool = False
    """Divide Δz of each layer by the standard deviation of z_0 over a calibration batch."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Which blocks, from 0; negative ones count from the last. (-1,) is the paper's last-layer ablation."""
    reference: ReferenceName = "adapter_off"
    """Where z_0 comes from: a second pass without the adapter, a pre-pass kept on disk, or a frozen copy."""
    cache_dtype: CacheDtype = "float32"
    """Of the kept projections; float16 halves them and is exact to 1e-3 |z| only."""
    tokens: ConstrainedTokens = "response"
    """The paper's response tokens, the last prompt token before a response (where r is measured), or both."""

    def __post_init__(self) -> None:
        layers: Any = self.layers
        if isinstance(layers, list):  # JSON has no tuples
            object.__setattr__(self, "layers", tuple(layers))
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name))
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name in ("alpha", "warmup_epochs"):
            number = float(getattr(self, name))
            object.__setattr__(self, name, number)
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {number}")
        if self.schedule == "warmup" and not self.warmup_epochs:
            raise ValueError("warmup_epochs must be positive for schedule='warmup'; use schedule='constant'")
        if self.layers != "all" and not self.layers:
            raise ValueError("layers is empty: name at least one block, or 'all'")


def _check_type(name: str, value: Any) -> None:
    if name in ("alpha", "warmup_epochs"):
        wanted, fits = "a number", isinstance(value, int | float) and not isinstance(value, bool)
    elif name == "normalize":
        wanted, fits = "True or False", isinstance(value, bool)
    elif name == "layers":
        wanted = "'all' or a tuple of block numbers"
        fits = value == "all" if isinstance(value, str) else _whole_numbers(value)
    else:
        wanted, fits = "a name", isinstance(value, str)
    if not fits:
        raise TypeError(
            f"{name} must be {wanted}, got {type(value).__name__}; directions, data sets and schedules are "
            "arguments of the trainer"
        )


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(k, int) and not isinstance(k, bool) for k in value)
