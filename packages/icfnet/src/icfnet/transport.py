"""Unbalanced entropic optimal transport between padded bags, all patients at once (section 3.4).

The plan minimises <P, D> + reg sum P (log P - 1) + tau KL(P 1 | a) + tau KL(P^T 1 | b), with uniform marginals a and b.
It is the plan of POT's `sinkhorn_knopp_unbalanced(..., reg_type="entropy")`; POT's own default is another one.
"""

from __future__ import annotations

import torch
from torch import Tensor

KERNEL_LIMIT = 60.0
"""Largest max(D) / reg for the kernel exp(-D / reg): beyond it, single precision loses the small entries."""
MASS_LIMIT = 1000.0
"""Largest tau / reg for the translation step: beyond it the plan no longer depends on it, and rounding errors do."""
CHECK_EVERY = 10  # iterations between two looks at the stop test, which has to wait for the device


def transport_cost(x: Tensor, y: Tensor, x_mask: Tensor | None = None, y_mask: Tensor | None = None) -> Tensor:
    """Squared Euclidean distances of rows freed from their minimum, divided by the patient's largest.

    Args:
        x: `[B, N, C]`.
        y: `[B, M, C]`.
        x_mask: `[B, N]` True at real rows; None is all.
        y_mask: `[B, M]` likewise.

    Returns:
        `[B, N, M]` in [0, 1] at real pairs, 0 elsewhere.

    >>> transport_cost(torch.tensor([[[0.0, 1], [0, 3]]]), torch.tensor([[[5.0, 6]]]))
    tensor([[[0.],
             [1.]]])
    """
    x = x - x.amin(-1, keepdim=True)
    y = y - y.amin(-1, keepdim=True)
    # one product of matrices; the subtraction may leave -1e-7 where two rows are equal
    cost = torch.baddbmm((x * x).sum(-1)[:, :, None] + (y * y).sum(-1)[:, None, :], x, y.mT, alpha=-2).clamp(min=0)
    if x_mask is not None:
        cost = cost.masked_fill(~x_mask[:, :, None], 0.0)
    if y_mask is not None:
        cost = cost.masked_fill(~y_mask[:, None, :], 0.0)
    largest = cost.amax((1, 2), keepdim=True)
    return cost / largest.where(largest > 0, 1.0)


@torch.no_grad()
def transport_plan(
    cost: Tensor,
    x_mask: Tensor | None = None,
    y_mask: Tensor | None = None,
    *,
    reg: float = 0.05,
    tau: float = 0.5,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    log_domain: bool | None = None,
) -> Tensor:
    """The plan P = diag(u) exp(-D / reg) diag(v) with u = (a / K v)^f, v = (b / K^T u)^f, f = tau / (tau + reg).

    Every tenth iteration also moves v by the best constant factor, which the plain iteration finds last: the solution
    is the same, reached in about half the iterations [design].

    Everything is in the precision of `cost`; no gradient flows through it. A patient without a real row or column gets
    a plan of zeros. The iteration ends when no v of any patient changes by more than `tolerance` of itself.

    Args:
        cost: `[B, N, M]` D.
        x_mask: `[B, N]` True at real rows, which share the mass 1; None is all.
        y_mask: `[B, M]` likewise.
        reg: entropic strength.
        tau: strength of the marginals; large tau is balanced transport.
        tolerance: of the stop test, made every 10 iterations.
        max_iterations: the iteration ends here at the latest.
        log_domain: iterate on log u and log v; by default where max(D) / reg > 60.

    Returns:
        `[B, N, M]`.

    Raises:
        ValueError: for a cost that is not `[B, N, M]`, negative or not finite, or a strength that is not positive.

    >>> plan = transport_plan(torch.tensor([[[0.0, 1], [1, 0]]]), reg=1.0, tau=1.0)
    >>> (plan * 1e4).round() / 1e4
    tensor([[[0.5112, 0.1881],
             [0.1881, 0.5112]]])
    """
    if cost.ndim != 3 or not cost.is_floating_point():
        raise ValueError(f"cost must be floating [B, N, M], got {cost.dtype} {list(cost.shape)}")
    if not reg > 0 or not tau > 0:
        raise ValueError(f"reg and tau must be > 0, got reg={reg} and tau={tau}")
    low, high = cost.detach().aminmax()
    if not (float(low) >= 0 and float(high) < float("inf")):
        raise ValueError("cost must be finite and >= 0; mask what is padding")
    a, b = _uniform(cost, x_mask, dim=1), _uniform(cost, y_mask, dim=2)
    exponent = (cost.detach().mT / -reg).contiguous()  # [B, M, N]: both products then run along memory
    power = tau / (tau + reg)
    if log_domain is None:
        log_domain = float(high) / reg > KERNEL_LIMIT
    iterate = _log_domain if log_domain else _kernel
    return iterate(exponent, a, b, power, tolerance, max_iterations).mT


def co_attend(x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor, *, reg: float, tau: float) -> Tensor:
    """P^T X: for each token of Y the patches of X that transport sends it, rows of mass about 1 / M.

    Args:
        x: `[B, N, C]` patches.
        y: `[B, M, C]` tokens of genes or text.
        x_mask: `[B, N]` True at real patches.
        y_mask: `[B, M]` True at real tokens.
        reg: entropic strength.
        tau: strength of the marginals.

    Returns:
        `[B, M, C]`; the gradient reaches X alone, not through the plan.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        cost = transport_cost(x.float(), y.float(), x_mask, y_mask)
        plan = transport_plan(cost, x_mask, y_mask, reg=reg, tau=tau)
    return plan.mT.to(x.dtype) @ x


def _uniform(cost: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Equal masses of sum 1 over the real entries, 0 at padding."""
    if mask is None:
        return cost.new_full((cost.shape[0], cost.shape[dim]), 1.0 / cost.shape[dim])
    real = mask.to(cost.dtype)
    return real / real.sum(1, keepdim=True).clamp(min=1)


def _kernel(exponent: Tensor, a: Tensor, b: Tensor, power: float, tolerance: float, most: int) -> Tensor:
    kernel = exponent.exp_()
    v = torch.ones_like(b)
    u = torch.zeros_like(a)
    for i in range(1, most + 1):
        last = v
        u = _ratio(a, torch.bmm(v[:, None, :], kernel)[:, 0], power)
        v = _ratio(b, torch.bmm(u[:, None, :], kernel.mT)[:, 0], power)  # as a row: ten times faster than as a column
        if i % CHECK_EVERY == 0:
            if bool(((v - last).abs() <= tolerance * v).all()):
                break
            v = v * _translation(a, b, u.log(), v.log(), power).exp()
    return kernel.mul_(u[:, None, :]).mul_(v[:, :, None])


def _ratio(mass: Tensor, reached: Tensor, power: float) -> Tensor:
    """(mass / reached)^power; where nothing can be reached it is large but finite, and its partner is 0."""
    return (mass / reached.clamp_(min=torch.finfo(mass.dtype).tiny)).pow_(power)


def _log_domain(exponent: Tensor, a: Tensor, b: Tensor, power: float, tolerance: float, most: int) -> Tensor:
    log_a, log_b = a.log(), b.log()  # -inf at padding
    log_v = torch.zeros_like(b)
    log_u = torch.zeros_like(a)
    for i in range(1, most + 1):
        last = log_v
        log_u = _log_ratio(log_a, torch.logsumexp(exponent + log_v[:, :, None], 1), power)
        log_v = _log_ratio(log_b, torch.logsumexp(exponent + log_u[:, None, :], 2), power)
        if i % CHECK_EVERY == 0:
            change = (log_v - last).nan_to_num_(nan=0.0)  # -inf - (-inf) at padding
            if bool((change.abs() <= tolerance).all()):
                break
            log_v = log_v + _translation(a, b, log_u, log_v, power)
    return exponent.add_(log_u[:, None, :]).add_(log_v[:, :, None]).exp_()


def _log_ratio(log_mass: Tensor, log_reached: Tensor, power: float) -> Tensor:
    nothing = torch.isneginf(log_mass) | torch.isneginf(log_reached)
    return ((log_mass - log_reached) * power).masked_fill(nothing, -torch.inf)


def _translation(a: Tensor, b: Tensor, log_u: Tensor, log_v: Tensor, power: float) -> Tensor:
    """The log of the factor by which v, and u by its inverse, come closest to the solution: `[B, 1]`.

    The iteration shrinks an error of that kind by f^2 a step alone, slower than any other; its best value has a closed
    form (translation invariance, Séjourné, Vialard and Peyré, 2022), (b^T v^-r / a^T u^-r)^(1 / 2r) with r = reg / tau.
    """
    strength = power / (1 - power) if power < 1 else float("inf")  # tau / reg
    if strength > MASS_LIMIT:
        return torch.zeros_like(a[:, :1])

    def moment(mass: Tensor, log_scale: Tensor) -> Tensor:
        terms = torch.where(mass > 0, mass.log() - log_scale / strength, -torch.inf)
        return torch.logsumexp(terms, 1, keepdim=True)

    return (strength / 2 * (moment(b, log_v) - moment(a, log_u))).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
