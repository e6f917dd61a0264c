"""How often and how strongly the units of a site are active, summed up token by token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Sign = Literal["positive", "abs"]


class Activity:
    """Streaming f, μ and WFS of the units of one site; sums in float64, O(units) memory, nothing else is kept.

    f(m) = P(z_m > 0),  μ(m) = E[z_m | z_m > 0],  WFS(m) = f(m) μ(m), over tokens.

    For codes that are never negative WFS(m) = E[z_m]. With `sign="abs"` the same holds of |z_m|: the form for dense
    activations, of which f and μ as printed ignore the negative half.

    Args:
        units: m, number of latents or coordinates.
        sign: `"positive"` as printed, or `"abs"`.
        device: of the sums; activations are summed where they are and moved there.

    Attributes:
        tokens: number of tokens seen, a scalar int64 tensor.
        active: [m] int64, tokens at which each unit was active.
        total: [m] float64, sum over tokens of what was active.
            These three are sums, so statistics of data-parallel processes add up by reducing them.

    Raises:
        ValueError: for fewer than one unit or an unknown sign.

    Source: arXiv 2601.21900, weighted feature sensitivity (eqs. 1-3); over tokens, not over pooled prompts.

    >>> activity = Activity(2)
    >>> activity.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> activity.frequency.tolist(), activity.mean_active.tolist(), activity.wfs.tolist()
    ([1.0, 0.0], [2.0, 0.0], [2.0, 0.0])
    """

    def __init__(self, units: int, *, sign: Sign = "positive", device: str | torch.device = "cpu") -> None:
        if units < 1:
            raise ValueError(f"units must be at least 1, got {units}")
        if sign not in ("positive", "abs"):
            raise ValueError(f"sign must be 'positive' or 'abs', got {sign!r}")
        self.units, self.sign = units, sign
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)
        self.active = torch.zeros(units, dtype=torch.int64, device=device)
        self.total = torch.zeros(units, dtype=torch.float64, device=device)

    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Adds the tokens of one batch.

        Args:
            values: [..., m] activations or codes.
            mask: [...] true (or 1) where a token counts; padding must be false. Default: all count.

        Raises:
            ValueError: for other shapes, or values that are not finite.
        """
        rows = counted(values, mask, self.units)
        strength = rows.abs() if self.sign == "abs" else rows.clamp(min=0)
        total = strength.sum(0, dtype=torch.float64)
        if not torch.isfinite(total).all():
            raise ValueError("values hold NaN or infinity: check the model's activations and the mask")
        self.tokens += rows.shape[0]
        self.active += (strength > 0).sum(0).to(self.active.device)
        self.total += total.to(self.total.device)

    def merge(self, other: Activity) -> Activity:
        """The statistics of both streams together, such as of two processes or two shards of the prompts.

        Raises:
            ValueError: for another number of units or another sign.
        """
        if (self.units, self.sign) != (other.units, other.sign):
            raise ValueError(
                f"other counts {other.units} units with sign {other.sign!r}, this one {self.units} with {self.sign!r}"
            )
        both = Activity(self.units, sign=self.sign, device=self.total.device)
        for name in ("tokens", "active", "total"):
            mine: Tensor = getattr(self, name)
            setattr(both, name, mine + getattr(other, name).to(mine.device))
        return both

    @property
    def frequency(self) -> Tensor:
        """f: [m] float64, share of the tokens at which each unit is active."""
        return self.active.double() / self._seen()

    @property
    def mean_active(self) -> Tensor:
        """μ: [m] float64, mean strength where active; 0 for a unit that never is."""
        return self.total / self.active.clamp(min=1)

    @property
    def wfs(self) -> Tensor:
        """WFS = f μ: [m] float64."""
        return self.total / self._seen()

    def _seen(self) -> Tensor:
        if not self.tokens:
            raise ValueError("activity has seen no token: call update with a mask that is true somewhere")
        return self.tokens.double()


def counted(values: Tensor, mask: Tensor | None, units: int) -> Tensor:
    """The rows [n, m] of `values` [..., m] that `mask` [...] counts.

    Raises:
        ValueError: for another number of units, or a mask of another shape.

    >>> counted(torch.ones(2, 3, 4), torch.tensor([[1, 0, 0], [1, 1, 0]]), 4).shape
    torch.Size([3, 4])
    """
    if values.ndim < 2 or values.shape[-1] != units:
        raise ValueError(f"values must be [..., {units}], got {list(values.shape)}")
    if mask is None:
        return values.reshape(-1, units)
    if mask.shape != values.shape[:-1]:
        raise ValueError(f"mask must be {list(values.shape[:-1])} like the tokens of values, got {list(mask.shape)}")
    return values[mask.to(values.device, torch.bool)]
