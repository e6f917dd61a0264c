"""The projection constraint: how far projections onto the refusal directions have moved from their reference."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from procon.config import Norm, Reduction


def project(hidden: Tensor, direction: Tensor) -> Tensor:
    """Projections of hidden states onto one direction, z = rᵀx, computed in float32 whatever the dtype of x.

    Autograd keeps nothing but r for it: neither x nor a float32 copy of x is stored, and activation checkpointing,
    which counts what the first forward pass stored, need not see it again.

    Args:
        hidden: x [..., d].
        direction: r [d]; no gradient flows into it.

    Returns:
        z [...], float32.

    Raises:
        ValueError: if the last dimension of `hidden` is not that of `direction`.

    >>> project(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([0.6, 0.8]))
    tensor([5.0000, 0.6000])

    Source: arXiv 2509.06795, section 4 (z^(l) = r^(l)ᵀ x^(l)).
    """
    if direction.ndim != 1 or hidden.ndim < 1 or hidden.shape[-1] != direction.shape[0]:
        raise ValueError(
            f"direction must be [d] for hidden [..., d], got {list(direction.shape)} for {list(hidden.shape)}; "
            "use directions of this model"
        )
    projected: Tensor = _Projection.apply(hidden, direction.detach())
    return projected


def projection_term(
    z: Tensor,
    z_0: Tensor,
    mask: Tensor,
    *,
    norm: Norm = "abs",
    reduction: Reduction = "mean",
    tokens: float | Tensor | None = None,
    samples: float | Tensor | None = None,
    scale: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """The loss L_ProCon of a batch: what training adds, times α, to the cross-entropy.

    With Δ = (z − z_0) / scale over response tokens j of sample s and layers l, `norm` sets what is summed over s and l:
    "abs" Σ_j |Δ|, "squared" Σ_j Δ², "l2_tokens" √(Σ_j Δ²). `reduction` sets what the sum is divided by:

    ===========  ====================  ===========
    reduction    "abs", "squared"      "l2_tokens"
    ===========  ====================  ===========
    mean         tokens · L            samples · L
    layer_sum    tokens                samples
    paper_sum    samples               samples
    ===========  ====================  ===========

    The paper prints ‖z − z_0‖₂ of a scalar, summed over layers and tokens: "abs" with "paper_sum"; its figure 1 prints
    the same norm over the vector of projections: "l2_tokens". **α does not transfer between norms or reductions**: for
    L layers and m tokens a sample, α with "mean" is the paper's α times L·m.

    Args:
        z: projections [B, T, L] of the model in training, with gradient.
        z_0: of the reference [B, T, L]; no gradient flows into it.
        mask: which tokens are response tokens [B, T], boolean; others contribute neither value nor gradient.
        norm: see above.
        reduction: see above.
        tokens: number of response tokens to divide by in place of those in `mask`: where the batch is one of several
            (gradient accumulation, several processes), that of all of them over the number of processes.
        samples: number of samples to divide by in place of those with a response token; likewise.
        scale: [L], positive; a typical size of z per layer, which makes α comparable between models.
        segments: [B, T], integer; which sample a token belongs to where one row packs several, counted from 0 in each
            row. Without it a row is one sample.

    Returns:
        A scalar; 0, with gradient 0, where there is no response token. Gradients at Δ = 0 are 0.

    Raises:
        ValueError: for shapes that do not fit, or an unknown norm or reduction.
        TypeError: if `mask` is not boolean.

    >>> z, z_0 = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.zeros(1, 3, 1)
    >>> projection_term(z, z_0, torch.tensor([[True, True, False]]))
    tensor(1.5000)

    Source: arXiv 2509.06795, section 4 (L_ProCon); the reductions other than "paper_sum" are ours.
    """
    _check(z, z_0, mask, norm, reduction, scale, segments)
    difference = z.float() - z_0.detach().float()
    if scale is not None:
        difference = difference / scale.to(difference)
    difference = torch.where(mask[..., None], difference, 0.0)  # before the norm: NaN elsewhere must not come through
    if norm == "abs":
        total = difference.abs().sum()
    elif norm == "squared":
        total = difference.square().sum()
    else:
        sample, most = _samples(mask, segments)
        squares = difference.new_zeros(most, z.shape[-1])
        squares = squares.index_add(0, sample.flatten(), difference.square().flatten(0, 1))
        moved = squares > 0  # √ has an infinite slope at 0, which would make the gradient NaN at the first step
        total = torch.where(moved, torch.where(moved, squares, 1.0).sqrt(), 0.0).sum()
    if reduction == "paper_sum" or norm == "l2_tokens":
        count = torch.unique(_samples(mask, segments)[0][mask]).numel() if samples is None else samples
    else:
        count = mask.sum() if tokens is None else tokens
    divisor = torch.as_tensor(count, dtype=torch.float32, device=total.device)
    if reduction == "mean":
        divisor = divisor * z.shape[-1]
    return total / torch.where(divisor > 0, divisor, 1.0)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, direction: Tensor) -> Tensor:
        ctx.direction, ctx.dtype = direction, hidden.dtype  # not save_for_backward: checkpointing would count it
        with torch.autocast(hidden.device.type, enabled=False):  # autocast would compute the product in bfloat16
            return hidden.float() @ direction.float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return (gradients[0][..., None] * ctx.direction.float()).to(ctx.dtype), None


def _samples(mask: Tensor, segments: Tensor | None) -> tuple[Tensor, int]:
    """The number [B, T] of the sample each token belongs to, distinct over the batch, and how many there can be."""
    most = 1 if segments is None or not segments.numel() else int(segments.max()) + 1
    row = torch.arange(mask.shape[0], device=mask.device)[:, None] * most
    return row.expand(mask.shape) if segments is None else row + segments, mask.shape[0] * most


def _check(
    z: Tensor, z_0: Tensor, mask: Tensor, norm: str, reduction: str, scale: Tensor | None, segments: Tensor | None
) -> None:
    if z.ndim != 3 or z.shape != z_0.shape:
        raise ValueError(f"z and z_0 must both be [B, T, L], got {list(z.shape)} and {list(z_0.shape)}")
    for name, tensor in (("mask", mask), ("segments", segments)):
        if tensor is not None and tensor.shape != z.shape[:2]:
            raise ValueError(f"{name} must be [B, T] = {list(z.shape[:2])}, got {list(tensor.shape)}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}; use labels != -100")
    if scale is not None and scale.shape != z.shape[2:]:
        raise ValueError(f"scale must be [L] = {list(z.shape[2:])}, got {list(scale.shape)}")
    for name, value, allowed in (("norm", norm, get_args(Norm)), ("reduction", reduction, get_args(Reduction))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
