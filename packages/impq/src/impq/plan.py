"""From a measured game to a bit plan: the plan of least modelled loss within a budget, and whether it is settled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from impq.assign import Assignment, assign
from impq.bit_plan import BitPlan
from impq.budget import Budget
from impq.exchange import Flags
from impq.game import Game, GameHeader
from impq.interaction import Interaction, Quadratic, quadratic
from impq.spqe import Floats

__all__ = ["BitPlan", "plan_of", "settled", "solve"]

LEAST_WALKS = 10  # through every step, before its interval is trusted


def solve(
    game: Game,
    budget: Budget,
    *,
    interaction: Interaction = "covariance",
    alpha: float = 0.5,
    scores: ArrayLike | None = None,
    time_limit: float = 10.0,
) -> BitPlan:
    """The plan of least modelled loss within a budget: min a.q + q'K q s.t. sum_k c_k (1 - q_k) <= capacity.

    A budget of all high or more gives all high, and one that leaves nothing above all low gives all low; neither calls
    the solver.

    Args:
        game: measured losses.
        budget: what the plan may use.
        interaction, alpha: the model of the loss, see `quadratic`.
        scores: (steps,) in place of the measured losses, higher = demotion hurts more: other methods through the same
            solver. They are shifted above 0 if one is not, so that no step is taken that the budget does not ask for:
            a negative score (LIM is -cos) does not mean that demotion helps. Such a plan predicts no loss.
        time_limit: seconds.

    Returns:
        The plan with status, bound and gap.

    Raises:
        ValueError: if the budget is infeasible or needs more steps than the game's walks take, scores have another
            shape, or the game does not allow `interaction`.

    Source: arXiv 2509.15455, binary quadratic programme; bound and solver are ours.

    >>> from impq.play import play
    >>> from impq.table_games import planted_game
    >>> from impq.value import TableValue
    >>> planted = planted_game("positive", seed=0, players=4)
    >>> game = play(TableValue(planted.calibration), planted.header, n_permutations=20)
    >>> plan = solve(game, Budget(avg_bits=3.0), interaction="precedence")
    >>> sorted(plan.bits.values()), plan.status
    ([2, 2, 4, 4], 'optimal')
    """
    header = game.header
    if scores is None:
        _check_reach(header, budget)
        model = quadratic(game, interaction, alpha)
    else:
        linear = np.asarray(scores, dtype=float)
        if linear.shape != (header.walks.steps,):
            raise ValueError(f"scores has shape {linear.shape}; give one per demotion step, {header.walks.steps}")
        model = Quadratic(linear=_above_zero(linear), pair=np.zeros((len(linear), len(linear))))
    found = _minimise(header, budget, model.linear, model.pair, time_limit)
    end = _end(header, budget)
    measured = scores is None
    return _plan(
        header,
        found.low,
        budget,
        interaction=interaction if measured else None,
        alpha=alpha if measured and interaction == "covariance" else None,
        predicted_loss=found.objective if measured else None,
        status=found.status if end is None else "uniform",
        gap=found.gap,
        bound=found.bound,
        seconds=found.seconds,
        game_sha256=game.sha256,
    )


def plan_of(header: GameHeader, low: ArrayLike, budget: Budget) -> BitPlan:
    """The plan that takes given demotion steps, for plans from elsewhere: greedy, random, written by hand.

    Args:
        header: of the game that knows players and sizes.
        low: flags (steps,) of the steps taken.
        budget: that the plan is to keep.

    Raises:
        ValueError: if `low` has another shape, skips a step of a player, or exceeds the budget.
    """
    taken = np.asarray(low, dtype=bool)
    if taken.shape != (header.walks.steps,):
        raise ValueError(f"low has shape {taken.shape}; give one flag per demotion step, {header.walks.steps}")
    over = int(budget.costs(header.players, header.bits)[~taken].sum()) - _capacity(header, budget)
    if over > 0:
        raise ValueError(f"low exceeds the budget by {over} of its units; take more steps or raise the budget")
    return _plan(header, taken, budget)


def settled(
    game: Game,
    budgets: Sequence[Budget],
    *,
    interaction: Interaction = "covariance",
    alpha: float = 0.5,
    time_limit: float = 10.0,
) -> bool:
    """Whether no plan for the budgets changes while the Shapley values move within their 95 % intervals.

    A plan stays the best for all such values if it does for the worst ones: its low steps dearer by half an interval
    (Student's t, see `Game.ci`), the others cheaper by as much. Interactions are kept as estimated, and nothing is said
    of another objective than the one asked for, nor of how well that one models the loss.

    Args:
        game: measured so far.
        budgets: for which plans are wanted.
        interaction, alpha, time_limit: as for `solve`.

    Returns:
        True only if at least 10 walks (antithetic pairs) take every step, and each plan is proven best for the
        estimates and for the worst values.

    Raises:
        ValueError: if a budget needs more steps than the walks take, or see `quadratic`.
    """
    for budget in budgets:
        _check_reach(game.header, budget)
    visits = (~np.isnan(game.marginals)).sum(axis=0)
    if visits.min() < LEAST_WALKS * (2 if game.header.antithetic else 1):
        return False
    model = quadratic(game, interaction, alpha)
    error = game.ci()[:, 1] - game.shapley
    for budget in budgets:
        if _end(game.header, budget) is not None:
            continue
        found = _minimise(game.header, budget, model.linear, model.pair, time_limit)
        worst = model.linear + np.where(found.low, error, -error)
        again = _minimise(game.header, budget, worst, model.pair, time_limit)
        if {found.status, again.status} != {"optimal"} or not np.array_equal(found.low, again.low):
            return False
    return True


def _check_reach(header: GameHeader, budget: Budget) -> None:
    """Refuses a budget whose plans lie beyond the last step of truncated walks, where nothing was measured."""
    if header.walks.end is not None:
        return
    costs, capacity = budget.costs(header.players, header.bits), _capacity(header, budget)
    if header.direction == "demote":
        needed = budget.most_steps(header.players, header.bits, header.other_bytes)
    else:  # on the way up, as many steps as may be taken back
        needed = int(np.searchsorted(np.cumsum(np.sort(costs)), capacity, side="right"))
    if needed > header.walks.length:
        looser = "looser" if header.direction == "demote" else "tighter"
        raise ValueError(
            f"budget may need {needed} steps, the game's walks take {header.walks.length}: play walks of depth "
            f"{needed}, or choose a {looser} budget"
        )


def _above_zero(scores: Floats) -> Floats:
    low = float(scores.min())
    return scores if low > 0 else scores - low + (float(np.ptp(scores)) / len(scores) or 1.0)


def _minimise(header: GameHeader, budget: Budget, linear: Any, pair: Any, time_limit: float) -> Assignment:
    end = _end(header, budget)
    if end is not None:
        value = float(linear[end].sum() + pair[np.ix_(end, end)].sum())
        return Assignment(low=end, objective=value, bound=value, gap=0.0, status="optimal", seconds=0.0)
    costs = budget.costs(header.players, header.bits)
    return assign(linear, pair, costs, _capacity(header, budget), widths=len(header.bits), time_limit=time_limit)


def _capacity(header: GameHeader, budget: Budget) -> int:
    return budget.capacity(header.players, header.bits, header.other_bytes)


def _end(header: GameHeader, budget: Budget) -> Flags | None:
    """The plan with all players at one end, if the budget leaves no choice or needs none; else None."""
    costs, capacity = budget.costs(header.players, header.bits), _capacity(header, budget)
    if capacity >= costs.sum():
        return np.zeros(len(costs), dtype=bool)
    if capacity < costs.min():
        return np.ones(len(costs), dtype=bool)
    return None


def _plan(header: GameHeader, low: Flags, budget: Budget, **decided: Any) -> BitPlan:
    by_player = low.reshape(len(header.players), -1)
    if (by_player[:, 1:] & ~by_player[:, :-1]).any():
        raise ValueError("low takes a later step of a player without the earlier one")
    return BitPlan(
        model_name=header.model_name,
        model_hash=header.model_hash,
        backend=header.backend,
        group_size=header.group_size,
        granularity=header.granularity,
        widths=header.bits,
        players=header.players,
        levels=tuple(int(level) for level in by_player.sum(axis=1)),
        other_bytes=header.other_bytes,
        budget=budget,
        loss_unit=header.loss_unit,
        **decided,
    )
