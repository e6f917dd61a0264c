"""Shapley values from sampled walks (SPQE), with their standard errors and the covariance of the marginals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def marginals(orders: Integers, losses: Floats, v_start: float, steps: int, sign: int = 1) -> Floats:
    """What each step cost in each walk: Delta_k^(m) = sign (v(after k) - v(before k)).

    Args:
        orders: steps (M, K) in the order in which each walk takes them.
        losses: v (M, K) after 1..K steps, in nats per token.
        v_start: v before the first step, the same for all walks.
        steps: number of steps of the game.
        sign: 1 where walks demote, -1 where they promote, so that positive always means that demotion hurts.

    Returns:
        (M, steps); NaN where a walk did not take the step.

    Source: arXiv 2509.15455, section 3 (SPQE).

    >>> marginals(np.array([[1, 0]]), np.array([[3.0, 7.0]]), 1.0, 2).tolist()
    [[4.0, 2.0]]
    """
    before = np.concatenate([np.full((len(losses), 1), v_start), losses[:, :-1]], axis=1)
    result = np.full((len(losses), steps), np.nan)
    np.put_along_axis(result, orders, sign * (losses - before), axis=1)
    return result


def shapley(marginals: Floats) -> Floats:
    """Shapley estimate of every step (steps,): the mean of its marginals over the walks that take it.

    Raises:
        ValueError: if no walk takes some step.

    Source: arXiv 2509.15455, section 3 (SPQE).

    >>> shapley(np.array([[4.0, 2.0], [2.0, 2.0]])).tolist()
    [3.0, 2.0]
    """
    missing = np.flatnonzero(np.isnan(marginals).all(axis=0))
    if missing.size:
        raise ValueError(f"n_permutations: no walk takes step {missing[0]} ({missing.size} missing); use more walks")
    return np.asarray(np.nanmean(marginals, axis=0))


def stderr(marginals: Floats, antithetic: bool = False) -> Floats:
    """Standard error of `shapley` (steps,): sd_m(Delta) / sqrt(M), of the M/2 pair means where walks are antithetic.

    Infinite for a step that fewer than two walks (pairs) take, because they say nothing about its spread.

    Raises:
        ValueError: if antithetic walks do not come in pairs.

    >>> stderr(np.array([[4.0, 2.0], [2.0, 2.0]])).tolist()
    [1.0, 0.0]
    """
    independent = _independent(marginals, antithetic)
    count = (~np.isnan(independent)).sum(axis=0)
    known = np.where(np.isnan(independent), 0.0, independent)
    mean = known.sum(axis=0) / np.maximum(count, 1)
    squares = np.where(np.isnan(independent), 0.0, (known - mean) ** 2).sum(axis=0)
    enough = count > 1
    return np.where(enough, np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1)), np.inf)


def interval(marginals: Floats, antithetic: bool = False, level: float = 0.95) -> Floats:
    """Student-t confidence interval of `shapley` (steps, 2), with walks (pairs) minus one degrees of freedom.

    Raises:
        ValueError: if `level` does not lie in (0, 1), or see `shapley` and `stderr`.

    >>> interval(np.array([[4.0], [2.0]])).round(1).tolist()
    [[-9.7, 15.7]]
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    freedom = (~np.isnan(_independent(marginals, antithetic))).sum(axis=0) - 1
    half = stdtrit(np.maximum(freedom, 1), (1 + level) / 2) * stderr(marginals, antithetic)
    return np.stack([-half, half], axis=1) + shapley(marginals)[:, None]


def covariance(marginals: Floats) -> Floats:
    """Sample covariance over walks (steps, steps), ddof 1, of the vectors Delta^(m); its rows sum to 0 (efficiency).

    Raises:
        ValueError: if there are fewer than two walks, or truncated ones, where a covariance is not defined.

    Source: arXiv 2509.15455, section 3 (interactions).

    >>> covariance(np.array([[4.0, 2.0], [2.0, 4.0]])).tolist()
    [[2.0, -2.0], [-2.0, 2.0]]
    """
    if np.isnan(marginals).any():
        raise ValueError("interaction: the covariance needs full walks; use depth=None or interaction='precedence'")
    if len(marginals) < 2:
        raise ValueError(f"n_permutations: the covariance needs at least 2 walks, got {len(marginals)}")
    centred = marginals - marginals.mean(axis=0)
    return np.asarray(centred.T @ centred / (len(marginals) - 1))


def _independent(marginals: Floats, antithetic: bool) -> Floats:
    """The rows whose spread gives the standard error: walks, or means of antithetic pairs (which take equal steps)."""
    if not antithetic:
        return marginals
    if len(marginals) % 2:
        raise ValueError(f"n_permutations must be even for antithetic walks, got {len(marginals)}")
    return np.asarray(marginals.reshape(-1, 2, marginals.shape[1]).mean(axis=1))
