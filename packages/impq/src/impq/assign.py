"""Which demotion steps to take: the quadratic knapsack behind a bit plan, solved with an honest bound."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from impq.exchange import TIE, Flags, Programme, exchange_search, smaller
from impq.relaxation import settle
from impq.spqe import Floats, Integers

ENUMERABLE = 14  # free steps up to which all plans are tried
MOST_PRODUCTS = 10_000  # beyond it HiGHS needs longer than any limit for a root bound weaker than the one at hand
MILP_SCALE = 1e4  # HiGHS stops at an absolute gap of 1e-6, so the largest coefficient becomes this


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Result of `assign`.

    Attributes:
        low: (steps,) which demotion steps are taken.
        objective: linear.q + q'pair q of it.
        bound: proven lower bound of the objective of every feasible plan.
        gap: (objective - bound) / |objective|; 0 when equal.
        status: "optimal" if proven to be the best plan; else "time_limit", also where too many products stay open for
            a mixed-integer programme to be worth its time.
        seconds: wall time.
    """

    low: Flags
    objective: float
    bound: float
    gap: float
    status: Literal["optimal", "time_limit"]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What is left of a programme when some steps are settled: the objective of the free ones is `constant` + ours.

    Attributes:
        free: indices of the open steps in the whole programme.
        linear, pair, costs, need: of the open steps.
        constant: objective of the settled steps.
        chains: (m, 2) positions of open steps (earlier, later) of one player that follow each other.
    """

    free: Integers
    linear: Floats
    pair: Floats
    costs: Integers
    need: int
    constant: float
    chains: Integers


def assign(
    linear: ArrayLike,
    pair: ArrayLike,
    costs: ArrayLike,
    capacity: int,
    *,
    widths: int = 2,
    time_limit: float = 10.0,
) -> Assignment:
    """Minimise linear.q + q'pair q over q in {0,1}^n subject to sum_k costs_k (1 - q_k) <= capacity.

    With more than two widths a step is taken only after the earlier ones of its player: q_{i,s+1} <= q_{i,s}. Up to 14
    steps all plans are tried. Beyond that an exchange search finds a plan, the dual bound of the convex relaxation
    settles the steps in which no better plan can differ, and the few that stay open are tried or go to HiGHS as a
    linearised mixed-integer programme. Plans within 1e-12 of the optimum are ties: where the open steps are tried, the
    one with the lexicographically smallest list of steps is returned, else ties are broken among plans one exchange
    apart.

    Args:
        linear: (n,) loss of each demotion step alone.
        pair: (n, n) symmetric losses of pairs, counted once per ordered pair; the diagonal adds to `linear`.
        costs: (n,) non-negative whole bytes (or bits) that each step saves.
        capacity: what the steps not taken may cost together.
        widths: number of bit widths; step k belongs to player k // (widths - 1).
        time_limit: seconds; 0 returns a quick plan with the first bound.

    Returns:
        Plan, objective, bound, gap and status. A plan found in time but not proven is never called optimal.

    Raises:
        ValueError: if shapes do not fit, a number is not finite, costs are negative or not whole, or `capacity` or
            `time_limit` is negative.

    >>> plan = assign([3.0, 1.0, 2.0], [[0, 0, 0], [0, 0, 4], [0, 4, 0]], [10, 10, 10], capacity=10)
    >>> plan.low.tolist(), plan.objective, plan.status
    ([True, True, False], 4.0, 'optimal')

    Source: section "Binary quadratic formulation" of the paper; the solver and its bound are ours.
    """
    began = time.perf_counter()
    deadline = began + time_limit
    programme = _programme(linear, pair, costs, capacity, widths)
    if not time_limit >= 0:
        raise ValueError(f"time_limit is {time_limit}; give seconds, 0 or more")

    tiny = time_limit > 0 and len(programme.linear) <= ENUMERABLE  # trying every plan takes milliseconds
    low = exchange_search(programme, deadline=-math.inf if tiny or not time_limit else deadline)
    objective = programme.value(low)
    settled = np.zeros(len(low), dtype=bool)
    bound = -math.inf
    while not tiny:  # a smaller rest has a tighter relaxation, so settle again as long as that helps
        rest = _rest(programme, low, settled)
        sub_bound, more = settle(
            rest.linear, rest.pair, rest.costs, rest.need, objective - rest.constant, deadline=deadline
        )
        bound = max(bound, min(rest.constant + sub_bound, objective))
        settled[rest.free[more]] = True
        settled = _with_chains(settled, low, widths)
        if time.perf_counter() >= deadline or settled.all() or more.sum() < max(1, len(more) // 10):
            break

    proven = False
    candidate: Flags | None
    if tiny or time.perf_counter() < deadline:
        rest = _rest(programme, low, settled)
        if len(rest.free) <= ENUMERABLE:
            candidate, proven = _enumerate(rest), True
        else:
            candidate, sub_bound, proven = _mixed_integer(rest, deadline)
            bound = max(bound, min(rest.constant + sub_bound, objective))
        if candidate is not None:
            found = low.copy()
            found[rest.free] = candidate
            value = programme.value(found)
            if value < objective - TIE or (value <= objective + TIE and smaller(found, low)):
                low, objective = found, value
    bound = objective if proven else min(bound, objective)
    return Assignment(
        low=low,
        objective=objective,
        bound=bound,
        gap=(objective - bound) / max(abs(objective), 1e-300) if objective > bound else 0.0,
        status="optimal" if proven else "time_limit",
        seconds=time.perf_counter() - began,
    )


def _programme(linear: ArrayLike, pair: ArrayLike, costs: ArrayLike, capacity: int, widths: int) -> Programme:
    a, p, c = np.asarray(linear, dtype=float), np.asarray(pair, dtype=float), np.asarray(costs)
    if a.ndim != 1 or not len(a):
        raise ValueError(f"linear has shape {a.shape}; give one loss per demotion step")
    if widths < 2 or len(a) % (widths - 1):
        raise ValueError(f"widths is {widths}, which does not fit {len(a)} steps; give the number of bit widths")
    if p.shape != (len(a), len(a)) or not np.allclose(p, p.T, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ValueError(f"pair must be a symmetric matrix of shape {(len(a), len(a))}, one row per step of linear")
    if not np.isfinite(a).all() or not np.isfinite(p).all():
        raise ValueError("linear and pair must be finite; look for a loss that overflowed in the game")
    if c.shape != a.shape or (c < 0).any() or (c != np.floor(c)).any():
        raise ValueError(f"costs must be {len(a)} whole numbers of bytes, 0 or more, one per step")
    if capacity < 0:
        raise ValueError(f"capacity is {capacity}: even the plan that takes every step is too large; raise the budget")
    c = c.astype(np.int64)
    return Programme(linear=a, pair=(p + p.T) / 2, costs=c, need=int(c.sum()) - int(capacity), widths=widths)


def _with_chains(settled: Flags, low: Flags, widths: int) -> Flags:
    """A step that is left settles the later ones of its player, one that is taken the earlier ones."""
    by_player, taken = settled.reshape(-1, widths - 1), low.reshape(-1, widths - 1)
    left_before = np.logical_or.accumulate(by_player & ~taken, axis=1)
    taken_after = np.logical_or.accumulate((by_player & taken)[:, ::-1], axis=1)[:, ::-1]
    return np.asarray(by_player | left_before | taken_after).ravel()


def _rest(programme: Programme, low: Flags, settled: Flags) -> Rest:
    free = np.flatnonzero(~settled)
    taken = np.flatnonzero(settled & low)
    per_player = programme.widths - 1
    follows = (
        np.flatnonzero((np.diff(free) == 1) & (free[1:] % per_player > 0)) if per_player > 1 else np.array([], int)
    )
    chains = np.stack([follows, follows + 1], axis=1)
    return Rest(
        free=free,
        linear=programme.linear[free] + 2 * programme.pair[np.ix_(free, taken)].sum(axis=1),
        pair=programme.pair[np.ix_(free, free)],
        costs=programme.costs[free],
        need=programme.need - int(programme.costs[taken].sum()),
        constant=programme.value(settled & low),
        chains=chains,
    )


def _enumerate(rest: Rest) -> Flags:
    """Best of all plans of a few steps; of the tied ones the lexicographically smallest."""
    n = len(rest.free)
    plans = (np.arange(2**n)[:, None] >> np.arange(n)[::-1]) & 1
    feasible = plans @ rest.costs >= rest.need
    for earlier, later in rest.chains:
        feasible &= plans[:, later] <= plans[:, earlier]
    plans = plans[feasible]
    values = plans @ rest.linear + ((plans @ rest.pair) * plans).sum(axis=1)
    ties = plans[values <= values.min() + TIE].astype(bool)
    return min(ties, key=lambda plan: np.flatnonzero(plan).tolist())


def _mixed_integer(rest: Rest, deadline: float) -> tuple[Flags | None, float, bool]:
    """Best plan of the open steps by HiGHS, a lower bound, and whether the plan is proven.

    y_ij = q_i q_j is written as y_ij >= q_i + q_j - 1 where it costs and y_ij <= q_i, q_j where it pays.
    """
    n = len(rest.free)
    i, j = np.triu_indices(n, 1)
    weight = 2 * rest.pair[i, j]
    used = np.abs(weight) > 1e-15 * max(np.abs(rest.linear).max(), np.abs(rest.pair).max())
    i, j, weight = i[used], j[used], weight[used]
    m = len(weight)
    if m > MOST_PRODUCTS:
        return None, -math.inf, False
    y = n + np.arange(m)
    objective = np.concatenate([rest.linear + np.diag(rest.pair), weight])
    scale = MILP_SCALE / max(np.abs(objective).max(), 1e-300)

    def rows(*entries: tuple[Integers, float]) -> csr_array:
        """One row per entry of the index arrays, with these coefficients."""
        count = len(entries[0][0])
        where = np.concatenate([columns for columns, _ in entries])
        data = np.concatenate([np.full(count, coefficient) for _, coefficient in entries])
        return csr_array((data, (np.tile(np.arange(count), len(entries)), where)), shape=(count, n + m))

    costly, paying = weight > 0, weight < 0
    divisor = max(int(np.gcd.reduce(rest.costs)), 1)
    filled = csr_array(np.concatenate([rest.costs // divisor, np.zeros(m)])[None])
    constraints = [
        LinearConstraint(filled, lb=-(-rest.need // divisor)),
        LinearConstraint(rows((y[costly], 1.0), (i[costly], -1.0), (j[costly], -1.0)), lb=-1.0),
        LinearConstraint(rows((y[paying], 1.0), (i[paying], -1.0)), ub=0.0),
        LinearConstraint(rows((y[paying], 1.0), (j[paying], -1.0)), ub=0.0),
    ]
    if len(rest.chains):
        constraints.append(LinearConstraint(rows((rest.chains[:, 1], 1.0), (rest.chains[:, 0], -1.0)), ub=0.0))
    integrality = np.concatenate([np.ones(n), np.zeros(m)])
    while True:
        seconds = deadline - time.perf_counter()
        if seconds <= 0:
            return None, -math.inf, False
        result = milp(
            objective * scale,
            integrality=integrality,
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"time_limit": seconds, "mip_rel_gap": 0.0},
        )
        bound = -math.inf if result.mip_dual_bound is None else float(result.mip_dual_bound) / scale
        if result.x is None:
            return None, bound, False
        plan = result.x[:n] > 0.5
        if int(rest.costs[plan].sum()) >= rest.need:
            return plan, bound, result.status == 0
        # HiGHS lets a row fail by 1e-6, which rounding can turn into bytes: forbid exactly this plan and go on
        constraints.append(
            LinearConstraint(np.concatenate([np.where(plan, -1.0, 1.0), np.zeros(m)]), lb=1.0 - plan.sum())
        )
