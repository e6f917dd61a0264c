"""The training loss of the target and the background task, for each kind of head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from interference_nn.settings import Head


def interference_loss(
    target: Tensor,
    background: Tensor,
    labels: Tensor,
    background_labels: Tensor,
    *,
    weight: float = 0.5,
    head: Head = "two",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The mean loss of superposed samples.

        two:   CE_K(t, y) + lam CE_L(b, l)
        joint: CE_{K+L}([t, b], (1 - lam') e_y + lam' e_{K+l}),  lam' = lam / (1 + lam)

    With lam = 0 no background class is ever a target, and both are CE_K(t, y): the background logits leave the softmax.
    Smoothing acts among the K target classes only.

    Args:
        target: t, logits of the target head.
        background: b, logits of the background head.
        labels: y.
        background_labels: l.
        weight: lam.
        head: "two" or "joint".
        label_smoothing: share spread over the K classes.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: for head "extra_class", see `extra_class_loss`, or a label out of range.

    Source: our design; the paper (abstract) says only that background labels are used.

    >>> t, y = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
    >>> loss = interference_loss(t, torch.zeros(1, 1), y, torch.tensor([0]), weight=9.0)
    >>> round(loss.item(), 4)  # one background class says nothing
    0.6931
    """
    check_labels(labels, target.shape[1])
    if head == "extra_class":
        raise ValueError("head 'extra_class' blends nothing; use extra_class_loss")
    own = cross_entropy(target, labels, label_smoothing=label_smoothing)
    if weight == 0:
        return own
    if head == "two":
        return own + weight * cross_entropy(background, background_labels)
    share = weight / (1 + weight)
    wanted = one_hot(labels, target.shape[1]).to(target)
    wanted = (1 - label_smoothing) * wanted + label_smoothing / target.shape[1]
    both = torch.cat([(1 - share) * wanted, share * one_hot(background_labels, background.shape[1]).to(target)], dim=1)
    return cross_entropy(torch.cat([target, background], dim=1), both)


def extra_class_loss(logits: Tensor, labels: Tensor, images: int, *, label_smoothing: float = 0.0) -> Tensor:
    """Reading B: one softmax over K real and L background classes, summed over all samples, per image.

        (1/B) sum_{n < N} CE_{K+L}(logits_n, y_n),    y_n = K + l for the N - B backgrounds

    Args:
        logits: of B images and N - B backgrounds.
        labels: in 0..K+L-1.
        images: B, so that N - B = lam B backgrounds weigh lam.
        label_smoothing: share spread over all classes.

    >>> extra_class_loss(torch.zeros(2, 4), torch.tensor([0, 3]), 1).exp().round().item()
    16.0
    """
    return cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum") / images


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuses target labels that are no integers in 0..classes-1.

    >>> check_labels(torch.tensor([3]), 3)
    Traceback (most recent call last):
    ValueError: labels must lie in 0..2, not in 3..3; check `classes` or relabel
    """
    if labels.dtype != torch.long:
        raise TypeError(f"labels must be integers (torch.long), not {labels.dtype}; use labels.long()")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, not in {low}..{high}; check `classes` or relabel")
