"""Refined references: what the adversary's predictions are aligned with."""

from __future__ import annotations

import torch
from aisec_common.torch.linf_pgd import evaluating
from torch import Tensor, nn
from torch.nn import functional as F

from uadat.split import split_pass
from uadat.statistics import ClassGaussians, instance_statistics

STEPS = 3


def refined_references(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    clean_logits: Tensor,
    *,
    eps: float,
    layer: str = "input",
    gaussians: ClassGaussians | None = None,
    weight: float = 0.1,
) -> Tensor:
    """x itself where it is classified correctly, else an image of its ball that is nearer to its class.

        x_r <- clip(x_r - eps/3 sign grad [CE(f(x_r), y) + weight d(x_r, y)]), three times from x

    where d is the distance of the feature means from the class's Gaussian. Where the descent did not reduce CE, x.

    Args:
        model: the classifier, run in eval mode; its mode and BatchNorm statistics stay as they are.
        images: x [B, C, H, W] in [0, 1].
        labels: y [B].
        clean_logits: f(x) [B, K] in eval mode.
        eps: radius.
        layer: where the features are taken.
        gaussians: of the feature means of each class; None leaves d out.
        weight: of d.

    Returns:
        x_r [B, C, H, W], detached, in the ball and in [0, 1]; bitwise x where x is classified correctly.

    Source: arXiv 2411.02871, abstract ("refine the alignment reference"); the form is ours, after Dong et al., UIAT,
    CVPR 2023.
    """
    wrong = clean_logits.argmax(1) != labels
    if not wrong.any():
        return images.detach()
    begin, aims = images[wrong].detach(), labels[wrong]
    low, high = (begin - eps).clamp(min=0), (begin + eps).clamp(max=1)
    before = F.cross_entropy(clean_logits[wrong], aims, reduction="none")
    x = begin
    with evaluating(model):
        for _ in range(STEPS):
            with torch.enable_grad():
                leaf = x.clone().requires_grad_()
                loss = _descended(model, leaf, aims, layer, gaussians, weight)
                (gradient,) = torch.autograd.grad(loss, leaf)
            x = torch.clamp(x - eps / STEPS * gradient.sign(), low, high)
        with torch.no_grad():
            after = F.cross_entropy(model(x), aims, reduction="none")
    better = (after < before)[:, None, None, None]
    return images.detach().index_put((wrong.nonzero()[:, 0],), torch.where(better, x, begin))


def _descended(
    model: nn.Module, images: Tensor, labels: Tensor, layer: str, gaussians: ClassGaussians | None, weight: float
) -> Tensor:
    """CE + weight d, summed: each row has its own gradient."""
    if gaussians is None:
        return F.cross_entropy(model(images), labels, reduction="sum")
    far: list[Tensor] = []

    def measure(features: Tensor) -> Tensor:
        far.append(gaussians.distance(instance_statistics(features)[0], labels).sum())
        return features

    logits = split_pass(model, model, layer, images, measure)
    return F.cross_entropy(logits, labels, reduction="sum") + weight * far[0]
