"""Introspective gradient alignment: the model's input gradients at reference and adversary should agree."""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uadat.double_backward import of_images_alone

_KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Threshold)


def input_gradients(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """g = d sum_i CE(f(x_i), y_i) / dx with its own graph, so that each row is its own sample's gradient.

    In a model that mixes the rows of a batch (BatchNorm in training) a row also holds what its sample does to others.

    Args:
        logits: f(x) [B, K].
        labels: [B].
        images: x [B, C, H, W], the leaf that the logits were computed from.

    Returns:
        [B, C, H, W].
    """
    total = F.cross_entropy(logits, labels, reduction="sum")
    with of_images_alone():
        (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return gradient


def cosine_misalignment(reference: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    """L_iga = mean_i (1 - cos(g_r, g_a)), in [0, 2] and the same for any scale of the gradients.

    Each row is divided by its largest absolute entry first: the epsilon of a library's cosine swallows the small
    gradients of confident predictions. A row in which either gradient is exactly zero contributes 0.

    Args:
        reference: g_r [B, ...].
        adversarial: g_a [B, ...].

    Returns:
        The loss and the share of rows with a zero gradient, scalars.

    Source: arXiv 2411.02871, abstract ("introspective gradient alignment"); the form is ours, after Chan et al., IGAM,
    CVPR 2020.

    >>> cosine_misalignment(torch.tensor([[1e-30, 0.0]]), torch.tensor([[0.0, 5.0]]))[0].item()
    1.0
    """
    rows = [gradient.flatten(1) for gradient in (reference, adversarial)]
    largest = [row.detach().abs().amax(1, keepdim=True) for row in rows]
    alive = (largest[0] > 0) & (largest[1] > 0)
    # dead rows become ones: the square root of a zero norm would send NaN back through the mask
    scaled = [torch.where(alive, row / peak.where(alive, 1.0), 1.0) for row, peak in zip(rows, largest, strict=True)]
    norms = [row.norm(dim=1) for row in scaled]
    cosine = (scaled[0] * scaled[1]).sum(1) / (norms[0] * norms[1])
    return (1 - cosine.clamp(-1, 1)).where(alive[:, 0], 0.0).mean(), _dead_share(alive)


def squared_misalignment(reference: Tensor, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    """mean_i |g_r - g_a|^2, and the share of rows in which either gradient is exactly zero; shapes as for the cosine.

    >>> squared_misalignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))[0].item()
    5.0
    """
    alive = reference.flatten(1).any(1) & adversarial.flatten(1).any(1)
    return (reference - adversarial).flatten(1).square().sum(1).mean(), _dead_share(alive)


def slope_misalignment(
    reference: Tensor, middle: Tensor, adversarial: Tensor, lengths: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    """The indirect form: how much the loss bends along x_a - x_r, from its values at x_r, half way and x_a.

        t_r = CE(x_m) - CE(x_r),  t_a = CE(x_a) - CE(x_m)      (half of <g_r, x_a - x_r> and <g_a, x_a - x_r>)
        cos: 1 - 2 t_r t_a / (t_r^2 + t_a^2)  in [0, 2];       l2: (2 (t_a - t_r) / |x_a - x_r|)^2

    No gradient is differentiated: one more pass instead of a double backward. It sees the one component of the
    gradients along the line, with its size: on a linear model the exact form is 0, this one only where CE is straight.
    Rows in which either slope is exactly zero contribute 0.

    Args:
        reference: CE(f(x_r), y) [B].
        middle: CE(f((x_r + x_a) / 2), y) [B].
        adversarial: CE(f(x_a), y) [B].
        lengths: |x_a - x_r| [B], Euclidean.
        metric: `"cos"` or `"l2"`.

    Returns:
        The loss and the share of rows with a zero slope, scalars.

    Source: ours; half the memory of the exact form.

    >>> t = torch.tensor
    >>> slope_misalignment(t([0.0]), t([1.0]), t([2.0]), t([1.0]), "cos")[0].item()
    0.0
    """
    first, second = middle - reference, adversarial - middle
    alive = (first != 0) & (second != 0) & (lengths > 0)
    if metric == "l2":
        bend = (2 * (second - first) / lengths.where(alive, 1.0)).square()
    else:
        peak = torch.maximum(first.detach().abs(), second.detach().abs()).where(alive, 1.0)
        first, second = ((slope / peak).where(alive, 1.0) for slope in (first, second))
        bend = 1 - 2 * first * second / (first.square() + second.square())
    return bend.where(alive, 0.0).mean(), _dead_share(alive)


def warn_of_kinks(model: nn.Module) -> None:
    """Says once a process that a model has ReLU-like modules; a functional `relu` is not seen."""
    if any(isinstance(part, _KINKED) for part in model.modules()):
        _warn()


@functools.cache
def _warn() -> None:
    logging.getLogger("uadat").warning(
        "the model has ReLU activations, whose second derivative is zero almost everywhere: gradient alignment changes "
        "the weights of active paths but not which paths are active; softplus or SiLU have no such gap"
    )


def _dead_share(alive: Tensor) -> Tensor:
    return 1 - alive.to(torch.get_default_dtype()).mean()
