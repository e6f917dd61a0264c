"""The quadratic 0/1 programme behind a bit plan, and the exchange search that finds a good plan for it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from impq.spqe import Floats, Integers

Flags = NDArray[np.bool_]

TIE = 1e-12  # objectives this close are equal: the plan with the lexicographically smaller list of low steps is kept
STARTS = 20


@dataclass(frozen=True, kw_only=True)
class Programme:
    """Minimise linear.q + q'pair q over q in {0,1}^n with costs.q >= need and q_{i,s+1} <= q_{i,s}.

    Attributes:
        linear: (n,) loss of each demotion step alone.
        pair: (n, n) symmetric; its diagonal counts as linear, since q^2 = q.
        costs: (n,) what each step saves, non-negative.
        need: what the plan must save at least.
        widths: number of bit widths; step k belongs to player k // (widths - 1).
    """

    linear: Floats
    pair: Floats
    costs: Integers
    need: int
    widths: int = 2

    def value(self, low: Flags) -> float:
        """Objective of one plan (n,)."""
        steps = np.flatnonzero(low)
        return float(self.linear[steps].sum() + self.pair[np.ix_(steps, steps)].sum())

    def feasible(self, low: Flags) -> bool:
        """Whether a plan (n,) saves enough and takes the steps of every player in order."""
        by_player = low.reshape(-1, self.widths - 1)
        return int(self.costs[low].sum()) >= self.need and not (by_player[:, 1:] & ~by_player[:, :-1]).any()


def greedy(programme: Programme, score: Floats) -> Flags:
    """Plan (n,) that takes steps in ascending order of `score` (n,) until it saves enough.

    A step whose turn comes before an earlier step of its player gives its turn to that one.
    """
    per_player = programme.widths - 1
    low = np.zeros(len(score), dtype=bool)
    taken = np.zeros(len(score) // per_player, dtype=np.int64)
    missing = programme.need
    for player in np.argsort(score, kind="stable") // per_player:
        if missing <= 0:
            break
        step = player * per_player + taken[player]
        low[step] = True
        taken[player] += 1
        missing -= int(programme.costs[step])
    return low


def exchange_search(programme: Programme, *, seed: int = 0, deadline: float = np.inf) -> Flags:
    """Best plan (n,) of 20 descents by single demotions and promotions and 1-in/1-out exchanges.

    The first descent starts from the greedy plan by loss per byte, the others from greedy plans of perturbed losses.

    Args:
        programme: what to minimise; a plan that takes every step must be feasible.
        seed: of the perturbed starts.
        deadline: `time.perf_counter()` after which no further start is made and descents stop.

    Returns:
        A feasible plan, ties broken towards the lexicographically smaller list of low steps.

    >>> game = Programme(linear=np.array([3.0, 1.0, 2.0]), pair=np.zeros((3, 3)), costs=np.array([1, 1, 1]), need=2)
    >>> exchange_search(game).tolist()
    [False, True, True]
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    alone = programme.linear + np.diag(programme.pair)
    price = alone / np.maximum(programme.costs, 1)
    best = greedy(programme, price)
    best_value = programme.value(best)
    for start in range(STARTS):
        if time.perf_counter() > deadline:
            break
        noise = rng.normal(size=len(price)) * (price.std() + abs(price.mean()))
        found = _descend(programme, best if start == 0 else greedy(programme, price + noise), deadline)
        value = programme.value(found)
        if value < best_value - TIE or (value <= best_value + TIE and smaller(found, best)):
            best, best_value = found, value
    return best


def smaller(one: Flags, other: Flags) -> bool:
    """Whether the sorted list of low steps of `one` comes before that of `other`."""
    return np.flatnonzero(one).tolist() < np.flatnonzero(other).tolist()


def _descend(programme: Programme, low: Flags, deadline: float) -> Flags:
    """Takes the best move until none lowers the objective, then equal moves that lower the list of steps."""
    low = low.copy()
    load = programme.pair @ low  # sum_j P_ij q_j, kept up to date move by move
    while time.perf_counter() <= deadline:
        moves = _moves(programme, low, load)
        if not moves:
            break
        for step in moves:
            load += (1 - 2 * int(low[step])) * programme.pair[:, step]
            low[step] = not low[step]
    return low


def _moves(programme: Programme, low: Flags, load: Floats) -> tuple[int, ...]:
    """Steps to flip in the best improving move; none when the plan is a local optimum and first among its equals."""
    sign = 1.0 - 2.0 * low
    diagonal = np.diag(programme.pair)
    change = sign * (programme.linear + diagonal + 2 * (load - diagonal * low))
    slack = int(programme.costs[low].sum()) - programme.need
    down, up = _movable(low, programme.widths)  # steps that may be taken, steps that may be taken back
    single = np.concatenate([down, up[programme.costs[up] <= slack]])
    swap = change[up][:, None] + change[down] - 2 * programme.pair[np.ix_(up, down)]
    per_player = programme.widths - 1
    barred = slack - programme.costs[up][:, None] + programme.costs[down] < 0
    barred |= (up // per_player)[:, None] == down // per_player
    swap[barred] = np.inf

    best_single = change[single].min(initial=np.inf)
    best_swap = swap.min(initial=np.inf)
    if min(best_single, best_swap) < -TIE:
        if best_single <= best_swap:
            return (int(single[change[single].argmin()]),)
        i, j = divmod(int(swap.argmin()), len(down))
        return int(up[i]), int(down[j])

    equal: list[tuple[int, ...]] = [(int(step),) for step in single[np.abs(change[single]) <= TIE]]
    equal += [(int(up[i]), int(down[j])) for i, j in np.argwhere(np.abs(swap) <= TIE) if down[j] < up[i]]
    for steps in equal:
        other = low.copy()
        other[list(steps)] ^= True
        if smaller(other, low):
            return steps
    return ()


def _movable(low: Flags, widths: int) -> tuple[Integers, Integers]:
    by_player = low.reshape(-1, widths - 1)
    edge = np.ones((len(by_player), 1), dtype=bool)
    down = ~by_player & np.hstack([edge, by_player[:, :-1]])
    up = by_player & np.hstack([~by_player[:, 1:], edge])
    return np.flatnonzero(down.ravel()), np.flatnonzero(up.ravel())
