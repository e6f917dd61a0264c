"""Unbalanced entropic optimal transport between padded bags, all patients at once (section 3.4).

The plan minimises <P, D> + reg sum P (log P - 1) + tau KL(P 1 | a) + tau KL(P^T 1 | b), with uniform marginals a and b.
It is the plan of POT's `sinkhorn_knopp_unbalanced(..., reg_type="entropy")`; POT's own default is another one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KERNEL_LIMIT = 60.0
"""Largest max(D) / reg for the kernel exp(-D / reg): beyond it, single precision loses the small entries."""


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

    The fixed point is found by a safeguarded Newton's method on the M numbers log v, at the cost of N M^2 a round: five
    rounds or so where the plain iteration takes a hundred [design].

    Everything is in the precision of `cost`; no gradient flows through it. A patient without a real row or column gets
    a plan of zeros. It ends when a round of the two scalings changes no v of any patient by more than `tolerance`.

    Args:
        cost: `[B, N, M]` D.
        x_mask: `[B, N]` True at real rows, which share the mass 1; None is all.
        y_mask: `[B, M]` likewise.
        reg: entropic strength.
        tau: strength of the marginals; large tau is balanced transport.
        tolerance: of the stop test, relative to v.
        max_iterations: rounds at the most.
        log_domain: never leave log u and log v; by default where max(D) / reg > 60.

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
    kernel, scaled, least = exponent.exp_(), torch.empty_like(exponent), torch.finfo(a.dtype).tiny

    def reached_from(v: Tensor) -> tuple[Tensor, Tensor]:
        """K v and u; where nothing can be reached u is large but finite, and its partner is 0."""
        reached = torch.bmm(v[:, None, :], kernel)[:, 0].clamp_(min=least)
        return reached, (a / reached).pow_(power)

    def round_of(log_v: Tensor) -> tuple[Tensor, Tensor]:
        v = log_v.exp()
        reached, u = reached_from(v)
        # as a row: ten times faster than as a column
        sent = torch.bmm(u[:, None, :], kernel.mT)[:, 0].clamp_(min=least)
        most_v, most_sent = v.amax(1, keepdim=True), sent.amax(1, keepdim=True)
        # S = diag(1 / K^T u) K^T diag(u / K v) K diag(v), a root on either side: u / K v overflows where K is small
        root = (u / most_sent).sqrt_() * (most_v / reached).sqrt_()
        torch.mul(kernel, root[:, None, :], out=scaled)
        slope = torch.bmm(scaled, scaled.mT) * (v / most_v)[:, None, :] * (most_sent / sent)[:, :, None]
        return (b / sent).log_().mul_(power), slope

    v = _fixed_point(round_of, a, b, power, tolerance, most).exp()
    return kernel.mul_(reached_from(v)[1][:, None, :]).mul_(v[:, :, None])


def _log_domain(exponent: Tensor, a: Tensor, b: Tensor, power: float, tolerance: float, most: int) -> Tensor:
    log_a, log_b = a.log(), b.log()  # -inf at padding

    def log_u_from(log_v: Tensor) -> Tensor:
        return _log_ratio(log_a, torch.logsumexp(exponent + log_v[:, :, None], 1), power)

    def round_of(log_v: Tensor) -> tuple[Tensor, Tensor]:
        to_x, to_y = exponent + log_v[:, :, None], exponent + log_u_from(log_v)[:, None, :]
        return _log_ratio(log_b, torch.logsumexp(to_y, 2), power), torch.bmm(to_y.softmax(2), to_x.softmax(1).mT)

    log_v = _fixed_point(round_of, a, b, power, tolerance, most)
    return exponent.add_(log_u_from(log_v)[:, None, :]).add_(log_v[:, :, None]).exp_()


def _log_ratio(log_mass: Tensor, log_reached: Tensor, power: float) -> Tensor:
    nothing = torch.isneginf(log_mass) | torch.isneginf(log_reached)
    return ((log_mass - log_reached) * power).masked_fill(nothing, -torch.inf)


def _fixed_point(
    round_of: Callable[[Tensor], tuple[Tensor, Tensor]], a: Tensor, b: Tensor, power: float, tolerance: float, most: int
) -> Tensor:
    """log v with log v = F(log v), F a round of the two scalings: Newton's method, with F itself as the safeguard.

    F brings any two log v closer by f^2 at least, in the largest entry; its Jacobian is f^2 S, S the product of the
    plan's conditional distributions, with rows of sum 1, so that (1 - f^2 S) d = F(log v) - log v can always be solved.
    A Newton point is kept only if it shrinks the change by f^2 at least. Otherwise the patient goes back and takes the
    plain round, and its next Newton step is half as long: two rounds never do less than one of the plain iteration.

    Args:
        round_of: gives F(log v) `[B, M]` and S `[B, M, M]`.
        a: masses of x `[B, N]`.
        b: masses of y `[B, M]`.
        power: f.
        tolerance: the largest change of log v by a round at which a patient is done.
        most: rounds at the most.

    Returns:
        F of the last kept log v `[B, M]`; -inf at padding.
    """
    real = (b > 0) & (a > 0).any(1, keepdim=True)
    rate, m, eps = power * power, b.shape[1], torch.finfo(b.dtype).eps
    # with rounding errors on top the matrix stays regular as f comes near 1, where a common factor of v is left free
    one = torch.eye(m, dtype=b.dtype, device=b.device) + 4 * eps / m
    log_v = kept = torch.zeros_like(b).masked_fill(~real, -torch.inf)
    last = torch.full_like(b[:, :1], torch.inf)
    length = torch.ones_like(last)
    plain = torch.ones_like(real[:, :1])  # whether log v came by a plain round, and so is kept untested
    done = torch.zeros_like(plain)
    for _ in range(most):
        image, slope = round_of(log_v)
        change = (image - log_v).masked_fill(~real, 0.0)
        size = change.abs().amax(1, keepdim=True)
        keep = plain | (size <= (rate * last).clamp(min=tolerance))
        kept = torch.where(keep & real, image, kept)
        # a small change that a plain round does not shrink is one of rounding errors
        done = done | (keep & ((size <= tolerance) | (plain & (size >= last) & (size < eps**0.5))))
        if bool(done.all()):
            break
        right = _balanced(change, torch.where(real, b.log() + log_v - image / power, -torch.inf), power)
        slope = slope.masked_fill(~real[:, :, None], 0.0)
        newton = torch.linalg.solve_ex(one - rate * slope, right)[0].masked_fill(~real, 0.0)
        half = torch.where(length > 2 * (1 - rate), length / 2, 1.0)  # shorter ones cannot shrink the change by f^2
        length = torch.where(plain, length, torch.where(keep, (2 * length).clamp(max=1), half))
        log_v = torch.where(done, log_v, torch.where(keep, log_v + length * newton, kept))
        last, plain = torch.where(keep, size, last), ~keep
    return kept


def _balanced(change: Tensor, log_mass: Tensor, power: float) -> Tensor:
    """The change less its part of second order in the direction of a common factor of v, where 1 - f^2 is small.

    The mean of the change over the masses p of the plan's columns becomes f times the relative gap between the sums of
    the wanted masses, p exp(change / f), and of p: first-order terms are the same, and far from the solution the step
    does not overshoot by the divergence of p from what is wanted, divided by 1 - f^2.
    """
    gap = torch.logsumexp(log_mass + change / power, 1, keepdim=True) - torch.logsumexp(log_mass, 1, keepdim=True)
    mean = (log_mass.softmax(1) * change).sum(1, keepdim=True)
    return change + (power * gap.expm1() - mean)
