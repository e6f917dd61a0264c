"""What must hold of the method itself: identities and limits, against slow references that share no code with it."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise_games import all_orders, bits_of, exact_shapley, header, pairwise_table, played, random_pairs

from impq import baselines, interaction
from impq.estimate import model_game
from impq.interaction import quadratic
from impq.value import Memo, TableValue, exhaustive

ARMS = ("covariance", "none", "precedence", "pairwise_ls")
SIX = np.array([0.3, 0.1, 0.2, 0.05, 0.4, 0.15])
SIX_PAIRS = np.zeros((6, 6))
SIX_PAIRS[[0, 1, 2, 3], [1, 0, 3, 2]] = [0.5, 0.5, 0.4, 0.4]


def rough_table(seed, n):
    """A game with interactions of every order: positive, saturating, noisy."""
    rng = np.random.default_rng(seed)
    smooth = np.tanh(pairwise_table(rng.random(n), random_pairs(rng, n, signed=False)) / n)
    return smooth + 0.1 * rng.random(1 << n)


def best_plan(model, size):
    """The plan of least objective with `size` low players, by enumeration; ties to the first."""
    n = len(model.linear)
    rows = list(combinations(range(n), size))
    values = [model.value(np.isin(np.arange(n), row)) for row in rows]
    return rows[int(np.argmin(np.round(values, 12)))]


@given(st.lists(st.floats(0.01, 5), min_size=2, max_size=8), st.integers(0, 99))
@settings(max_examples=30)
def test_an_additive_game_is_known_after_one_walk(a, seed):
    """Check 1."""
    a = np.array(a)
    value = TableValue(bits_of(len(a)) @ a)
    assert played(value, header(len(a), seed=seed), 1).shapley == pytest.approx(a, abs=1e-12)
    game = played(value, header(len(a), seed=seed), 2)
    assert game.stderr == pytest.approx(0, abs=1e-12)
    assert np.isfinite(game.ci()).all()
    assert game.covariance == pytest.approx(0, abs=1e-12)
    for size in range(1, len(a)):
        expected = a[np.argsort(a)[:size]].sum()
        for arm in ARMS:
            plan = best_plan(quadratic(game, arm), size)
            assert a[list(plan)].sum() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_moments_over_all_orders_of_a_pairwise_game(seed):
    """Check 2: phi_i = a_i + sum_j I_ij / 2, and the closed form of the covariance."""
    rng = np.random.default_rng(seed)
    a, pairs = (SIX, SIX_PAIRS) if seed is None else (rng.random(6), random_pairs(rng, 6))
    game = played(TableValue(pairwise_table(a, pairs)), header(6), 0, orders=all_orders(6))
    assert game.shapley == pytest.approx(a + pairs.sum(axis=1) / 2, abs=1e-12)
    expected = np.empty((6, 6))
    for i in range(6):
        for j in range(6):
            squares, total = (pairs[i] ** 2).sum(), pairs[i].sum()
            own, other = total - pairs[i, j], pairs[j].sum() - pairs[i, j]
            cross = pairs[i] @ pairs[j] - pairs[i, j] * other - pairs[i, j] * own
            expected[i, j] = squares / 4 + (total**2 - squares) / 12 if i == j else -(pairs[i, j] ** 2) / 4 + cross / 12
    assert game.covariance * (719 / 720) == pytest.approx(expected, abs=1e-12)  # the moments divide by all orders


@given(st.integers(0, 999), st.integers(2, 7))
@settings(max_examples=30)
def test_one_antithetic_pair_is_exact_for_a_pairwise_game(seed, n):
    """Check 2."""
    rng = np.random.default_rng(seed)
    a, pairs = rng.random(n), random_pairs(rng, n)
    game = played(TableValue(pairwise_table(a, pairs)), header(n, antithetic=True, seed=seed), 2)
    assert game.shapley == pytest.approx(a + pairs.sum(axis=1) / 2, abs=1e-12)


@pytest.mark.parametrize(("a", "pairs"), [(SIX, SIX_PAIRS), (SIX, random_pairs(np.random.default_rng(3), 6))])
def test_precedence_without_penalty_is_exact_for_a_pairwise_game(a, pairs):
    """Check 2: once every pair has been seen in both orders."""
    game = played(TableValue(pairwise_table(a, pairs)), header(6), 40)
    model = interaction._precedence(game, (1e-10,))
    assert model.linear == pytest.approx(a, abs=1e-8)
    assert 2 * model.pair == pytest.approx(pairs, abs=1e-8)


def test_the_covariance_is_no_interaction():
    """Section 3(e)3: for positive interactions the covariance is their mirror image; precedence finds them."""
    upper = np.triu_indices(8, 1)
    found = {"covariance": [], "precedence": []}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        pairs = random_pairs(rng, 8, signed=False)
        game = played(TableValue(pairwise_table(rng.random(8), pairs)), header(8, seed=seed), 200)
        for arm, values in found.items():
            values.append(np.corrcoef(quadratic(game, arm).pair[upper], pairs[upper])[0, 1])
    assert np.mean(found["covariance"]) < -0.8
    assert np.mean(found["precedence"]) > 0.99


@pytest.mark.parametrize("group_size", [16, "tensor"])
def test_the_covariance_is_small_against_the_values(group_size):
    """README, What the algebra says, 4: on the game of a trained model K is hundredths of phi or less."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (8, 24), generator=generator)
    model = tiny_lm(20, layers=5, width=32, seed=0).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):  # until it knows the text by heart
        optimiser.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimiser.step()
    found = model_game(model.eval(), ids, group_size=group_size)
    table = exhaustive(found.value, 5)
    game = played(TableValue(table), found.header, 0, orders=all_orders(5))
    assert game.shapley == pytest.approx(exact_shapley(table), abs=1e-9)
    assert table[-1] - table[0] > 0.05  # quantising hurts
    assert 0 < np.abs(quadratic(game).pair).mean() < 0.1 * np.abs(game.shapley).mean()


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_interval_covers_the_exact_shapley_value(antithetic):
    """Check 3, on rough tables: 92-97 % of (player, repetition) cells at M = 20; pairs leave 9 degrees of freedom."""
    inside = []
    for seed in range(4):
        table = rough_table(seed, 7)
        exact = exact_shapley(table)
        for repetition in range(60):
            what = header(7, seed=1000 * seed + repetition, antithetic=antithetic)
            low, high = played(TableValue(table), what, 20).ci().T
            inside.append((low <= exact) & (exact <= high))
    assert 0.92 <= np.mean(inside) <= 0.97


@pytest.mark.parametrize("depth", [2, 3])
def test_truncated_walks_estimate_the_mean_over_their_coalitions(depth):
    table = rough_table(1, 6)
    game = played(TableValue(table), header(6, depth=depth), 3000)
    exact = np.zeros(6)
    for i in range(6):
        others = [j for j in range(6) if j != i]
        means = []
        for size in range(depth):
            lows = [sum(1 << j for j in subset) for subset in combinations(others, size)]
            means.append(np.mean([table[low | 1 << i] - table[low] for low in lows]))
        exact[i] = np.mean(means)
    assert (np.abs(game.shapley - exact) < 4 * game.stderr).all()


@given(st.integers(0, 999), st.integers(2, 7), st.integers(2, 9), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=40)
def test_efficiency(seed, n, walks, alpha):
    """Check 4."""
    table = rough_table(seed, n)
    game = played(TableValue(table), header(n, seed=seed), walks)
    assert game.shapley.sum() == pytest.approx(table[-1] - table[0], abs=1e-9)
    assert game.covariance.sum(axis=1) == pytest.approx(0, abs=1e-12)
    own = np.diag(game.covariance)
    assert quadratic(game, alpha=alpha).linear == pytest.approx(game.shapley + (1 - alpha) * own, abs=1e-12)


def test_all_steps_deep_is_the_full_game():
    table = rough_table(0, 6)
    for antithetic in (False, True):
        full, deep = (
            played(TableValue(table), header(6, antithetic=antithetic, depth=depth), 8) for depth in (None, 6)
        )
        assert np.array_equal(full.orders, deep.orders)
        assert np.array_equal(full.losses, deep.losses)
        assert np.array_equal(quadratic(full, "precedence").pair, quadratic(deep, "precedence").pair)


@pytest.mark.parametrize(("players", "walks"), [(8, 50), (32, 20)])
def test_walks_cost_as_many_evaluations_as_counted(players, walks):
    """Check 5: M (L - 1) + 2 without memo; the memo saves exactly the repeats."""
    asked = []

    def value(coalitions):
        asked.extend(coalitions)
        return [float(coalition.bit_count()) for coalition in coalitions]

    what = header(players)
    inner = [c for m in range(walks) for c in what.walks.coalitions(m)[:-1]]
    assert len(inner) + 2 == walks * (players - 1) + 2
    game = played(value, what, walks)
    assert len(asked) == len(set(asked)) == game.n_evaluations == len(set(inner)) + 2
    assert game.n_evaluations + game.n_memo_hits == walks * players + 2
    if players == 8:
        assert game.n_evaluations < 200  # of 352: repeats are frequent among few players
    else:
        assert game.n_evaluations > 0.9 * (walks * (players - 1) + 2)


def test_the_unit_of_the_loss():
    """Check 9: units leave Shapley plans alone, change covariance plans, and the game says which unit it has."""
    changed = 0
    for seed in range(20):
        table = rough_table(seed, 7)
        nats = played(TableValue(table), header(7), 30)
        scaled = played(TableValue(table * 1000), header(7, loss_unit="nats/1000 tokens"), 30)
        assert nats.header.difference(scaled.header) is not None
        for size in range(1, 7):
            assert best_plan(quadratic(nats, "none"), size) == best_plan(quadratic(scaled, "none"), size)
            changed += best_plan(quadratic(nats), size) != best_plan(quadratic(scaled), size)
            diagonal = quadratic(nats, alpha=1.0)
            hurt = nats.shapley + np.diag(nats.covariance)
            assert best_plan(diagonal, size) == tuple(sorted(np.argsort(hurt)[:size].tolist()))
    assert changed > 0


@given(st.permutations(range(5)), st.integers(0, 99))
@settings(max_examples=20)
def test_players_have_no_position(order, seed):
    """Check 15: renaming the players renames the Shapley values."""
    order = np.array(order)
    table = rough_table(seed, 5)
    renamed = table[(bits_of(5)[:, order] @ (1 << np.arange(5))).astype(int)]  # player order[k] plays what k did
    every = all_orders(5)
    here = played(TableValue(table), header(5), 0, orders=every)
    there = played(TableValue(renamed), header(5), 0, orders=every)
    assert there.shapley[order] == pytest.approx(here.shapley, abs=1e-12)
    assert here.shapley == pytest.approx(exact_shapley(table), abs=1e-12)


def test_seeds_change_the_orders_not_the_losses():
    """Check 15."""
    table = rough_table(0, 6)
    one, two = (played(TableValue(table), header(6, seed=seed), 5) for seed in (0, 1))
    assert not np.array_equal(one.orders, two.orders)
    memo = Memo(TableValue(table))
    for game in (one, two):
        for m, losses in enumerate(game.losses):
            assert np.array_equal(losses, memo(game.walks.coalitions(m)))
    assert replace(one.header, seed=1).config_hash == two.header.config_hash != one.header.config_hash


def test_shuffled_values_are_no_better_than_random():
    """Check 17: the loss of plans from shuffled values against that of all plans, one mean per game."""
    differences, honest = [], []
    for seed in range(24):
        table = rough_table(seed, 8)
        sizes = bits_of(8).sum(axis=1)
        phi = played(TableValue(table), header(8, seed=seed), 20).shapley

        def loss(scores, size, table=table):
            return table[(1 << np.argsort(scores)[:size]).sum()]

        random = np.array([table[sizes == size].mean() for size in range(1, 8)])
        shuffled = [[loss(baselines.shuffled(phi, draw), size) for size in range(1, 8)] for draw in range(20)]
        differences.append((np.mean(shuffled, axis=0) - random).mean())
        honest.append(([loss(phi, size) for size in range(1, 8)] - random).mean())
    spread = np.std(differences, ddof=1) / np.sqrt(len(differences))
    assert abs(np.mean(differences)) < 3 * spread
    assert np.mean(honest) < -10 * spread
