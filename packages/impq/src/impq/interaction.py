"""Quadratic models of the loss from the walks of one game: the paper's covariance, and three from the same losses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from aisec_common.seeding import numpy_rng
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular
from scipy.sparse import csr_array

from impq.game import Game
from impq.spqe import Floats

Interaction = Literal["covariance", "none", "precedence", "pairwise_ls"]

FULL_PENALTY = 1e-2  # times the number of walks
TRUNCATED_PENALTIES = (0.01, 0.1, 1.0, 10.0)
LEAST_SQUARES_PENALTY = 1e-3
MOST_LEFT_OUT = 100  # walks; the choice lies between decades, and each costs as much as a solve


@dataclass(frozen=True, kw_only=True, eq=False)
class Quadratic:
    """The modelled loss of taking the steps q in {0, 1}^n, above all high: `linear @ q + q @ pair @ q`.

    Args:
        linear: (n,), in units of the loss.
        pair: (n, n), symmetric; its diagonal counts, since q^2 = q.

    Raises:
        ValueError: if the shapes do not fit, `pair` is not symmetric, or an entry is not finite.

    >>> Quadratic(linear=np.array([1.0, 2.0]), pair=np.array([[0.0, 0.5], [0.5, 0.0]])).value([1, 1])
    4.0
    """

    linear: Floats
    pair: Floats

    def __post_init__(self) -> None:
        n = len(self.linear)
        if self.linear.shape != (n,) or self.pair.shape != (n, n):
            raise ValueError(f"pair must have shape {(n, n)} to fit linear, got {self.pair.shape}")
        if not (np.isfinite(self.linear).all() and np.isfinite(self.pair).all()):
            raise ValueError("linear and pair must be finite")
        if not np.array_equal(self.pair, self.pair.T):
            raise ValueError("pair must be symmetric")

    def value(self, q: ArrayLike) -> float:
        """Modelled loss above all high of the steps taken, q (n,) of 0 and 1."""
        taken = np.asarray(q, dtype=np.float64)
        return float(self.linear @ taken + taken @ self.pair @ taken)


def quadratic(game: Game, interaction: Interaction = "covariance", alpha: float = 0.5) -> Quadratic:
    """The objective of the bit assignment under one model of interactions.

    - `covariance` (the paper): K = (1 - alpha) C + alpha diag(C), pair = K, linear_i = phi_i - sum_{j != i} K_ij. For
      full walks C 1 = 0, so linear = phi + (1 - alpha) diag(C). K is in squared units of the loss.
    - `none`: linear = phi, pair = 0.
    - `precedence`: Delta_i^(m) = a_i + sum_j I_ij [j low when i was demoted] + noise, one ridge over all walks and
      steps with symmetric I; linear = a, pair = I / 2. The penalty lies on I only: 1e-2 M for full walks; for truncated
      ones the member of {.01, .1, 1, 10} with the least error on a walk (antithetic pair) left out, over the first 100
      walks.
    - `pairwise_ls`: ridge of v on {1, q_i, q_i q_j} over the distinct coalitions visited, penalty 1e-3 on the pairs
      only, so that an additive game is recovered exactly; linear and pair as above.

    Args:
        game: the walks and their losses.
        interaction: the model.
        alpha: of the covariance, in [0, 1]; 1 leaves its diagonal only.

    Raises:
        ValueError: if `interaction` or `alpha` is none of these, the game is too short, or its walks are truncated
            where the covariance is asked for.

    Source: arXiv 2509.15455, section 3 (covariance); the others are this package's.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    phi = game.shapley
    if interaction == "covariance":
        c = game.covariance
        k = (1 - alpha) * c + alpha * np.diag(np.diag(c))
        return Quadratic(linear=phi - (k.sum(axis=1) - np.diag(k)), pair=k)
    if interaction == "none":
        return Quadratic(linear=phi, pair=np.zeros((phi.size, phi.size)))
    if interaction == "precedence":
        return _precedence(game)
    if interaction == "pairwise_ls":
        return _pairwise_least_squares(game)
    raise ValueError(f"interaction must be 'covariance', 'none', 'precedence' or 'pairwise_ls', got {interaction!r}")


def shuffle_orders(game: Game, seed: int) -> Game:
    """The negative control: every walk keeps its losses and gets the order of another, so interactions mean nothing."""
    if len(game.orders) < 2:
        raise ValueError("n_permutations: shuffling orders needs at least 2 walks")
    # a random cycle leaves no walk with its own order
    cycle = numpy_rng(seed, "shuffle-orders").permutation(len(game.orders))
    source = np.empty_like(cycle)
    source[cycle] = np.roll(cycle, 1)
    return replace(game, orders=game.orders[source])


def _precedence(game: Game, penalties: tuple[float, ...] | None = None) -> Quadratic:
    walks, length = game.orders.shape
    n = game.walks.steps
    design = _precedence_design(game)
    target = np.take_along_axis(game.marginals, game.orders, axis=1).ravel()
    if penalties is None:
        penalties = (FULL_PENALTY * walks,) if length == n else TRUNCATED_PENALTIES
    together = 2 if game.header.antithetic else 1  # a walk tells what its reverse would, so a pair is left out whole
    if len(penalties) > 1:
        if walks % together:
            raise ValueError(f"n_permutations must be even for antithetic walks, got {walks}")
        if (np.bincount(game.orders.ravel(), minlength=n) < 2 * together).any():
            least = "2 pairs" if together > 1 else "2 walks"
            raise ValueError(f"n_permutations: leaving one out needs every step in at least {least}; use more of them")
    gram = (design.T @ design).toarray()
    moment = design.T @ target
    choices = []
    for penalty in penalties:
        factor = _factor(gram, penalty, n)
        solution = cho_solve((factor, True), moment)
        error = 0.0
        if len(penalties) > 1:
            rows = min(walks, MOST_LEFT_OUT) * length
            error = _left_out_error(design[:rows], target[:rows], factor, solution, together * length)
        choices.append((error, -penalty, solution))  # ties go to the stronger penalty
    return _from_coefficients(min(choices, key=lambda choice: choice[:2])[2], n)


def _precedence_design(game: Game) -> csr_array:
    """Rows (M K, n + pairs), one per walk and step taken: 1 for the step itself, and for each pair with a low step."""
    n = game.walks.steps
    own = game.orders.ravel()
    # what else is low when a step is demoted, or promoted
    others = _states(game)[:, :-1].reshape(-1, n)
    others[np.arange(own.size), own] = False
    rows, partners = np.nonzero(others)
    pairs = _pair_index(n)[own[rows], partners]
    column = np.concatenate([own, n + pairs])
    row = np.concatenate([np.arange(own.size), rows])
    return csr_array((np.ones(row.size), (row, column)), shape=(own.size, n + n * (n - 1) // 2))


def _left_out_error(design: csr_array, target: Floats, factor: Floats, solution: Floats, length: int) -> float:
    """Squared error of every `length` rows under the fit without them: r becomes (1 - H)^-1 r, H of the hat matrix."""
    residual = (target - design @ solution).reshape(-1, length)
    half = solve_triangular(factor, design.toarray().T, lower=True).T.reshape(-1, length, len(factor))
    left = np.eye(length) - half @ half.transpose(0, 2, 1)
    return float((np.linalg.solve(left, residual[..., None]) ** 2).sum())


def _pairwise_least_squares(game: Game) -> Quadratic:
    n = game.walks.steps
    states = _states(game).reshape(-1, n)
    v_start = game.header.v_start
    assert v_start is not None
    loss = np.concatenate([np.full((len(game.losses), 1), v_start), game.losses], axis=1).ravel()
    _, first = np.unique(np.packbits(states, axis=1), axis=0, return_index=True)
    q = states[first].astype(np.float64)
    upper = np.triu_indices(n, 1)
    design = np.concatenate([np.ones((len(q), 1)), q, q[:, upper[0]] * q[:, upper[1]]], axis=1)
    factor = _factor(design.T @ design, LEAST_SQUARES_PENALTY, n + 1)
    return _from_coefficients(cho_solve((factor, True), design.T @ loss[first])[1:], n)


def _states(game: Game) -> NDArray[np.bool_]:
    """Which steps are low at the start and after each step of each walk (M, K + 1, n)."""
    walks, length = game.orders.shape
    taken = np.zeros((walks, length + 1, game.walks.steps), dtype=bool)
    taken[np.arange(walks)[:, None], np.arange(1, length + 1), game.orders] = True
    taken = np.logical_or.accumulate(taken, axis=1)
    return taken if game.header.direction == "demote" else ~taken


def _factor(gram: Floats, penalty: float, free: int) -> Floats:
    """Cholesky factor of the normal matrix with `penalty` on every coefficient but the first `free`."""
    damped = gram + np.diag(np.where(np.arange(len(gram)) < free, 0.0, penalty))
    try:
        return np.asarray(cho_factor(damped, lower=True, overwrite_a=True)[0])
    except LinAlgError:
        raise ValueError("n_permutations: the walks do not determine every step; use more of them") from None


def _from_coefficients(coefficients: Floats, n: int) -> Quadratic:
    interactions = np.zeros((n, n))
    interactions[np.triu_indices(n, 1)] = coefficients[n:]
    return Quadratic(linear=coefficients[:n].copy(), pair=(interactions + interactions.T) / 2)


def _pair_index(n: int) -> NDArray[np.int64]:
    """Index of the pair {i, j} in row-major order of the upper triangle, at [i, j] and [j, i]."""
    index = np.zeros((n, n), dtype=np.int64)
    index[np.triu_indices(n, 1)] = np.arange(n * (n - 1) // 2)
    return np.asarray(index + index.T)
