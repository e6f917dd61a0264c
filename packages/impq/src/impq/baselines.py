"""Cheaper ways to a plan from the value function alone: isolated losses, greedy demotion, and controls without data."""

from __future__ import annotations

import numpy as np
from aisec_common.seeding import numpy_rng

from impq.spqe import Floats, Integers
from impq.value import Memo, Value
from impq.walks import Coalition, Walks, coalition_of


def isolated(value: Value, players: int, widths: int = 2) -> Floats:
    """What each step costs while every other player is at its high width, v(after) - v(before).

    Args:
        value: the value function, asked for L (S - 1) + 1 coalitions.
        players: number of players L.
        widths: number of bit widths S.

    Returns:
        (steps,), positive where demotion hurts.

    >>> isolated(lambda q: [float(c.bit_count()) ** 2 for c in q], 3).tolist()
    [1.0, 1.0, 1.0]
    """
    return _alone(value, players, widths, others=0)


def isolated_promote(value: Value, players: int, widths: int = 2) -> Floats:
    """What each step costs while every other player is at its low width; otherwise as `isolated`.

    >>> isolated_promote(lambda q: [float(c.bit_count()) ** 2 for c in q], 3).tolist()
    [5.0, 5.0, 5.0]
    """
    return _alone(value, players, widths, others=widths - 1)


def greedy_order(value: Value, players: int, depth: int, widths: int = 2) -> tuple[Integers, Floats]:
    """Demotes one step at a time, each time the one after which the measured loss is least; ties take the first player.

    Args:
        value: the value function; for two widths it is asked for depth L - depth (depth - 1) / 2 coalitions.
        players: number of players L.
        depth: how many steps to take.
        widths: number of bit widths S.

    Returns:
        The steps (depth,) in the order in which they are taken, and the loss after each.

    Raises:
        ValueError: if `depth` is not between 1 and all steps, or a loss is not finite.

    >>> greedy_order(lambda q: [float(c) for c in q], 3, 2)[0].tolist()
    [0, 1]
    """
    walks = Walks(players=players, widths=widths, depth=depth)  # checks the numbers
    memo = Memo(value)
    level = [0] * players
    state: Coalition = 0
    order, losses = [], []
    for _ in range(walks.length):
        open_steps = [player * (widths - 1) + level[player] for player in range(players) if level[player] < widths - 1]
        found = memo([state | 1 << step for step in open_steps])
        best = int(np.argmin(found))
        step = open_steps[best]
        state |= 1 << step
        level[step // (widths - 1)] += 1
        order.append(step)
        losses.append(found[best])
    return np.array(order, dtype=np.int64), np.array(losses)


def random_scores(steps: int, seed: int) -> Floats:
    """Scores drawn uniformly from [0, 1): with equal costs, a random plan."""
    return numpy_rng(seed, "random-scores").random(steps)


def shuffled(scores: Floats, seed: int) -> Floats:
    """The same scores given to other steps: what is left when only their sizes are known."""
    return numpy_rng(seed, "shuffled-scores").permutation(scores)


def first_low(players: int, widths: int = 2) -> Floats:
    """Scores that demote the first blocks first.

    >>> first_low(3).tolist()
    [1.0, 2.0, 3.0]
    """
    return np.repeat(np.arange(1.0, players + 1), widths - 1)


def last_low(players: int, widths: int = 2) -> Floats:
    """Scores that demote the last blocks first.

    >>> last_low(3).tolist()
    [3.0, 2.0, 1.0]
    """
    return first_low(players, widths)[::-1].copy()


def _alone(value: Value, players: int, widths: int, others: int) -> Floats:
    levels = np.full((players, widths, players), others)
    levels[np.arange(players), :, np.arange(players)] = np.arange(widths)
    losses = Memo(value)([coalition_of(row, widths) for row in levels.reshape(-1, players)])
    return np.diff(losses.reshape(players, widths), axis=1).ravel()
