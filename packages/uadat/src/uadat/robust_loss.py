"""What the trainer asks of a loss: first the images it looks at, then its value on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from uadat.split import Forward


@dataclass(frozen=True, kw_only=True)
class Views:
    """The images of one step and what was drawn for them.

    Args:
        images: clean x [B, C, H, W] in [0, 1].
        labels: y [B].
        reference: x_r [B, C, H, W], the clean images or refined ones.
        adversarial: x_a [B, C, H, W].
        noise: standard normal, [M, 2, B, channels], or None.
        shares: what making them found out, as shares of the batch.
    """

    images: Tensor
    labels: Tensor
    reference: Tensor
    adversarial: Tensor
    noise: Tensor | None = None
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LossParts:
    """A loss and what it is made of.

    Args:
        total: scalar with gradient; `total.backward()`.
        parts: each term before its weight, and shares to watch, as numbers.
    """

    total: Tensor
    parts: dict[str, float]

    @classmethod
    def of(cls, total: Tensor, terms: Mapping[str, Tensor], shares: Mapping[str, float]) -> LossParts:
        """The parts as numbers, fetched from the device at once."""
        named = {"total": total, **terms}
        values = torch.stack([term.detach().float() for term in named.values()]).tolist()
        return cls(total=total, parts={**dict(zip(named, values, strict=True)), **shares})


class RobustLoss(nn.Module, ABC):
    """A training loss of a classifier on images in [0, 1], `loss(model, images, labels)` in any loop.

    Attributes:
        eps: radius of the l_inf ball, or None for a loss that attacks nothing.
        settings: the arguments it was made with.
    """

    eps: float | None
    settings: dict[str, float | int | str | bool | None]

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> LossParts:
        """The loss of one batch.

        Args:
            model: the classifier in training mode, or a DistributedDataParallel of it.
            images: [B, C, H, W] in [0, 1].
            labels: [B], classes 0..K-1.
            progress: share of the training that is done, in [0, 1]; a warm-up depends on it.
            generator: of random starts and draws; None takes torch's global one.

        Returns:
            The total with gradient, and its parts.

        Raises:
            ValueError: for images outside [0, 1] or labels out of range.
        """
        return self.on(model, self.prepare(model, images, labels, progress=progress, generator=generator))

    @abstractmethod
    def prepare(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, progress: float, generator: torch.Generator | None
    ) -> Views:
        """Makes the adversary and whatever else the loss looks at; the model's state stays as it is."""

    @abstractmethod
    def on(self, model: nn.Module, views: Views, forward: Forward | None = None) -> LossParts:
        """The loss on given views; `forward` runs the model in another way (with perturbed weights)."""


def check_radius(eps: float) -> float:
    """`eps` if it is a radius.

    Raises:
        ValueError: if it is not positive.
    """
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps must be positive, in units of images in [0, 1] (for instance 8/255), not {eps}")
    return float(eps)
