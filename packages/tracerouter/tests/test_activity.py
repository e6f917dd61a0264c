from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracerouter.activity import Activity


def batch(seed, rows=4, tokens=6, units=5):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, tokens, units, generator=generator)
    mask = torch.rand(rows, tokens, generator=generator) < 0.7
    mask[0, 0] = True
    return values, mask


def by_hand(rows, sign):
    """f, μ and f μ of lists of numbers, one unit after the other."""
    found = []
    for unit in zip(*rows, strict=True):
        strengths = [abs(v) if sign == "abs" else max(v, 0.0) for v in unit]
        active = [s for s in strengths if s > 0]
        f, mu = len(active) / len(strengths), sum(active) / len(active) if active else 0.0
        found.append((f, mu, f * mu))
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*found, strict=True)]


@given(st.integers(0, 10**6), st.sampled_from(["positive", "abs"]))
@settings(max_examples=25)
def test_statistics_are_those_of_a_plain_loop(seed, sign):
    values, mask = batch(seed)
    activity = Activity(5, sign=sign)
    activity.update(values, mask)
    expected = by_hand(values[mask].tolist(), sign)
    for got, want in zip((activity.frequency, activity.mean_active, activity.wfs), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_a_silent_unit_has_frequency_and_mean_zero():
    activity = Activity(2)
    activity.update(torch.tensor([[-1.0, 2.0], [-3.0, 0.0]]))
    assert activity.frequency.tolist() == [0.0, 0.5]
    assert activity.mean_active.tolist() == [0.0, 2.0]


def test_merging_is_seeing_both():
    (one, mask_one), (two, mask_two) = batch(1), batch(2)
    first, second, both = Activity(5, sign="abs"), Activity(5, sign="abs"), Activity(5, sign="abs")
    first.update(one, mask_one)
    second.update(two, mask_two)
    both.update(one, mask_one)
    both.update(two, mask_two)
    merged = first.merge(second)
    assert merged.tokens == both.tokens == mask_one.sum() + mask_two.sum()
    assert torch.equal(merged.active, both.active)
    torch.testing.assert_close(merged.total, both.total, rtol=1e-14, atol=0)
    assert first.tokens == mask_one.sum()  # merge changes neither


def test_many_small_numbers_do_not_drown_in_float32():
    activity = Activity(1)
    for _ in range(20):
        activity.update(torch.full((1000, 1), 0.1))
    activity.update(torch.tensor([[1e7]]))
    assert activity.total.item() == pytest.approx(1e7 + 20_000 * 0.1, rel=1e-7)


def test_half_precision_activations_are_summed_exactly():
    activity = Activity(1, sign="abs")
    activity.update(torch.full((3000, 1), -1.0, dtype=torch.bfloat16))
    assert activity.wfs.item() == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Activity(0), "units must be at least 1"),
        (lambda: Activity(2, sign="both"), "sign must be 'positive' or 'abs'"),
        (lambda: Activity(2).update(torch.ones(3, 4)), r"values must be \[..., 2\]"),
        (lambda: Activity(2).update(torch.ones(3, 4, 2), torch.ones(3, 5)), r"mask must be \[3, 4\]"),
        (lambda: Activity(2).update(torch.tensor([[1.0, float("nan")]])), "NaN or infinity"),
        (lambda: Activity(2).wfs, "has seen no token"),
        (lambda: Activity(2).merge(Activity(3)), "other counts 3 units"),
        (lambda: Activity(2).merge(Activity(2, sign="abs")), "sign 'abs'"),
    ],
)
def test_errors_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
