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
        """This cost as a share of another: of its seconds, and of its operations."""
        return self.seconds / other.seconds, self.flops / other.flops


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
