"""The convex relaxation of a quadratic 0/1 programme: a proven lower bound and the steps it settles."""

from __future__ import annotations

import time

import numpy as np

from impq.exchange import Flags
from impq.spqe import Floats, Integers

ITERATIONS = 600
BOUND_EVERY = 10
ROUNDING = 1e-11  # relative; a bound must beat the incumbent by more before it settles a step


def convex_form(linear: Floats, pair: Floats) -> tuple[Floats, Floats]:
    """The same objective on {0,1}^n with a positive semidefinite matrix of small diagonal.

    q^2 = q lets a diagonal d move between the terms, linear + d and pair - diag(d), and a smaller diagonal gives a
    tighter relaxation. Where the matrix is positive definite and its diagonal positive, d = t diag(pair) with the
    largest t that keeps it semidefinite: K = (1 - a) C + a diag(C) with singular C goes back to (1 - a) C. Else
    d = lambda_min, the smallest eigenvalue.

    Args:
        linear: (n,).
        pair: (n, n) symmetric.

    Returns:
        Linear term and semidefinite matrix.

    >>> linear, pair = convex_form(np.zeros(2), np.array([[1.0, -0.5], [-0.5, 1.0]]))
    >>> linear.round(6).tolist(), pair.round(6).tolist()
    ([0.5, 0.5], [[0.5, -0.5], [-0.5, 0.5]])
    """
    diagonal = np.diag(pair)
    scale = np.abs(pair).max(initial=0.0)
    if not scale:
        return linear, pair
    if (diagonal > 1e-9 * scale).all():
        root = np.sqrt(diagonal)
        shift = np.linalg.eigvalsh(pair / np.outer(root, root))[0] * diagonal
    else:
        shift = np.full(len(linear), -np.inf)
    least = np.linalg.eigvalsh(pair)[0]
    if not np.isfinite(shift).all() or shift.min() < 0:
        shift = np.full(len(linear), least)
    shift = shift - 1e-12 * scale  # stays semidefinite under rounding
    return linear + shift, pair - np.diag(shift)


def fractional_knapsack(gradient: Floats, costs: Floats, need: float) -> tuple[float, float]:
    """min g.y over 0 <= y <= 1 with c.y >= need, and the multiplier of the constraint.

    Items with g < 0 are taken whole, the rest in ascending g / c until the knapsack is filled.

    Args:
        gradient: (n,).
        costs: (n,) non-negative.
        need: at most the sum of the costs.

    Returns:
        Minimum, and lambda >= 0 with minimum = lambda need + sum min(0, g - lambda c).

    >>> fractional_knapsack(np.array([1.0, 3.0, -1.0]), np.array([1.0, 1.0, 1.0]), 2.5)
    (1.5, 3.0)
    """
    missing = need - costs[gradient < 0].sum()
    price = 0.0
    if missing > 0:
        useful = np.flatnonzero((gradient >= 0) & (costs > 0))
        order = useful[np.argsort(gradient[useful] / costs[useful], kind="stable")]
        last = order[min(int(np.searchsorted(np.cumsum(costs[order]), missing)), len(order) - 1)]
        price = float(gradient[last] / costs[last])
    return float(price * need + np.minimum(0.0, gradient - price * costs).sum()), price


def settle(
    linear: Floats, pair: Floats, costs: Integers, need: int, incumbent: float, *, deadline: float = np.inf
) -> tuple[float, Flags]:
    """Lower bound of min linear.q + q'pair q s.t. costs.q >= need, and the steps in which no better plan differs.

    f(y) >= f(x) + f'(x).(y - x) for the convex form f and any x; minimised over the relaxed plans y this is a bound,
    and a step whose reduced cost |f'(x)_k - lambda c_k| exceeds incumbent - bound is the same in every plan that is as
    good as the incumbent. x comes from accelerated projected gradient descent. The order of the steps of a player is
    left out of the relaxation.

    Args:
        linear: (n,).
        pair: (n, n) symmetric.
        costs: (n,) non-negative.
        need: at most the sum of the costs.
        incumbent: objective of a known plan.
        deadline: `time.perf_counter()` at which to stop; one bound is always computed.

    Returns:
        Bound, and flags (n,) of the settled steps, which stay as they are in the incumbent.

    >>> bound, settled = settle(np.array([3.0, 1.0, 2.0]), np.zeros((3, 3)), np.array([1, 1, 1]), 2, incumbent=3.0)
    >>> round(bound, 6), settled.tolist()  # the last item to be filled in sets the price and stays open
    (3.0, [True, True, False])
    """
    linear, pair = convex_form(linear, pair)
    unit = max(int(costs.max(initial=1)), 1)
    share, goal = costs / unit, need / unit
    curvature = 2 * float(np.linalg.eigvalsh(pair)[-1]) if pair.any() else 0.0
    margin = ROUNDING * (abs(incumbent) + np.abs(linear).sum() + np.abs(pair).sum())

    best = -np.inf
    settled = np.zeros(len(linear), dtype=bool)
    x = project(np.zeros(len(linear)), share, goal)
    ahead, momentum = x, 1.0
    for iteration in range(ITERATIONS):
        if iteration % BOUND_EVERY == 0:
            gradient = linear + 2 * pair @ x
            minimum, price = fractional_knapsack(gradient, share, goal)
            value = float(x @ (linear + pair @ x))
            bound = value - float(gradient @ x) + minimum - margin
            best = max(best, bound)
            settled |= bound + np.abs(gradient - price * share) > incumbent + margin
            converged = value - best <= 1e-7 * (abs(incumbent) + abs(value)) + margin
            if converged or settled.all() or not curvature or time.perf_counter() > deadline:
                break
        step = project(ahead - (linear + 2 * pair @ ahead) / curvature, share, goal)
        if (ahead - step) @ (step - x) > 0:  # the momentum points uphill: start it anew
            momentum = 1.0
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = step + (momentum - 1) / following * (step - x)
        x, momentum = step, following
    return float(best), settled


def project(point: Floats, costs: Floats, need: float) -> Floats:
    """The nearest y to `point` (n,) with 0 <= y <= 1 and costs.y >= need.

    y = clip(point + m c, 0, 1) with the smallest m >= 0 that fills the knapsack; c.y is piecewise linear in m, so m is
    found exactly from its sorted break points.

    >>> project(np.array([0.2, 0.4]), np.array([1.0, 1.0]), 1.0).round(6).tolist()
    [0.4, 0.6]
    """
    y = np.clip(point, 0, 1)
    missing = need - costs @ y
    if missing <= 0:
        return y
    used = costs > 0
    z, c = point[used], costs[used]
    breaks = np.maximum(np.concatenate([-z / c, (1 - z) / c]), 0)
    slopes = np.concatenate([c**2, -(c**2)])
    order = np.argsort(breaks, kind="stable")
    breaks, slope = breaks[order], np.cumsum(slopes[order])
    filled = np.concatenate([[0.0], np.cumsum(slope[:-1] * np.diff(breaks))])
    k = max(int(np.searchsorted(filled, missing, side="right")) - 1, 0)
    rest = (missing - filled[k]) / slope[k] if slope[k] > 1e-15 else 0.0
    return np.asarray(np.clip(point + (breaks[k] + rest) * costs, 0, 1))
