import numpy as np
import pytest
from pairwise_games import all_orders, bits_of, header, pairwise_table, played, random_pairs

from impq import interaction
from impq.interaction import Quadratic, quadratic, shuffle_orders
from impq.value import TableValue

ARMS = ("covariance", "none", "precedence", "pairwise_ls")


def pairwise(seed, n=6, signed=True):
    rng = np.random.default_rng(seed)
    a, pairs = rng.random(n), random_pairs(rng, n, signed)
    return a, pairs, TableValue(pairwise_table(a, pairs))


def saturating(seed, n=6):
    return TableValue(np.tanh(pairwise(seed, n, signed=False)[2].table / 4))


def slow_precedence(game, penalty):
    """The normal equations row by row, from the definition."""
    n = game.walks.steps
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    rows, targets = [], []
    for m, order in enumerate(game.orders.tolist()):
        low = set() if game.header.direction == "demote" else set(range(n))
        for step in order:
            low ^= {step}
            row = [float(k == step) for k in range(n)]
            row += [float((i == step and j in low) or (j == step and i in low)) for i, j in pairs]
            rows.append(row)
            targets.append(game.marginals[m, step])
    rows, targets = np.array(rows), np.array(targets)
    ridge = np.diag([0.0] * n + [penalty] * len(pairs))
    return rows, targets, np.linalg.solve(rows.T @ rows + ridge, rows.T @ targets), ridge


def coefficients(model):
    return np.concatenate([model.linear, 2 * model.pair[np.triu_indices(len(model.linear), 1)]])


def test_quadratic_value_is_the_sum_over_steps_and_pairs():
    rng = np.random.default_rng(0)
    pair = random_pairs(rng, 4) + np.diag(rng.random(4))
    model = Quadratic(linear=rng.random(4), pair=pair)
    for q in bits_of(4):
        taken = np.flatnonzero(q)
        slow = sum(model.linear[i] for i in taken) + sum(pair[i, j] for i in taken for j in taken)
        assert model.value(q) == pytest.approx(slow)


@pytest.mark.parametrize(
    ("linear", "pair", "words"),
    [
        (np.zeros(2), np.zeros((3, 3)), "shape"),
        (np.zeros(2), np.array([[0.0, 1.0], [0.0, 0.0]]), "symmetric"),
        (np.array([0.0, np.inf]), np.zeros((2, 2)), "finite"),
    ],
)
def test_impossible_quadratics_are_refused(linear, pair, words):
    with pytest.raises(ValueError, match=words):
        Quadratic(linear=linear, pair=pair)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_covariance_is_as_printed(alpha):
    game = played(saturating(0), header(6), 20)
    model = quadratic(game, "covariance", alpha)
    c = np.cov(game.marginals, rowvar=False, ddof=1)
    k = np.array([[c[i, j] * (1 if i == j else 1 - alpha) for j in range(6)] for i in range(6)])
    linear = [game.shapley[i] - sum(k[i, j] for j in range(6) if j != i) for i in range(6)]
    assert model.pair == pytest.approx(k, abs=1e-14)
    assert model.linear == pytest.approx(np.array(linear), abs=1e-14)


def test_none_is_the_shapley_value():
    game = played(saturating(0), header(6), 20)
    model = quadratic(game, "none")
    assert np.array_equal(model.linear, game.shapley)
    assert not model.pair.any()


@pytest.mark.parametrize("direction", ["demote", "promote"])
@pytest.mark.parametrize("depth", [None, 4])
def test_precedence_agrees_with_the_definition(direction, depth):
    game = played(saturating(3), header(6, depth=depth, direction=direction), 18)
    for penalty in (0.18, 2.0):
        _, _, slow, _ = slow_precedence(game, penalty)
        assert coefficients(interaction._precedence(game, (penalty,))) == pytest.approx(slow, abs=1e-9)
    if depth is None:
        _, _, slow, _ = slow_precedence(game, 1e-2 * 18)
        assert coefficients(quadratic(game, "precedence")) == pytest.approx(slow, abs=1e-9)


def refitted_error(game, penalty, together):
    """Squared error on `together` walks at a time, under fits without them."""
    rows, targets, _, ridge = slow_precedence(game, penalty)
    part, error = np.arange(len(targets)) // (game.walks.length * together), 0.0
    for m in range(part[-1] + 1):
        kept, left = part != m, part == m
        fit = np.linalg.solve(rows[kept].T @ rows[kept] + ridge, rows[kept].T @ targets[kept])
        error += ((targets[left] - rows[left] @ fit) ** 2).sum()
    return error


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_truncated_precedence_takes_the_penalty_with_the_least_left_out_error(seed, antithetic):
    game = played(saturating(seed), header(6, depth=3, seed=seed, antithetic=antithetic), 24 if antithetic else 14)
    errors = {p: refitted_error(game, p, 2 if antithetic else 1) for p in interaction.TRUNCATED_PENALTIES}
    best = min(errors, key=errors.get)
    _, _, slow, _ = slow_precedence(game, best)
    assert coefficients(quadratic(game, "precedence")) == pytest.approx(slow, abs=1e-9)


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_left_out_error_is_that_of_refitting(monkeypatch, antithetic):
    game = played(saturating(5), header(6, depth=3, antithetic=antithetic), 24 if antithetic else 14)
    found = []
    original = interaction._left_out_error
    monkeypatch.setattr(interaction, "_left_out_error", lambda *a: found.append(original(*a)) or found[-1])
    quadratic(game, "precedence")
    for penalty, error in zip(interaction.TRUNCATED_PENALTIES, found, strict=True):
        assert error == pytest.approx(refitted_error(game, penalty, 2 if antithetic else 1), rel=1e-8)


@pytest.mark.parametrize("direction", ["demote", "promote"])
@pytest.mark.parametrize("depth", [None, 4])
def test_pairwise_least_squares_agrees_with_an_augmented_fit(direction, depth):
    game = played(saturating(2), header(6, depth=depth, direction=direction), 12)
    table = saturating(2).table
    visited = sorted({game.walks.start} | {c for m in range(12) for c in game.walks.coalitions(m)})
    q = bits_of(6)[visited]
    i, j = np.triu_indices(6, 1)
    rows = np.concatenate([np.ones((len(q), 1)), q, q[:, i] * q[:, j]], axis=1)
    # a ridge is a least-squares fit with one more row per penalised coefficient
    more = np.sqrt(1e-3) * np.eye(rows.shape[1])[7:]
    target = np.concatenate([table[visited], np.zeros(len(more))])
    slow = np.linalg.lstsq(np.concatenate([rows, more]), target, rcond=None)[0]
    assert coefficients(quadratic(game, "pairwise_ls")) == pytest.approx(slow[1:], abs=1e-6)


@pytest.mark.parametrize("arm", ["precedence", "pairwise_ls"])
def test_fits_find_a_pairwise_game(arm):
    a, pairs, value = pairwise(4)
    model = quadratic(played(value, header(6), 200), arm)
    # a penalty that grows with the walks takes about 3 % of every interaction
    assert model.linear == pytest.approx(a, abs=0.1)
    assert 2 * model.pair == pytest.approx(pairs, rel=0.05)


@pytest.mark.parametrize("arm", ["none", "precedence", "pairwise_ls"])
def test_more_widths_are_more_steps(arm):
    # three widths: the second step of a player always follows the first, so their pair is part of the second's own term
    rng = np.random.default_rng(0)
    a, pairs = rng.random(6), random_pairs(rng, 6)
    value = TableValue(pairwise_table(a, pairs))
    model = quadratic(played(value, header(3, (8, 4, 2)), 300), arm)
    if arm == "precedence":
        assert model.pair[[0, 2, 4], [1, 3, 5]] == pytest.approx(0, abs=1e-9)
    if arm != "none":
        for low in (0b000001, 0b000011, 0b010111, 0b111111):
            q = bits_of(6)[low]
            assert model.value(q) == pytest.approx(value.table[low], abs=0.1)


def test_shuffled_orders_lose_the_interactions():
    _, pairs, value = pairwise(1, n=8)
    game = played(value, header(8), 100)
    upper = np.triu_indices(8, 1)

    def agreement(found):
        return np.corrcoef(quadratic(found, "precedence").pair[upper], pairs[upper])[0, 1]

    shuffled = [shuffle_orders(game, seed) for seed in range(10)]
    assert agreement(game) > 0.99
    assert abs(np.mean([agreement(found) for found in shuffled])) < 0.25
    for found in shuffled:
        assert np.array_equal(np.sort(found.orders, axis=0), np.sort(game.orders, axis=0))
        assert not (found.orders == game.orders).all(axis=1).any()
        assert np.array_equal(found.losses, game.losses)
    with pytest.raises(ValueError, match="at least 2"):
        shuffle_orders(game.head(1), 0)


def test_misuse_is_named():
    game = played(saturating(0), header(6, depth=2), 12)
    for arguments, words in (
        (("covariance",), "full walks"),
        (("shap",), "interaction must be"),
        (("none", 1.5), "alpha"),
    ):
        with pytest.raises(ValueError, match=words):
            quadratic(game, *arguments)
    with pytest.raises(ValueError, match="at least 2 walks"):
        quadratic(played(saturating(0), header(6, depth=2), 3), "precedence")
    pairs = played(saturating(0), header(6, depth=2, antithetic=True), 12)
    with pytest.raises(ValueError, match="at least 2 pairs"):
        quadratic(pairs.head(10), "precedence")
    with pytest.raises(ValueError, match="even for antithetic walks, got 11"):
        quadratic(pairs.head(11), "precedence")
    with pytest.raises(ValueError, match="no walk takes step"):
        quadratic(played(saturating(0), header(6, depth=2), 2), "precedence")


def test_all_orders_leave_no_doubt():
    a, pairs, value = pairwise(7, n=5)
    model = interaction._precedence(played(value, header(5), 0, orders=all_orders(5)), (1e-9,))
    assert model.linear == pytest.approx(a, abs=1e-8)
    assert 2 * model.pair == pytest.approx(pairs, abs=1e-8)
