import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_the_translation_step_changes_nothing_but_the_time(monkeypatch):
    from icfnet import transport

    x, y, mask = drawn(5, (30, 12))
    cost = transport_cost(x, y, mask)
    faster = transport_plan(cost, mask, tolerance=1e-13)
    monkeypatch.setattr(transport, "MASS_LIMIT", 0.0)
    plain = transport_plan(cost, mask, tolerance=1e-13, max_iterations=5000)
    torch.testing.assert_close(faster, plain, rtol=1e-10, atol=0)


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
