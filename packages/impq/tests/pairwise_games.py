"""Games of known value for the tests, played without a model, and slow references for what is estimated from them."""

from __future__ import annotations

from itertools import combinations, permutations
from math import factorial

import numpy as np

from impq.game import Game
from impq.header import GameHeader
from impq.player import Player
from impq.value import Memo


def header(players: int, bits: tuple[int, ...] = (4, 2), **changes) -> GameHeader:
    """A game of equal players, named b0, b1, ..."""
    values = {
        "model_name": "m",
        "model_hash": "aa",
        "calib_hash": "bb",
        "backend": "rtn",
        "bits": bits,
        "group_size": 64,
        "granularity": "block",
        "players": tuple(
            Player(name=f"b{i}", block=i, modules=(f"b{i}.w",), shapes=((8, 4),), nbytes=tuple(4 * b for b in bits))
            for i in range(players)
        ),
        "other_bytes": 100,
        "n_tokens": 1024,
        "v_high": 0.0,
        "v_low": 0.0,
    }
    return GameHeader(**(values | changes))


def bits_of(steps: int) -> np.ndarray:
    """Every coalition as a row of 0 and 1 (2^steps, steps)."""
    return (np.arange(1 << steps)[:, None] >> np.arange(steps) & 1).astype(float)


def pairwise_table(a, pairs) -> np.ndarray:
    """v(q) = a q + sum_{i<j} I_ij q_i q_j of every coalition."""
    q = bits_of(len(a))
    return q @ a + np.einsum("ni,ij,nj->n", q, np.triu(pairs, 1), q)


def random_pairs(rng, n: int, signed: bool = True) -> np.ndarray:
    upper = np.triu(rng.normal(size=(n, n)) if signed else rng.random((n, n)), 1)
    return upper + upper.T


def played(value, what: GameHeader, n_permutations: int, orders=None) -> Game:
    """Plays the walks of a header (or other orders) without journal or schedule."""
    walks, memo = what.walks, Memo(value)
    ends = memo([0, (1 << walks.steps) - 1]) if orders is None and walks.widths == 2 else memo([walks.start] * 2)
    if orders is None:
        orders = np.array([walks.order(m) for m in range(n_permutations)])
    losses = []
    for order in orders.tolist():
        state, states = walks.start, []
        for step in order:
            state ^= 1 << step
            states.append(state)
        losses.append(memo(states))
    return Game(
        header=GameHeader.from_json({**what.to_json(), "v_high": float(ends[0]), "v_low": float(ends[1])}),
        orders=np.asarray(orders),
        losses=np.array(losses),
        n_evaluations=memo.evaluations,
        n_memo_hits=memo.hits,
        n_block_forwards=0.0,
    )


def all_orders(players: int) -> np.ndarray:
    return np.array(list(permutations(range(players))))


def exact_shapley(table) -> np.ndarray:
    """phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! (v(S + i) - v(S)), as it is written."""
    n = len(table).bit_length() - 1
    phi = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            weight = factorial(size) * factorial(n - size - 1) / factorial(n)
            for subset in combinations(others, size):
                low = sum(1 << j for j in subset)
                phi[i] += weight * (table[low | 1 << i] - table[low])
    return phi
