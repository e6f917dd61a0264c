from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impq.walks import Walks, coalition_of, levels

walks_of_any_kind = st.builds(
    lambda players, widths, share, **rest: Walks(
        players=players,
        widths=widths,
        depth=None if share is None else max(1, round(share * players * (widths - 1))),
        **rest,
    ),
    st.integers(1, 9),
    st.integers(2, 4),
    st.none() | st.floats(0, 1),
    antithetic=st.booleans(),
    direction=st.sampled_from(["demote", "promote"]),
    seed=st.integers(0, 3),
)


@given(walks_of_any_kind, st.integers(0, 30))
def test_every_walk_visits_states_of_the_game_one_step_apart(walks, m):
    states = [walks.start, *walks.coalitions(m)]
    assert len(states) == walks.length + 1
    sign = 1 if walks.direction == "demote" else -1
    for before, after, step in zip(states, states[1:], walks.order(m).tolist(), strict=False):
        moved = levels(after, walks.players, walks.widths) - levels(before, walks.players, walks.widths)
        assert before ^ after == 1 << step
        assert moved.sum() == sign
        assert np.count_nonzero(moved) == 1
    assert walks.end in (None, states[-1])


@given(walks_of_any_kind, st.integers(0, 10))
def test_an_antithetic_pair_visits_the_same_players_in_opposite_order(walks, p):
    if walks.antithetic:
        there, back = (walks.order(m) // (walks.widths - 1) for m in (2 * p, 2 * p + 1))
        assert there.tolist() == back[::-1].tolist()


@given(st.integers(1, 6), st.integers(2, 4), st.data())
def test_levels_and_coalitions_are_inverse(players, widths, data):
    level = data.draw(st.lists(st.integers(0, widths - 1), min_size=players, max_size=players))
    coalition = coalition_of(level, widths)
    assert levels(coalition, players, widths).tolist() == level
    assert coalition.bit_count() == sum(level)


def test_two_widths_are_the_plain_permutation_of_the_seed_sequence():
    for m in range(5):
        plain = np.random.default_rng(np.random.SeedSequence(7, spawn_key=(m,))).permutation(12)
        assert Walks(players=12, seed=7).order(m).tolist() == plain.tolist()
        assert Walks(players=12, seed=7, depth=12).order(m).tolist() == plain.tolist()
        assert Walks(players=12, seed=7, antithetic=True, depth=12).order(2 * m).tolist() == plain.tolist()


def test_interleavings_of_more_widths_are_uniform():
    walks = Walks(players=2, widths=3)
    seen = Counter(tuple((walks.order(m) // 2).tolist()) for m in range(1200))
    assert set(seen) == set(permutations([0, 0, 1, 1]))
    # six interleavings; chi-square with 5 degrees of freedom is below 20.5 in 99.9 % of draws
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 20.5


def test_truncated_walks_are_uniform_one_by_one():
    walks = Walks(players=4, depth=2)
    seen = Counter(tuple(walks.order(m).tolist()) for m in range(0, 4 * 1200, 4))
    assert len(seen) == 12
    assert sum((count - 100) ** 2 / 100 for count in seen.values()) < 31.3  # 11 degrees of freedom, 99.9 %


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize(("players", "depth"), [(7, 3), (8, 4), (30, 8), (5, 4), (6, 1), (5, 2)])
def test_truncated_walks_are_balanced(players, depth, antithetic):
    walks = Walks(players=players, depth=depth, antithetic=antithetic, seed=3)
    size = players * (2 if antithetic else 1)
    for index in range(3):
        orders = np.array([walks.order(index * size + m) for m in range(size)])
        shown = orders[:: 2 if antithetic else 1]
        for stop in range(1, players + 1):
            used = np.bincount(shown[:stop].ravel(), minlength=players)
            assert used.max() - used.min() <= 1
        for column in (0, -1):
            starts = np.bincount(orders[:, column], minlength=players)
            assert (starts == size // players).all()
    assert not np.array_equal(walks.order(0), walks.order(size))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"players": 0}, "at least 1 player"),
        ({"players": 2, "widths": 1}, "2 widths"),
        ({"players": 2, "depth": 3}, "depth must be None or lie in 1..2"),
        ({"players": 2, "depth": 0}, "depth"),
        ({"players": 2, "direction": "up"}, "direction"),
        ({"players": 2, "seed": -1}, "seed"),
    ],
)
def test_impossible_walks_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Walks(**fields)


def test_states_of_no_game_are_refused():
    with pytest.raises(ValueError, match="no state"):
        levels(0b10, 1, 3)
    with pytest.raises(ValueError, match="no state"):
        levels(0b100, 2)
    with pytest.raises(ValueError, match="player 1 has level 2"):
        coalition_of([0, 2])


def test_the_draws_are_those_of_the_numbers_that_the_docstring_names():
    def rng(k):
        return np.random.default_rng(np.random.SeedSequence(3, spawn_key=(k,)))

    pairs = Walks(players=7, antithetic=True, seed=3)
    for m in range(6):
        order = rng(m // 2).permutation(7)
        assert pairs.order(m).tolist() == (order[::-1] if m % 2 else order).tolist()
    # the first draw of a round decides which players its first walk takes
    short = Walks(players=7, depth=3, seed=3)
    for index in range(3):
        assert set(short.order(7 * index).tolist()) == set(np.argsort(rng(index).random(7))[:3].tolist())


@pytest.mark.parametrize("antithetic", [False, True])
def test_walks_of_one_step_or_among_one_player_have_a_cost(antithetic):
    assert Walks(players=6, depth=1, antithetic=antithetic).at_the_cost_of(6) == 30
    assert Walks(players=6, depth=1, antithetic=antithetic).at_the_cost_of(1) == 12 * (
        1 + antithetic
    )  # every step twice
    assert Walks(players=1, antithetic=antithetic).at_the_cost_of(4) == 4
