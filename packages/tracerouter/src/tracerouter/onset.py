"""Where a concept enters the network: sensitivity of every layer's attention, and the first local peak."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

ROW_SUM = {torch.float32: 1e-4, torch.float64: 1e-4}  # how far from 1 a row of attention may sum
HALF_ROW_SUM = 2e-2  # weights rounded to half precision no longer sum to 1 more closely
LENGTHS_DIFFER = 0.1


def attention_flow(attention: Tensor, targets: Tensor, modifiers: Tensor) -> Tensor:
    """How much the target tokens read from the modifier tokens.

    flow(p) = mean_h mean_{i in E} Σ_{j in M} A_h(i, j)

    A causal model reads backwards only: where the modifiers come after the targets, they are the readers instead.

    Args:
        attention: A [B, H, T, T] of one layer, query by key.
        targets: E, mask [B, T].
        modifiers: M, mask [B, T].

    Returns:
        [B] float32, in [0, 1].

    Raises:
        ValueError: for other shapes, a prompt without targets or modifiers, or reading rows that do not sum to 1.

    Source: arXiv 2601.21900, sensitivity score; the exact form is ours.

    >>> A = torch.tensor([[[[1.0, 0.0], [0.3, 0.7]]]])
    >>> attention_flow(A, torch.tensor([[False, True]]), torch.tensor([[True, False]])).item()
    0.30000001192092896
    """
    readers, read = _roles(attention, targets, modifiers)
    check_rows(attention, readers)
    weights = attention.float().mean(1)
    return _mean_over(readers, (weights * read[:, None]).sum(-1))


def disturbance(attention_plus: Tensor, attention_minus: Tensor, targets: Tensor, modifiers: Tensor) -> Tensor:
    """How much the reading of everything else changes between the members of a minimal pair.

    disturb(p+, p-) = mean_h mean_{i in E} ½ Σ_{j not in M or E} |A_h+(i, j) - A_h-(i, j)|

    Args:
        attention_plus, attention_minus: A+ and A- [B, H, T, T] of one layer.
        targets: E, mask [B, T], valid in both.
        modifiers: M, mask [B, T], valid in both; the roles are as in `attention_flow`.

    Returns:
        [B] float32, in [0, 1]; 0 where both attend alike.

    Raises:
        ValueError: see `attention_flow`; for members of unequal length.
    """
    if attention_plus.shape != attention_minus.shape:
        raise ValueError(
            f"attention_minus must be {list(attention_plus.shape)} like attention_plus, got "
            f"{list(attention_minus.shape)}: positions need pairs of equal length"
        )
    readers, _ = _roles(attention_plus, targets, modifiers)
    check_rows(attention_plus, readers)
    check_rows(attention_minus, readers)
    rest = ~(targets.bool() | modifiers.bool()).to(attention_plus.device)
    change = (attention_plus.float() - attention_minus.float()).abs().mean(1)
    return _mean_over(readers, (change * rest[:, None]).sum(-1) / 2)


def sensitivity_scores(flow_plus: Tensor, flow_minus: Tensor, disturb: Tensor) -> list[float]:
    """SS(l) = mean over pairs [flow_l(p+) - flow_l(p-) - disturb_l].

    Args:
        flow_plus, flow_minus, disturb: [n, L] of `attention_flow` and `disturbance`.

    Returns:
        One score a layer.

    Raises:
        ValueError: for unequal shapes or no pairs.

    Source: arXiv 2601.21900, sensitivity score; the exact form is ours.
    """
    if flow_plus.ndim != 2 or not len(flow_plus) or not flow_plus.shape == flow_minus.shape == disturb.shape:
        raise ValueError(
            "flow_plus, flow_minus and disturb must be [n, L] alike with n >= 1, got "
            f"{list(flow_plus.shape)}, {list(flow_minus.shape)} and {list(disturb.shape)}"
        )
    scores: list[float] = (flow_plus.double() - flow_minus.double() - disturb.double()).mean(0).tolist()
    return scores


def last_rows(attention: Tensor, mask: Tensor) -> Tensor:
    """The attention row of each prompt's last token, averaged over heads and aligned at that token.

    Args:
        attention: [B, H, T, T] of one layer.
        mask: [B, T] true at tokens of the prompt; padding on either side.

    Returns:
        [B, T] float32: the last column is the weight on the token itself, columns before the prompt's start are 0.

    Raises:
        ValueError: for other shapes, an empty prompt, or rows that do not sum to 1.
    """
    prompt = _mask("mask", mask, attention)
    last = _last(prompt)
    rows = torch.zeros_like(prompt)
    rows[torch.arange(len(rows), device=rows.device), last] = True
    check_rows(attention, rows)
    weights = attention.float().mean(1)[rows] * prompt
    tokens = prompt.shape[1]
    back = torch.arange(tokens, device=prompt.device) - (tokens - 1) + last[:, None]  # key that stands at a column
    return weights.gather(1, back.clamp(min=0)) * (back >= 0)


def js_scores(rows_plus: Tensor, rows_minus: Tensor, *, mean_lengths: tuple[float, float] | None = None) -> list[float]:
    """Jensen-Shannon divergence of the averaged attention rows of the last prompt token, S+ against S-.

    JS(p, q) = ½ KL(p || r) + ½ KL(q || r),  r = (p + q) / 2,  in nats: from 0 to ln 2.

    Args:
        rows_plus, rows_minus: [L, T+] and [L, T-], the means of `last_rows` over each set. They are aligned at their
            last columns, and the shorter is filled with zeros.
        mean_lengths: tokens of an average prompt of either set. Where they differ by more than a tenth there is a
            warning, because length alone then moves the score.

    Returns:
        One score a layer.

    Raises:
        ValueError: for unequal numbers of layers, or rows that hold no weight.

    Source: ours, for prompts that are not minimal pairs.

    >>> js_scores(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0]]))
    [0.0]
    """
    if rows_plus.ndim != 2 or rows_minus.ndim != 2 or len(rows_plus) != len(rows_minus):
        raise ValueError(
            "rows_plus and rows_minus must be [L, T] of the same layers, got "
            f"{list(rows_plus.shape)} and {list(rows_minus.shape)}"
        )
    if mean_lengths is not None and max(mean_lengths) > (1 + LENGTHS_DIFFER) * min(mean_lengths):
        warnings.warn(
            f"sensitive prompts have {mean_lengths[0]:.1f} tokens on average and matched ones {mean_lengths[1]:.1f}: "
            "length alone moves this score",
            stacklevel=2,
        )
    width = max(rows_plus.shape[1], rows_minus.shape[1])
    p, q = (_distribution(rows.double(), width) for rows in (rows_plus, rows_minus.to(rows_plus.device)))
    r = (p + q) / 2
    divergence = (torch.xlogy(p, p / r) + torch.xlogy(q, q / r)).nan_to_num(0.0).sum(1) / 2
    scores: list[float] = divergence.clamp(min=0).tolist()
    return scores


def attention_entropy(attention: Tensor, mask: Tensor) -> Tensor:
    """Mean entropy of a prompt's attention rows, over heads and tokens: -Σ_j A_h(i, j) ln A_h(i, j), in nats.

    Args:
        attention: [B, H, T, T] of one layer.
        mask: [B, T] true at tokens of the prompt.

    Returns:
        [B] float32.

    Raises:
        ValueError: for other shapes, an empty prompt, or rows that do not sum to 1.
    """
    prompt = _mask("mask", mask, attention)
    check_rows(attention, prompt)
    weights = attention.float()
    return _mean_over(prompt, -torch.xlogy(weights, weights).sum(-1).mean(1))


def entropy_scores(entropy_plus: Tensor, entropy_minus: Tensor) -> list[float]:
    """How well attention entropy tells the two sets apart: |2 AUROC - 1|, ties counting half.

    Args:
        entropy_plus, entropy_minus: [n, L] and [m, L] of `attention_entropy`.

    Returns:
        One score a layer, in [0, 1].

    Raises:
        ValueError: for an empty set or unequal numbers of layers.

    Source: ours, for prompts that are not minimal pairs.
    """
    if not entropy_plus.ndim == entropy_minus.ndim == 2 or entropy_plus.shape[1] != entropy_minus.shape[1]:
        raise ValueError(
            "entropy_plus and entropy_minus must be [n, L] of the same layers, got "
            f"{list(entropy_plus.shape)} and {list(entropy_minus.shape)}"
        )
    if not len(entropy_plus) or not len(entropy_minus):
        raise ValueError("entropy_plus and entropy_minus must hold at least one prompt each")
    scores = []
    for plus, minus in zip(entropy_plus.T, entropy_minus.T, strict=True):
        order = minus.sort().values
        below = torch.searchsorted(order, plus.contiguous(), right=False)
        upto = torch.searchsorted(order, plus.contiguous(), right=True)
        auroc = ((below + upto).double() / 2).mean().item() / len(order)
        scores.append(abs(2 * auroc - 1))
    return scores


def onset_layer(scores: Sequence[float]) -> int:
    """l*: the first local peak of the curve that stands above its mean.

    The smallest l before the last with SS(l) >= SS(l - 1), SS(l) >= SS(l + 1) and SS(l) > mean SS; the first layer has
    a right neighbour only. Where none qualifies it is the highest layer before the last, with a warning. The last is
    never chosen: nothing lies downstream of it.

    Args:
        scores: SS of each layer.

    Returns:
        The 0-based index of the block.

    Raises:
        ValueError: for fewer than two layers, or scores that are not finite.

    Source: arXiv 2601.21900, first local peak; what follows where there is none is ours.

    >>> onset_layer([0.5, 0.65, 0.1, 0.1])
    1
    """
    curve = [float(score) for score in scores]
    if len(curve) < 2:
        raise ValueError(f"scores must cover at least two layers, got {len(curve)}: nothing lies downstream of one")
    if not all(map(math.isfinite, curve)):
        raise ValueError("scores hold NaN or infinity: check the attention they come from")
    # a flat curve must not rise above its own mean by rounding
    mean = math.fsum(curve) / len(curve) + 1e-12 * max(map(abs, curve))
    for layer in range(len(curve) - 1):
        rising = layer == 0 or curve[layer] >= curve[layer - 1]
        if rising and curve[layer] >= curve[layer + 1] and curve[layer] > mean:
            return layer
    best = max(curve[:-1])
    warnings.warn("no local peak: taking the highest layer before the last as the onset", stacklevel=2)
    return curve.index(best)


def check_rows(attention: Tensor, rows: Tensor) -> None:
    """Stops where attention weights are none: every row of `rows` [B, T] must sum to 1 in every head.

    Raises:
        ValueError: for a sum off by more than 1e-4 (0.02 in half precision), or other shapes.
    """
    chosen = _mask("rows", rows, attention)
    sums = attention.sum(-1, dtype=torch.float32).transpose(1, 2)[chosen]
    off = (sums - 1).abs().max().item()
    if not off <= ROW_SUM.get(attention.dtype, HALF_ROW_SUM):
        raise ValueError(
            f"attention rows must sum to 1, one is off by {off:.2g}: run in eval mode with eager attention"
        )


def _roles(attention: Tensor, targets: Tensor, modifiers: Tensor) -> tuple[Tensor, Tensor]:
    """Who reads and who is read: the set that ends later reads."""
    aims, said = _mask("targets", targets, attention), _mask("modifiers", modifiers, attention)
    swap = (_last(said) > _last(aims))[:, None]
    return torch.where(swap, said, aims), torch.where(swap, aims, said)


def _mask(name: str, mask: Tensor, attention: Tensor) -> Tensor:
    if attention.ndim != 4 or attention.shape[2] != attention.shape[3]:
        raise ValueError(f"attention must be [B, H, T, T], got {list(attention.shape)}")
    if mask.shape != (attention.shape[0], attention.shape[2]):
        raise ValueError(f"{name} must be {[attention.shape[0], attention.shape[2]]}, got {list(mask.shape)}")
    found = mask.to(attention.device, torch.bool)
    if not found.any(1).all():
        raise ValueError(f"{name} is empty for prompt {int((~found.any(1)).nonzero()[0])} of the batch")
    return found


def _last(mask: Tensor) -> Tensor:
    """Position of the last true entry of each row."""
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


def _mean_over(mask: Tensor, values: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1)


def _distribution(rows: Tensor, width: int) -> Tensor:
    total = rows.sum(1, keepdim=True)
    if not (total > 0).all():
        raise ValueError("rows_plus and rows_minus must hold weight in every layer")
    return torch.nn.functional.pad(rows / total, (width - rows.shape[1], 0))
