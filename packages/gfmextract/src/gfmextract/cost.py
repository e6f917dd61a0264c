"""What a training costs: seconds and floating-point operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Wall seconds and floating-point operations of a training, on one device.

    >>> Cost(seconds=2.0, flops=1e9).over(Cost(seconds=8.0, flops=1e10))
    (0.25, 0.1)
    """

    seconds: float
    flops: float

    def over(self, other: Cost) -> tuple[float, float]:
        """This cost as a share of another: of its seconds, and of its operations; NaN where the other is 0."""
        pairs = ((self.seconds, other.seconds), (self.flops, other.flops))
        seconds, flops = (part / whole if whole else float("nan") for part, whole in pairs)
        return seconds, flops


def flops_of(step: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and attentions that `step` does, forward and backward.

    Element-wise work and message sums are not counted, as is usual.

    >>> import torch
    >>> flops_of(lambda: torch.ones(2, 3) @ torch.ones(3, 5))  # 2 * 2 * 3 * 5
    60
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())
