import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from impq.relaxation import convex_form, fractional_knapsack, project, settle

SEEDS = st.integers(0, 10_000)


def plans(n):
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1


def instance(seed, n=9):
    rng = np.random.default_rng(seed)
    pair = rng.normal(size=(n, n)) * rng.choice([0, 0.1, 1])
    costs = rng.integers(0, 50, n)
    return rng.normal(0.3, 1, n), (pair + pair.T) / 2, costs, int(rng.integers(0, costs.sum() + 1))


@given(SEEDS)
def test_convex_form_keeps_the_objective_and_is_semidefinite(seed):
    linear, pair, _, _ = instance(seed, n=6)
    new_linear, new_pair = convex_form(linear, pair)
    q = plans(6)
    value = q @ linear + ((q @ pair) * q).sum(1)
    assert q @ new_linear + ((q @ new_pair) * q).sum(1) == pytest.approx(value, abs=1e-9)
    assert np.linalg.eigvalsh(new_pair)[0] > -1e-9


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_convex_form_of_the_papers_matrix_is_its_covariance_part(alpha):
    rng = np.random.default_rng(0)
    marginals = rng.normal(size=(30, 8))
    c = np.cov((marginals - marginals.mean(1, keepdims=True)).T)  # rows sum to 0, as efficiency has it
    linear, pair = convex_form(np.zeros(8), (1 - alpha) * c + alpha * np.diag(np.diag(c)))
    assert pair == pytest.approx((1 - alpha) * c, abs=1e-9)
    assert linear == pytest.approx(alpha * np.diag(c), abs=1e-9)


@given(SEEDS)
@settings(max_examples=50)
def test_fractional_knapsack_is_the_linear_programme_and_its_dual(seed):
    gradient, _, costs, need = instance(seed)
    value, price = fractional_knapsack(gradient, costs.astype(float), need)
    reference = linprog(gradient, A_ub=-costs[None], b_ub=[-need], bounds=(0, 1))
    assert value == pytest.approx(reference.fun, abs=1e-7)
    assert price >= 0


@given(SEEDS)
@settings(max_examples=30)
def test_projection_is_the_nearest_feasible_point(seed):
    point, _, costs, need = instance(seed, n=5)
    share, goal = costs / max(costs.max(), 1), need / max(costs.max(), 1)
    y = project(point, share, goal)
    assert ((y >= 0) & (y <= 1)).all()
    assert share @ y >= goal - 1e-9
    reference = minimize(
        lambda z: ((z - point) ** 2).sum(),
        np.ones(5),
        jac=lambda z: 2 * (z - point),
        bounds=[(0, 1)] * 5,
        constraints={"type": "ineq", "fun": lambda z: share @ z - goal, "jac": lambda z: share},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert ((y - point) ** 2).sum() <= reference.fun + 1e-6


@given(SEEDS)
@settings(max_examples=60)
def test_bound_lies_below_the_optimum_and_settled_steps_agree_with_it(seed):
    linear, pair, costs, need = instance(seed)
    q = plans(9)
    value = np.where(q @ costs >= need, q @ linear + ((q @ pair) * q).sum(1), np.inf)
    optimum = value.min()
    bound, settled = settle(linear, pair, costs, need, optimum)
    assert bound <= optimum
    for best in q[value <= optimum + 1e-12]:  # ties included
        assert (best[settled] == q[value.argmin()][settled]).all()


def test_bound_of_a_convex_programme_reaches_its_relaxation():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(12, 12))
    pair = root @ root.T / 12
    linear, costs = rng.normal(size=12), np.ones(12, dtype=int)
    form = convex_form(linear, pair)
    reference = minimize(
        lambda z: z @ (form[0] + form[1] @ z),
        np.full(12, 0.5),
        jac=lambda z: form[0] + 2 * form[1] @ z,
        bounds=[(0, 1)] * 12,
        constraints={"type": "ineq", "fun": lambda z: z.sum() - 6, "jac": lambda z: np.ones(12)},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    bound, _ = settle(linear, pair, costs, 6, incumbent=reference.fun + 10)
    assert bound == pytest.approx(reference.fun, abs=1e-4)
