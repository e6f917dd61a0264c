import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icfnet import transport
from icfnet.transport import co_attend, transport_cost, transport_plan

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # compiling POT's docstrings: invalid escape sequence
    import ot


def drawn(seed, lengths, m=6, c=8, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), max(lengths), c, generator=rng, dtype=dtype)
    y = torch.randn(len(lengths), m, c, generator=rng, dtype=dtype)
    return x, y, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def pot(cost, reg, tau):
    a, b = (np.full(size, 1 / size) for size in cost.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(
            ot.unbalanced.sinkhorn_knopp_unbalanced(
                a, b, cost.numpy(), reg, tau, reg_type="entropy", stopThr=1e-12, numItermax=5000
            )
        )


@given(st.integers(0, 10**6), st.floats(0.02, 0.5), st.floats(0.1, 3.0))
@settings(max_examples=15)
def test_plan_is_pots(seed, reg, tau):
    lengths = (10, 3, 1, 25)
    x, y, mask = drawn(seed, lengths)
    cost = transport_cost(x, y, mask)
    exact = [pot(cost[i, :n], reg, tau) for i, n in enumerate(lengths)]
    for log_domain in (False, True):
        plan = transport_plan(cost, mask, reg=reg, tau=tau, tolerance=1e-12, log_domain=log_domain)
        for i, n in enumerate(lengths):
            torch.testing.assert_close(plan[i, :n], exact[i], rtol=1e-9, atol=0)
            assert not plan[i, n:].any()


def test_cost_is_the_written_one():
    x, y, mask = drawn(1, (5, 3), m=2)
    tokens = torch.tensor([[True, True], [True, False]])
    found = transport_cost(x, y, mask, tokens)
    for i, (n, m) in enumerate(((5, 2), (3, 1))):
        u = x[i, :n] - x[i, :n].min(1, keepdim=True).values
        v = y[i, :m] - y[i, :m].min(1, keepdim=True).values
        slow = ((u[:, None] - v[None]) ** 2).sum(-1)
        torch.testing.assert_close(found[i, :n, :m], slow / slow.max())
        assert not found[i, n:].any()
        assert not found[i, :, m:].any()


def test_masked_tokens_take_part_in_nothing():
    x, y, mask = drawn(2, (7,), m=4)
    tokens = torch.tensor([[True, False, True, True]])
    plan = transport_plan(transport_cost(x, y, mask, tokens), mask, tokens, tolerance=1e-12)
    kept = y[:, [0, 2, 3]]
    alone = transport_plan(transport_cost(x, kept), tolerance=1e-12)
    torch.testing.assert_close(plan[:, :, [0, 2, 3]], alone, rtol=1e-9, atol=0)
    assert not plan[:, :, 1].any()


@pytest.mark.parametrize("log_domain", [False, True])
def test_empty_patients_get_zeros(log_domain):
    x, y, mask = drawn(3, (7, 7, 7), dtype=torch.float32)
    mask = mask & torch.tensor([[True], [False], [True]])
    tokens = torch.ones(3, 6, dtype=torch.bool) & torch.tensor([[True], [True], [False]])
    plan = transport_plan(transport_cost(x, y, mask, tokens), mask, tokens, log_domain=log_domain)
    assert plan.isfinite().all()
    assert plan[0].sum() > 0.1
    assert not plan[1:].any()
    assert not co_attend(x, y, mask, tokens, reg=0.05, tau=0.5)[1:].any()


def test_small_reg_takes_the_log_domain():
    x, y, mask = drawn(4, (40,), dtype=torch.float32)
    cost = transport_cost(x, y, mask)
    plan = transport_plan(cost, reg=1 / 130)
    torch.testing.assert_close(plan[0].double(), pot(cost[0].double(), 1 / 130, 0.5), rtol=1e-3, atol=1e-12)
    assert plan.isfinite().all()


def plain_plan(cost, mask, tokens, reg, tau, most=3000):
    """The plain iteration of one patient after the other, in double precision, on logarithms."""
    power, plans = tau / (tau + reg), torch.zeros_like(cost, dtype=torch.float64)
    for i in range(len(cost)):
        seen = mask[i][:, None] & tokens[i]
        if not seen.any():
            continue
        exponent = cost[i].double()[mask[i]][:, tokens[i]] / -reg
        n, m = exponent.shape
        log_v = exponent.new_zeros(m)
        for _ in range(most):
            last = log_v
            log_u = power * (-math.log(n) - torch.logsumexp(exponent + log_v, 1))
            log_v = power * (-math.log(m) - torch.logsumexp(exponent + log_u[:, None], 0))
            if (log_v - last).abs().max() < 1e-13:
                break
        plans[i][seen] = (exponent + log_u[:, None] + log_v).exp().flatten()
    return plans


def rounds(monkeypatch):
    """Counts the rounds of the solver; the list grows by one entry a round."""
    seen, solve = [], transport._fixed_point

    def counted(round_of, *rest):
        return solve(lambda log_v: seen.append(1) or round_of(log_v), *rest)

    monkeypatch.setattr(transport, "_fixed_point", counted)
    return seen


@given(
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(-2.0, 0.0),
    st.floats(-1.0, 1.3),
    st.sampled_from([1, 2, 6, 12]),
)
@settings(max_examples=25, deadline=None)
def test_newton_finds_what_the_plain_iteration_finds(seed, dtype, log_reg, log_ratio, m):
    reg = 10**log_reg
    tau = reg * 10**log_ratio  # beyond a ratio of 20 the plain iteration is too slow to be a reference
    x, y, mask = drawn(seed, (40, 3, 1, 17, 8), m=m)
    rng = torch.Generator().manual_seed(seed)
    mask = mask & (torch.rand(mask.shape, generator=rng) < 0.8)
    tokens = torch.rand(5, m, generator=rng) < 0.8
    cost = transport_cost(x, y, mask, tokens)
    tolerance, apart = (1e-12, 1e-9) if dtype == torch.float64 else (1e-6, 5e-5)
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = rounds(monkeypatch)
        plan = transport_plan(cost.to(dtype), mask, tokens, reg=reg, tau=tau, tolerance=tolerance)
    torch.testing.assert_close(plan.double(), plain_plan(cost, mask, tokens, reg, tau), rtol=apart, atol=1e-30)
    assert len(seen) <= 100


@pytest.mark.parametrize("log_domain", [False, True])
def test_five_rounds_are_enough(monkeypatch, log_domain):
    seen = rounds(monkeypatch)
    x, y, mask = drawn(5, (200, 12))
    transport_plan(transport_cost(x, y, mask), mask, tolerance=1e-12, log_domain=log_domain)
    assert len(seen) <= 6


@pytest.mark.parametrize("tau", [50.0, 1e4, 1e9])
def test_strong_marginals_need_few_rounds_too(monkeypatch, tau):
    seen = rounds(monkeypatch)
    x, y, mask = drawn(6, (30, 12, 1))
    plan = transport_plan(transport_cost(x, y, mask), mask, tau=tau, tolerance=1e-12)
    assert len(seen) <= 30
    if tau > 1e3:
        torch.testing.assert_close(
            plan.sum(1), torch.full((3, 6), 1 / 6, dtype=torch.float64), rtol=1.5 / tau, atol=1e-12
        )


@pytest.mark.parametrize("wrong", [0.0, 1e3, -1e3, math.nan])
def test_a_newton_step_that_misleads_costs_two_rounds_for_one(monkeypatch, wrong):
    """Where Newton's matrix is of no use the plain iteration is left, and the plan is the same."""
    solve = torch.linalg.solve_ex

    def misled(matrix, right):
        solution, info = solve(matrix, right)
        return torch.full_like(solution, wrong), info

    x, y, mask = drawn(7, (30, 12))
    tokens = torch.ones(2, 6, dtype=torch.bool)
    cost = transport_cost(x, y, mask)
    expected = plain_plan(cost, mask, tokens, 0.05, 0.5)
    seen = rounds(monkeypatch)
    monkeypatch.setattr(torch.linalg, "solve_ex", misled)
    plan = transport_plan(cost, mask, tokens, tolerance=1e-12)
    torch.testing.assert_close(plan, expected, rtol=1e-9, atol=0)
    rate = (0.5 / 0.55) ** 2
    assert 20 < len(seen) <= 2 * math.ceil(math.log(1e-13) / math.log(rate))


def test_a_stop_below_the_rounding_errors_still_ends(monkeypatch):
    seen = rounds(monkeypatch)
    x, y, mask = drawn(8, (60, 12), dtype=torch.float32)
    for log_domain in (False, True):
        plan = transport_plan(transport_cost(x, y, mask), mask, tolerance=0.0, log_domain=log_domain)
        assert plan.isfinite().all()
    assert len(seen) < 60


@pytest.mark.parametrize(
    ("cost", "changes", "words"),
    [
        (torch.zeros(2, 3), {}, "cost must be floating"),
        (torch.full((1, 2, 2), torch.nan), {}, "finite"),
        (-torch.ones(1, 2, 2), {}, ">= 0"),
        (torch.ones(1, 2, 2), {"reg": 0.0}, "reg and tau"),
        (torch.ones(1, 2, 2), {"tau": -1.0}, "reg and tau"),
    ],
)
def test_wrong_input(cost, changes, words):
    with pytest.raises(ValueError, match=words):
        transport_plan(cost, **changes)
