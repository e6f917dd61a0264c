import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uadat.matching import prediction_alignment, statistics_distance

SEEDS = st.integers(0, 10**6)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEEDS, st.integers(1, 4))
@settings(max_examples=20)
def test_alignment_sum_by_sum(seed, copies):
    reference, logits = random(5, 3, seed=seed), random(5 * copies, 3, seed=seed + 1)
    p = reference.softmax(1)
    expected = 0.0
    for m in range(copies):
        for i in range(5):
            q = logits[m * 5 + i].softmax(0)
            expected += sum(p[i, k] * torch.log(p[i, k] / q[k]) for k in range(3)).item() / 5 / copies
    assert prediction_alignment(reference, logits).item() == pytest.approx(expected, rel=1e-9)


def test_the_gradient_reaches_both_sides():
    sides = [random(4, 3, seed=s).requires_grad_() for s in (0, 1)]
    assert all(g.any() for g in torch.autograd.grad(prediction_alignment(*sides), sides))


@given(SEEDS, st.floats(-3, 3))
@settings(max_examples=20)
def test_w2_of_a_shifted_batch(seed, shift):
    means = random(7, 4, seed=seed)
    assert statistics_distance(means, means).item() == 0
    assert statistics_distance(means, means + shift).item() == pytest.approx(shift**2, rel=1e-9, abs=1e-12)


def test_w2_is_that_of_gaussians():
    """Against the closed form for diagonal covariances, through matrix square roots."""
    from scipy.linalg import sqrtm

    a, b = random(9, 3), 2 * random(9, 3, seed=1) + 1
    covariances = [torch.diag(x.var(0) + 1e-6).numpy() for x in (a, b)]
    root = sqrtm(covariances[0])
    cross = sqrtm(root @ covariances[1] @ root)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + (covariances[0] + covariances[1] - 2 * cross).trace()
    assert statistics_distance(a, b).item() == pytest.approx(expected / 3, rel=1e-9)


def test_dead_channels_have_a_gradient():
    means = torch.zeros(4, 2, requires_grad=True)
    statistics_distance(means, torch.ones(4, 2)).backward()
    assert means.grad.isfinite().all()
