"""Where a signed gradient attack starts, and how often and how far each image steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def attack_start(
    images: Tensor,
    start: Literal["uniform", "normal", "zero"] | Tensor,
    *,
    eps: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where `linf_pgd` starts, before it clips that to the ball and to [0, 1]; arguments as there.

    Raises:
        ValueError: for another word, or images of another shape.

    >>> attack_start(torch.zeros(1, 1, 1, 2), "zero", eps=0.1).tolist()
    [[[[0.0, 0.0]]]]
    """
    if isinstance(start, Tensor):
        if start.shape != images.shape:
            raise ValueError(f"start must be of the shape of images, {tuple(images.shape)}, not {tuple(start.shape)}")
        return start.detach().to(images)
    # drawn where the generator lives, so that a seed gives the same start on every device
    device = images.device if generator is None else generator.device
    if start == "uniform":
        noise = torch.rand(images.shape, generator=generator, device=device).mul_(2 * eps).sub_(eps)
    elif start == "normal":
        noise = torch.randn(images.shape, generator=generator, device=device).mul_(0.001)
    elif start == "zero":
        return images
    else:
        raise ValueError(f"start must be 'uniform', 'normal', 'zero' or images, not {start!r}")
    return images + noise.to(images)


def step_counts(steps: int | Tensor, images: Tensor) -> Tensor:
    """How often each of the images [B, C, H, W] steps, [B].

    Raises:
        ValueError: for fractions, negative numbers, or another shape than [B].

    >>> step_counts(2, torch.zeros(3, 1, 1, 1)).tolist()
    [2, 2, 2]
    """
    counts = torch.as_tensor(steps)
    if counts.is_floating_point() or (counts.ndim and counts.shape != (len(images),)):
        raise ValueError(
            f"steps must be a whole number or [{len(images)}], one for each image, not "
            f"{list(counts.shape) if counts.ndim else steps}"
        )
    if (counts < 0).any():
        raise ValueError(f"steps must be >= 0, not {int(counts.min())}")
    return counts.to(images.device).expand(len(images))


def step_sizes(step_size: float | Tensor, images: Tensor) -> Tensor:
    """How far each of the images [B, C, H, W] steps, [B, 1, 1, 1].

    Raises:
        ValueError: for a size that is not positive, or another shape than [B].

    >>> step_sizes(0.5, torch.zeros(3, 1, 1, 1)).flatten().tolist()
    [0.5, 0.5, 0.5]
    """
    sizes = torch.as_tensor(step_size, dtype=images.dtype)
    if sizes.ndim and sizes.shape != (len(images),):
        raise ValueError(f"step_size must be a number or [{len(images)}], one for each image, not {tuple(sizes.shape)}")
    if not (sizes > 0).all():
        raise ValueError(f"step_size must be positive, not {float(sizes.min()):g}; None takes eps / 4")
    return sizes.to(images.device).expand(len(images))[:, None, None, None]
