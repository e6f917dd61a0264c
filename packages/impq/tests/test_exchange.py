import itertools

import numpy as np
import pytest

from impq.exchange import Programme, exchange_search, greedy, smaller


def programme(linear, pair=None, costs=None, need=0, widths=2):
    n = len(linear)
    return Programme(
        linear=np.array(linear, dtype=float),
        pair=np.zeros((n, n)) if pair is None else np.array(pair, dtype=float),
        costs=np.ones(n, dtype=np.int64) if costs is None else np.array(costs),
        need=need,
        widths=widths,
    )


def random_programme(seed, n=10, widths=2):
    rng = np.random.default_rng(seed)
    pair = rng.normal(size=(n, n)) * 0.3
    costs = rng.integers(1, 100, n)
    return programme(rng.normal(0.5, 1, n), (pair + pair.T) / 2, costs, int(rng.integers(0, costs.sum())), widths)


def test_value_is_the_double_sum():
    p = random_programme(0)
    low = np.arange(10) % 3 == 0
    slow = sum(p.linear[i] for i in range(10) if low[i])
    slow += sum(p.pair[i, j] for i in range(10) for j in range(10) if low[i] and low[j])
    assert p.value(low) == pytest.approx(slow, abs=1e-12)


def test_feasible_needs_bytes_and_the_order_of_steps():
    p = programme([1] * 4, need=2, widths=3)
    assert p.feasible(np.array([True, True, False, False]))
    assert p.feasible(np.array([True, False, True, False]))
    assert not p.feasible(np.array([True, False, False, True]))
    assert not p.feasible(np.array([True, False, False, False]))


def test_greedy_gives_the_turn_to_the_earlier_step():
    p = programme([5, 0, 4, 3], need=3, widths=3)
    assert greedy(p, p.linear).tolist() == [True, False, True, True]


@pytest.mark.parametrize("seed", range(20))
def test_local_optimum_under_every_exchange(seed):
    p = random_programme(seed)
    low = exchange_search(p)
    value = p.value(low)
    assert p.feasible(low)
    for i, j in itertools.product(range(10), repeat=2):
        other = low.copy()
        other[[i, j]] ^= True
        if low[i] != low[j] or i == j:
            single = low.copy()
            single[i] ^= True
            for plan in (single, other):
                if i != j or plan is single:
                    assert not p.feasible(plan) or p.value(plan) >= value - 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_three_widths_stay_feasible(seed):
    p = random_programme(seed, n=12, widths=3)
    assert p.feasible(exchange_search(p))


def test_equal_players_are_taken_from_the_front():
    assert np.flatnonzero(exchange_search(programme([1.0] * 6, need=3))).tolist() == [0, 1, 2]


def test_same_seed_same_plan_and_deadline_in_the_past_still_gives_a_plan():
    p = random_programme(3)
    assert (exchange_search(p) == exchange_search(p)).all()
    assert p.feasible(exchange_search(p, deadline=-np.inf))


def test_smaller_compares_sorted_lists():
    a, b = np.array([1, 0, 1], dtype=bool), np.array([0, 1, 1], dtype=bool)
    assert smaller(a, b)
    assert not smaller(b, a)
    assert smaller(np.array([1, 0, 0], dtype=bool), a)
