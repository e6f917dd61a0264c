import numpy as np
import pytest
from pyscipopt import Model

from impq import assign as assign_module
from impq.assign import assign

ANY = 10**6  # a capacity that binds nowhere


def instance(seed):
    """A random quadratic knapsack of up to 14 steps: signed pairs, unequal costs, 2 or 3 widths, sometimes tied."""
    rng = np.random.default_rng(seed)
    widths = 2 + seed % 2
    n = int(rng.integers(1, 15)) if widths == 2 else 2 * int(rng.integers(1, 8))
    linear, pair = rng.normal(0.5, 1, n), rng.normal(size=(n, n)) * rng.choice([0, 0.1, 1])
    pair = (pair + pair.T) / 2
    if seed % 5 == 0:
        linear, pair = np.round(linear), np.round(pair)
    costs = rng.integers(1, 10 ** int(rng.integers(1, 9)), n)
    if seed % 3 == 0:
        costs[:] = costs[0]
    return linear, pair, costs, int(rng.integers(0, costs.sum() + 1)), widths


def enumerate_plans(linear, pair, costs, capacity, widths):
    """Objective and list of low steps of the optimum, the lexicographically smallest of ties."""
    n = len(linear)
    plans = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    feasible = (1 - plans) @ costs <= capacity
    for step in range(n):
        if step % (widths - 1):
            feasible &= plans[:, step] <= plans[:, step - 1]
    plans = plans[feasible]
    value = plans @ linear + ((plans @ pair) * plans).sum(1)
    return value.min(), min(np.flatnonzero(plan).tolist() for plan in plans[value <= value.min() + 1e-12])


# every plan tried at once; only what the bound leaves open; all of it to HiGHS
@pytest.mark.parametrize(("enumerable", "instances"), [(14, 200), (4, 60), (0, 100)])
def test_equals_enumeration(enumerable, instances, monkeypatch):
    monkeypatch.setattr(assign_module, "ENUMERABLE", enumerable)
    for seed in range(instances):
        linear, pair, costs, capacity, widths = instance(seed)
        optimum, steps = enumerate_plans(linear, pair, costs, capacity, widths)
        plan = assign(linear, pair, costs, capacity, widths=widths, time_limit=60)
        assert plan.objective == pytest.approx(optimum, abs=1e-9), seed
        assert plan.status == "optimal", seed
        assert plan.gap == 0
        assert plan.bound <= plan.objective
        assert costs[~plan.low].sum() <= capacity, seed
        if enumerable == 14:
            assert np.flatnonzero(plan.low).tolist() == steps, seed


def test_without_time_a_feasible_plan_and_a_valid_bound():
    for seed in range(200):
        linear, pair, costs, capacity, widths = instance(seed)
        optimum, _ = enumerate_plans(linear, pair, costs, capacity, widths)
        plan = assign(linear, pair, costs, capacity, widths=widths, time_limit=0)
        assert plan.status == "time_limit"
        assert costs[~plan.low].sum() <= capacity
        by_player = plan.low.reshape(-1, widths - 1)
        assert not (by_player[:, 1:] & ~by_player[:, :-1]).any()
        assert plan.bound <= optimum + 1e-12
        assert plan.objective >= optimum - 1e-12
        assert plan.gap >= 0


def test_agrees_with_scip():
    rng = np.random.default_rng(5)
    n = 18
    marginals = rng.normal(size=(60, n))
    c = np.cov((marginals - marginals.mean(1, keepdims=True)).T)
    pair, costs = 0.5 * c + 0.5 * np.diag(np.diag(c)), rng.integers(500, 1000, n)
    linear, capacity = rng.exponential(1, n) + 0.5 * np.diag(c), int(costs.sum() // 2)

    model = Model()
    model.hideOutput()
    q = [model.addVar(vtype="B") for _ in range(n)]
    y = {(i, j): model.addVar(lb=0, ub=1) for i in range(n) for j in range(i)}
    for (i, j), product in y.items():
        model.addCons(product >= q[i] + q[j] - 1)
        model.addCons(product <= q[i])
        model.addCons(product <= q[j])
    model.addCons(sum(int(cost) * (1 - x) for cost, x in zip(costs, q, strict=True)) <= capacity)
    objective = sum((linear[i] + pair[i, i]) * q[i] for i in range(n))
    model.setObjective(objective + sum(2 * pair[i, j] * product for (i, j), product in y.items()))
    model.optimize()
    plan = assign(linear, pair, costs, capacity, time_limit=30)
    assert plan.status == "optimal"
    assert plan.objective == pytest.approx(model.getObjVal(), abs=1e-6)


@pytest.mark.parametrize("r", [0.1, 1.0])
def test_covariance_game_of_126_blocks_is_proven_within_seconds(r):
    rng = np.random.default_rng(0)
    n, low = 126, 31
    phi = rng.exponential(1, n)
    marginals = rng.normal(size=(100, n)) * r * phi
    marginals -= marginals.sum(1, keepdims=True) * phi / phi.sum()
    c = np.cov(marginals.T)
    plan = assign(phi + 0.5 * np.diag(c), 0.5 * c + 0.5 * np.diag(np.diag(c)), np.ones(n, dtype=int), n - low)
    assert plan.status == "optimal"
    assert plan.low.sum() == low
    assert plan.seconds < 5


def test_knapsack_of_many_unequal_linears_is_exact():
    rng = np.random.default_rng(2)
    n = 300
    linear, costs = rng.exponential(1, n), rng.integers(10_000, 99_999, n)
    plan = assign(linear, np.zeros((n, n)), costs, int(costs.sum() // 3))
    assert plan.status == "optimal"
    assert costs[~plan.low].sum() <= costs.sum() // 3
    ratio = np.sort((linear / costs)[plan.low])
    assert np.median(ratio) < np.median(linear / costs)  # cheap steps per byte are the ones taken


def test_a_plan_that_ran_out_of_time_is_never_called_optimal():
    rng = np.random.default_rng(3)
    n = 60
    pair = rng.normal(size=(n, n))
    plan = assign(rng.normal(size=n), pair + pair.T, rng.integers(1, 100, n), 1500, time_limit=0.5)
    assert plan.status == "time_limit"
    assert plan.bound < plan.objective
    assert plan.gap == pytest.approx((plan.objective - plan.bound) / abs(plan.objective))


def test_hundreds_of_open_steps_end_at_the_time_limit():
    rng = np.random.default_rng(3)
    n = 300
    marginals = rng.normal(size=(100, n))
    c = np.cov((marginals - marginals.mean(1, keepdims=True)).T)
    plan = assign(rng.exponential(1, n), c, np.ones(n, dtype=int), n // 2, time_limit=1)
    assert plan.status == "time_limit"
    assert plan.bound < plan.objective


def test_scale_of_the_loss_changes_no_linear_plan_but_may_change_a_quadratic_one():
    rng = np.random.default_rng(4)
    phi, marginals = rng.exponential(1, 12), rng.normal(size=(40, 12)) * 2
    c = np.cov((marginals - marginals.mean(1, keepdims=True)).T)
    costs, none = np.ones(12, dtype=int), np.zeros((12, 12))
    per_scale = [assign(s * phi, none, costs, 6).low for s in (1e-6, 1.0, 1e6)]
    assert (per_scale[0] == per_scale[1]).all()
    assert (per_scale[1] == per_scale[2]).all()
    covariance = [assign(s * phi + s**2 * 0.5 * np.diag(c), s**2 * 0.5 * c, costs, 6).low for s in (0.01, 100.0)]
    assert (covariance[0] != covariance[1]).any()


def test_alpha_one_minimises_shapley_plus_variance():
    rng = np.random.default_rng(6)
    phi, variance = rng.exponential(1, 10), rng.exponential(1, 10)
    plan = assign(phi, np.diag(variance), np.ones(10, dtype=int), 5)
    assert sorted(np.argsort(phi + variance)[:5]) == np.flatnonzero(plan.low).tolist()


def test_a_step_that_lowers_the_loss_is_taken_beyond_need():
    plan = assign([-1.0, 2.0], np.zeros((2, 2)), [1, 1], ANY)
    assert plan.low.tolist() == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [[]], [], 0), "linear"),
        (([1.0, 2.0], np.zeros((3, 3)), [1, 1], 1), "pair"),
        (([1.0, 2.0], [[0, 1], [2, 0]], [1, 1], 1), "pair"),
        (([1.0, np.nan], np.zeros((2, 2)), [1, 1], 1), "linear"),
        (([1.0, 2.0], np.zeros((2, 2)), [1, -1], 1), "costs"),
        (([1.0, 2.0], np.zeros((2, 2)), [1, 1.5], 1), "costs"),
        (([1.0, 2.0], np.zeros((2, 2)), [1, 1], -1), "capacity"),
    ],
)
def test_wrong_input_names_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        assign(*arguments)


def test_wrong_options():
    with pytest.raises(ValueError, match="widths"):
        assign([1.0] * 3, np.zeros((3, 3)), [1] * 3, 1, widths=3)
    with pytest.raises(ValueError, match="time_limit"):
        assign([1.0], [[0.0]], [1], 1, time_limit=-1)
