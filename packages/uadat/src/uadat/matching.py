"""Distribution-to-distribution matching: of predictions, and of the statistics of features."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from uadat.statistics import VARIANCE_FLOOR, batch_moments


def prediction_alignment(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """Divergence of the adversary's draws, L_align = 1/(M+1) sum_m KL(p_r || softmax l_a^(m)), mean over the batch.

    Args:
        reference_logits: f(x_r) [B, K].
        logits: l_a^(0..M) [(M+1) B, K], draw by draw.

    Returns:
        A scalar; its gradient reaches both sides, as in TRADES.

    Source: ours, after Zhang et al., TRADES, ICML 2019.

    >>> import torch
    >>> prediction_alignment(torch.zeros(1, 2), torch.zeros(3, 2)).item()
    0.0
    """
    copies = len(logits) // len(reference_logits)
    reference = reference_logits.log_softmax(1).repeat(copies, 1)
    return F.kl_div(logits.log_softmax(1), reference, log_target=True, reduction="batchmean")


def statistics_distance(reference: Tensor, adversarial: Tensor, group: Any = None) -> Tensor:
    """Squared 2-Wasserstein distance of the diagonal Gaussians of feature means over the batch, a channel.

        L_stat = (|mean mu_r - mean mu_a|^2 + |std mu_r - std mu_a|^2) / C

    Args:
        reference: mu_r [B, C].
        adversarial: mu_a [B, C].
        group: processes whose rows count as one batch.

    Returns:
        A scalar, in squared units of the features. It is also small where all features are: watch `feature_norm`.

    Source: ours.

    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0]])
    >>> statistics_distance(x, x + 3).item()
    9.0
    """
    (mean_r, variance_r), (mean_a, variance_a) = (batch_moments(means, group) for means in (reference, adversarial))
    stds = [(variance + VARIANCE_FLOOR).sqrt() for variance in (variance_r, variance_a)]
    return ((mean_r - mean_a).square() + (stds[0] - stds[1]).square()).mean()
