"""The distributional adversary: one adversarial image a sample, and draws around the statistics of its features."""

from __future__ import annotations

from typing import Literal

import torch
from aisec_common.torch.linf_pgd import Loss, linf_pgd
from torch import Tensor, nn
from torch.nn import functional as F

STD_SHARE = 0.1  # of its own that an instance keeps at least, so that no draw flattens or mirrors a channel


def kl_adversary(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    clean_logits: Tensor,
    *,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    start: Literal["uniform", "normal", "zero"] | Tensor = "uniform",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The inner maximisation x_a = argmax_{|x' - x| <= eps} KL(f(x) || f(x')), by PGD with BatchNorm in eval mode.

    Args:
        model: the classifier; its mode and BatchNorm statistics stay as they are.
        images: [B, C, H, W] in [0, 1].
        labels: [B]; only checked, the attack does not use them.
        clean_logits: f(x) [B, K] in eval mode.
        eps: radius.
        steps: number of steps.
        step_size: default eps / 4.
        start: see `linf_pgd`.
        generator: of the start.

    Returns:
        x_a [B, C, H, W], detached.

    Raises:
        ValueError: what `linf_pgd` refuses.

    Source: ours, after Zhang et al., TRADES, ICML 2019.
    """
    return linf_pgd(
        model,
        images,
        labels,
        eps=eps,
        steps=steps,
        step_size=step_size,
        loss=divergence_from(clean_logits),
        start=start,
        generator=generator,
    )


def divergence_from(clean_logits: Tensor) -> Loss:
    """What the adversary climbs: KL(f(x) || f(x')) of each row, from logits f(x') [B, K], at f(x) = `clean_logits`."""
    clean = clean_logits.detach().log_softmax(1)

    def divergence(logits: Tensor, _: Tensor) -> Tensor:
        return F.kl_div(logits.log_softmax(1), clean, log_target=True, reduction="none").sum(1)

    return divergence


def draw_noise(samples: int, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal xi and xi' for M draws around features [B, C, ...]: [M, 2, B, C]."""
    device = features.device if generator is None else generator.device  # the seed alone decides, not the device
    size = (samples, 2, len(features), features.shape[1])
    return torch.randn(size, generator=generator, device=device).to(features)


def sampled_statistics(
    means: Tensor, stds: Tensor, root: Tensor, of_stds: Tensor, noise: Tensor, kappa: float
) -> tuple[Tensor, Tensor]:
    """Statistics of M draws, mu' = mu + kappa xi S_mu and s' = max(s + kappa xi' S_s, 0.1 s).

    Args:
        means: mu [B, C].
        stds: s [B, C].
        root: of the covariance of mu over the batch: S_mu [C], or [R, C] where channels vary together.
        of_stds: S_s [C].
        noise: xi and xi' [M, 2, B, C].
        kappa: size of the uncertainty.

    Returns:
        mu' and s', [M, B, C] each.

    Source: arXiv 2411.02871, abstract; the form is ours, after Li et al., DSU, ICLR 2022.

    >>> one = torch.ones(1, 1)
    >>> sampled_statistics(one, one, one[0], one[0], torch.tensor([[[[2.0]], [[-9.0]]]]), 0.5)
    (tensor([[[2.]]]), tensor([[[0.1000]]]))
    """
    xi, of_std = noise.unbind(1)
    shift = xi * root if root.ndim == 1 else xi[..., : len(root)] @ root
    return means + kappa * shift, torch.maximum(stds + kappa * of_std * of_stds, STD_SHARE * stds)


def restyled(features: Tensor, means: Tensor, stds: Tensor, new_means: Tensor, new_stds: Tensor) -> Tensor:
    """Features with other statistics, Z' = s' (Z - mu) / s + mu'.

    Args:
        features: Z [B, C, ...].
        means: mu [B, C].
        stds: s [B, C].
        new_means: mu' [M, B, C].
        new_stds: s' [M, B, C].

    Returns:
        [M * B, C, ...], draw by draw.
    """
    places = (1,) * (features.ndim - 2)
    mean, std, new_mean, new_std = (t.reshape(*t.shape, *places) for t in (means, stds, new_means, new_stds))
    return (new_std * ((features - mean) / std) + new_mean).flatten(0, 1)
