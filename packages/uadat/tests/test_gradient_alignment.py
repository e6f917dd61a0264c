import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import staged
from torch import nn

from uadat import gradient_alignment
from uadat.gradient_alignment import (
    cosine_misalignment,
    input_gradients,
    slope_misalignment,
    squared_misalignment,
    warn_of_kinks,
)

SEEDS = st.integers(0, 10**6)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SEEDS, st.floats(1e-8, 1e8))
@settings(max_examples=30)
def test_cosine_is_that_of_the_angle_at_any_scale(seed, scale):
    a, b = random(6, 2, 3, seed=seed), random(6, 2, 3, seed=seed + 1)
    found, dead = cosine_misalignment(a, scale * b)
    assert found.item() == pytest.approx(
        (1 - nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))).mean().item(), rel=1e-9
    )
    assert 0 <= found <= 2
    assert dead == 0


def test_gradients_too_small_for_a_library_epsilon():
    a = torch.tensor([[1e-20, 2e-20]])
    assert cosine_misalignment(a, 3 * a)[0].item() == pytest.approx(0, abs=1e-6)


def test_zero_rows_contribute_nothing_and_have_no_nan_gradient():
    a, b = random(4, 3).requires_grad_(), random(4, 3, seed=1)
    with torch.no_grad():
        a[0] = 0
    b[1] = 0
    found, dead = cosine_misalignment(a, b)
    alive = 1 - nn.functional.cosine_similarity(a[2:], b[2:])
    assert found.item() == pytest.approx(alive.sum().item() / 4)
    assert dead.item() == pytest.approx(0.5)
    (gradient,) = torch.autograd.grad(found, a)
    assert gradient.isfinite().all()
    assert not gradient[:2].any()


def test_squared():
    a, b = random(4, 3), random(4, 3, seed=1)
    b[2] = 0
    found, dead = squared_misalignment(a, b)
    assert found.item() == pytest.approx(sum(((a[i] - b[i]) ** 2).sum().item() for i in range(4)) / 4)
    assert dead.item() == pytest.approx(0.25)


def test_each_row_is_its_own_samples_gradient():
    net = staged(activation=nn.Softplus).double()
    images, labels = torch.rand(5, 1, 6, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 2, 3, 0])
    found = input_gradients(net(images), labels, images)
    for i in range(5):
        one = images[i : i + 1].detach().requires_grad_()
        (alone,) = torch.autograd.grad(nn.functional.cross_entropy(net(one), labels[i : i + 1]), one)
        torch.testing.assert_close(found[i : i + 1], alone)


@pytest.mark.parametrize("metric", ["cos", "l2"])
def test_slopes(metric):
    reference, middle, last = torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 5.0], [2.0, 2.0, 7.0]]).double()
    lengths = torch.tensor([1.0, 2.0, 4.0]).double()
    found, dead = slope_misalignment(reference, middle, last, lengths, metric)
    cosines = [1 - 2 * 1 * 1 / 2, 0.0, 1 - 2 * 3 * 2 / (9 + 4)]  # the middle one has a slope of 0
    rows = {"cos": cosines, "l2": [0.0, 0.0, (2 * (2 - 3) / 4) ** 2]}[metric]
    assert found.item() == pytest.approx(sum(rows) / 3)
    assert dead.item() == pytest.approx(1 / 3)


@given(SEEDS, st.floats(1e-6, 1e6))
@settings(max_examples=30)
def test_slopes_are_bounded_and_free_of_scale(seed, scale):
    values = random(3, 6, seed=seed).requires_grad_()
    found, _ = slope_misalignment(*values, torch.ones(6), "cos")
    scaled, _ = slope_misalignment(*(scale * values), torch.ones(6), "cos")
    assert 0 <= found <= 2
    assert scaled.item() == pytest.approx(found.item(), rel=1e-6, abs=1e-9)
    assert torch.autograd.grad(found, values)[0].isfinite().all()


def test_the_warning_comes_once_and_only_for_kinks(caplog):
    gradient_alignment._warn.cache_clear()
    with caplog.at_level(logging.WARNING, "uadat"):
        warn_of_kinks(staged(activation=nn.Softplus))
        assert not caplog.messages
        warn_of_kinks(staged())
        warn_of_kinks(staged())
    assert len(caplog.messages) == 1
    assert "second derivative is zero almost everywhere" in caplog.messages[0]
