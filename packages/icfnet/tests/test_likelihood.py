import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icfnet.likelihood import balanced_nll, log_survival, nll, risk, survival_loss


def drawn(seed, n=4, patients=12):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(patients, n, generator=rng, dtype=torch.float64)
    return logits, torch.randint(n, (patients,), generator=rng), torch.rand(patients, generator=rng) < 0.5


def by_hand(logits, label, event, a, b):
    """Section 3.9 as it is written, one patient and plain numbers."""
    h = [1 / (1 + math.exp(-z)) for z in logits]
    n = len(h)
    s = {-1: 1.0}
    for k in range(n):
        s[k] = s[k - 1] * (1 - h[k])
    h = {-1: 0.0, **dict(enumerate(h))}
    c, y = 0 if event else 1, label
    u = -(1 - c) * (math.log(s[y - 1]) + math.log(h[y]))
    v = -c * math.log(s[y])
    u_b = -(1 - c) * (math.log(s[y - 1]) + (n - y - 1) * math.log(1 - h[y - 1]) + math.log(h[y]))
    v_b = -c * (math.log(s[y]) + (n - y - 1) * math.log(1 - h[y]))
    return (1 - b) * ((1 - a) * (u + v) + a * u) + b * ((1 - a) * (u_b + v_b) + a * u)


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.integers(2, 6))
@settings(max_examples=30)
def test_losses_are_the_written_ones(seed, a, b, n):
    logits, label, event = drawn(seed, n)
    found = balanced_nll(logits, label, event, alpha=a, beta=b)
    rows = zip(logits.tolist(), label.tolist(), event.tolist(), strict=True)
    expected = torch.tensor([by_hand(*row, a, b) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(survival_loss("balanced_nll", logits, label, event, alpha=a, beta=b), found)
    standard = survival_loss("nll", logits, label, event, alpha=a, beta=b)
    assert torch.equal(standard, nll(logits, label, event, alpha=a))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[200.0, -200, 200, -200]], requires_grad=True)
    loss = balanced_nll(logits, torch.tensor([3]), torch.tensor([True])).sum()
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_survival_and_risk():
    logits, *_ = drawn(0)
    hazard = logits.sigmoid()
    survival = (1 - hazard).cumprod(1)
    torch.testing.assert_close(log_survival(logits).exp(), survival)
    torch.testing.assert_close(risk(logits), -survival.sum(1))


@pytest.mark.parametrize(
    ("label", "event"),
    [
        (torch.tensor([0, 4]), torch.ones(2).bool()),
        (torch.tensor([0, -1]), torch.ones(2).bool()),
        (torch.tensor([0.0, 1]), torch.ones(2).bool()),
        (torch.tensor([0]), torch.ones(2).bool()),
        (torch.tensor([0, 1]), torch.ones(3).bool()),
    ],
)
def test_wrong_labels(label, event):
    with pytest.raises(ValueError, match="label"):
        nll(torch.zeros(2, 4), label, event)
