"""Discrete-time survival from logits: hazards, survival, risk, and the two likelihoods (sections 3.8 and 3.9).

Everything is computed in log space: log h = logsigmoid(z) and log(1 - h) = logsigmoid(-z), without clamps.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def log_survival(logits: Tensor) -> Tensor:
    """log S_k = sum over j <= k of log(1 - h_j), with h = sigmoid(logit).

    Args:
        logits: `[..., n]`.

    Returns:
        `[..., n]`.

    >>> log_survival(torch.zeros(2)).exp()
    tensor([0.5000, 0.2500])
    """
    return logsigmoid(-logits).cumsum(-1)


def risk(logits: Tensor) -> Tensor:
    """Risk = -sum_k S_k: the higher, the earlier the event is expected.

    Args:
        logits: `[..., n]`.

    Returns:
        `[...]`, between -n and 0.

    >>> risk(torch.zeros(2))
    tensor(-0.7500)
    """
    return -log_survival(logits).exp().sum(-1)


def nll(logits: Tensor, label: Tensor, event: Tensor, *, alpha: float = 0.0) -> Tensor:
    """The standard negative log-likelihood of each patient: (1 - a)(U + V) + a U.

    U = -[log S_{Y-1} + log h_Y] with an event in bin Y, V = -log S_Y where the patient is censored in bin Y.

    Args:
        logits: `[B, n]`.
        label: `[B]` Y, 0..n-1.
        event: `[B]` boolean, False where censored.
        alpha: a, the weight taken from censored patients.

    Returns:
        `[B]`.

    Raises:
        ValueError: when the shapes do not fit or a label is not a bin.

    >>> import math
    >>> nll(torch.zeros(2, 4), torch.tensor([0, 3]), torch.tensor([True, False])) / math.log(2)
    tensor([1., 4.])
    """
    return _balanced_terms(logits, label, event, alpha, beta=0.0)


def balanced_nll(logits: Tensor, label: Tensor, event: Tensor, *, alpha: float = 0.0, beta: float = 1.0) -> Tensor:
    """The balanced likelihood of each patient: (1 - b) NLL + b [(1 - a)(U_b + V_b) + a U].

    U_b = U - (n-Y-1) log(1 - h_{Y-1}) and V_b = V - (n-Y-1) log(1 - h_Y), with h_{-1} := 0, so that every patient has n
    log-terms instead of Y + 1, except one with an event in the first bin, who has one. It is no proper likelihood: even
    where it is minimal, early hazards are too small.

    Args:
        logits: `[B, n]`.
        label: `[B]` Y, 0..n-1.
        event: `[B]` boolean, False where censored.
        alpha: a, the weight taken from censored patients.
        beta: b, the share of the balanced terms.

    Returns:
        `[B]`.

    Raises:
        ValueError: when the shapes do not fit or a label is not a bin.

    >>> import math
    >>> balanced_nll(torch.zeros(2, 4), torch.tensor([1, 0]), torch.tensor([True, False])) / math.log(2)
    tensor([4., 4.])
    """
    return _balanced_terms(logits, label, event, alpha, beta)


def survival_loss(
    kind: Literal["balanced_nll", "nll"], logits: Tensor, label: Tensor, event: Tensor, *, alpha: float, beta: float
) -> Tensor:
    """The loss of each patient by its name in the configuration."""
    return _balanced_terms(logits, label, event, alpha, beta if kind == "balanced_nll" else 0.0)


def _balanced_terms(logits: Tensor, label: Tensor, event: Tensor, alpha: float, beta: float) -> Tensor:
    _check(logits, label, event)
    n = logits.shape[-1]
    at = label.long()[:, None]
    stay = logsigmoid(-logits)  # log(1 - h_k)
    survived = stay.cumsum(-1).gather(1, at)[:, 0]  # log S_Y
    stay_y = stay.gather(1, at)[:, 0]
    before = (stay.gather(1, (at - 1).clamp(min=0))[:, 0]).where(label > 0, 0.0)  # log(1 - h_{Y-1})
    died = logsigmoid(logits).gather(1, at)[:, 0]
    left = (n - 1 - label).to(logits.dtype) * beta  # the balance: how often the last survived bin is counted again
    uncensored = -(survived - stay_y + died)
    with_event = uncensored - (1 - alpha) * left * before
    censored = -(1 - alpha) * (survived + left * stay_y)
    return torch.where(event.bool(), with_event, censored)


def _check(logits: Tensor, label: Tensor, event: Tensor) -> None:
    if logits.ndim != 2 or label.shape != logits.shape[:1] or event.shape != logits.shape[:1]:
        shapes = f"{list(logits.shape)}, {list(label.shape)} and {list(event.shape)}"
        raise ValueError(f"logits, label and event must be [B, n], [B] and [B], got {shapes}")
    if label.is_floating_point() or (len(label) and not 0 <= int(label.min()) <= int(label.max()) < logits.shape[1]):
        raise ValueError(f"label must be integer bins 0..{logits.shape[1] - 1}")
