"""The interference operators z = I(x, b): how an image and a background become one input. All are differentiable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

QUADRANTS = 4


def superpose(images: Tensor, backgrounds: Tensor, alpha: float | Tensor) -> Tensor:
    """Blends image and background, z = (1 - a) x + a b, in [0, 1] by convexity.

    Args:
        images: x, in [0, 1].
        backgrounds: b, in [0, 1].
        alpha: a in [0, 1], one for all or one for each.

    Returns:
        z.

    Source: reading A of the paper's abstract; blending is our choice.

    >>> superpose(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0.25).item()
    0.75
    """
    a = alpha.reshape(-1, 1, 1, 1).to(images) if isinstance(alpha, Tensor) else alpha
    return torch.lerp(images, backgrounds, a)  # unlike the sum of two products, never out of [0, 1] by a rounding


def mosaic(images: Tensor, backgrounds: Tensor, places: Tensor) -> Tensor:
    """The image, at half its size, in one quadrant of the background.

    The background fills a canvas of 2H x 2W, the image covers one quadrant, and the whole is averaged over 2 x 2
    pixels: z is the background with that quadrant replaced by the halved image.

    Args:
        images: x, H and W even.
        backgrounds: b.
        places: 0..3, upper left, upper right, lower left, lower right.

    Returns:
        z.

    Raises:
        ValueError: if H or W is odd.

    Source: reading A, second variant; ours.

    >>> mosaic(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([3])).flatten().tolist()
    [0.0, 0.0, 0.0, 1.0]
    """
    height, width = images.shape[-2:]
    if height % 2 or width % 2:
        raise ValueError(f"images must have even sides for the mosaic, not {height} x {width}; resize or pad them")
    halved = avg_pool2d(images, 2).repeat(1, 1, 2, 2)
    lower = torch.arange(height, device=images.device) >= height // 2
    right = torch.arange(width, device=images.device) >= width // 2
    quadrant = 2 * lower[:, None] + 1 * right[None, :]
    inside = quadrant == places.to(images.device)[:, None, None, None]
    return torch.where(inside, halved, backgrounds)


def stack_channels(images: Tensor, backgrounds: Tensor) -> Tensor:
    """The background as further channels, z = [x, b]; the network's first convolution is widened for them.

    Source: reading A, third variant; ours.

    >>> stack_channels(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)).shape
    torch.Size([1, 6, 2, 2])
    """
    return torch.cat([images, backgrounds.expand(len(images), *backgrounds.shape[1:])], dim=1)


Operator = Callable[[Tensor, Tensor, float | Tensor, Tensor], Tensor]
OPERATORS: dict[str, Operator] = {
    "superpose": lambda images, backgrounds, alpha, places: superpose(images, backgrounds, alpha),
    "mosaic": lambda images, backgrounds, alpha, places: mosaic(images, backgrounds, places),
    "channel": lambda images, backgrounds, alpha, places: stack_channels(images, backgrounds),
}
"""By name, all called with (images, backgrounds, alpha, places)."""
