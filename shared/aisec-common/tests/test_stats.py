import numpy as np
import pytest
from aisec_common.stats import BOOTSTRAP_FROM, PairedMean, holm_levels
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=30).filter(lambda x: np.std(x) > 1e-6))
def test_small_samples_are_the_t_test(effects):
    mean = PairedMean(effects)
    reference = stats.ttest_1samp(effects, 0.3)
    interval = reference.confidence_interval(0.95)
    assert mean.interval(0.95) == pytest.approx((interval.low, interval.high), rel=1e-9, abs=1e-9)
    assert mean.p_value(0.3) == pytest.approx(reference.pvalue, rel=1e-9, abs=1e-12)


def test_large_samples_are_the_percentile_bootstrap():
    effects = np.random.default_rng(1).exponential(size=BOOTSTRAP_FROM)
    reference = stats.bootstrap((effects,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    assert PairedMean(effects).interval(0.95) == pytest.approx(tuple(reference.confidence_interval), abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_interval_and_p_value_agree(seed):
    mean = PairedMean(np.random.default_rng(seed).exponential(size=BOOTSTRAP_FROM))
    low, high = mean.interval(0.95)
    for value in (low - 0.05 * (high - low), high + 0.05 * (high - low)):
        assert mean.p_value(value) <= 0.0502
    assert mean.p_value(low + 0.05 * (high - low)) >= 0.0498


def test_an_interval_can_be_rebuilt_to_the_digit():
    effects = np.random.default_rng(1).normal(size=BOOTSTRAP_FROM)
    assert PairedMean(effects).interval(0.9) == PairedMean(effects).interval(0.9)


def test_many_samples_stay_within_memory():
    assert PairedMean(np.arange(30_000.0)).interval(0.95)[0] == pytest.approx(14_999.5 - 1.96 * 50, abs=5)


@pytest.mark.parametrize("effects", [[], [1.0], [[1.0, 2.0]], [1.0, float("nan")]])
def test_unusable_effects_are_named(effects):
    with pytest.raises(ValueError, match="effects"):
        PairedMean(effects)


@pytest.mark.parametrize("level", [0, 1, 1.5])
def test_unusable_level_is_named(level):
    with pytest.raises(ValueError, match="level"):
        PairedMean([1.0, 2.0]).interval(level)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_textbook_rejects(p_values):
    m = len(p_values)
    rejected = set()
    for k, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        if p_values[index] > 0.05 / (m - k):
            break
        rejected.add(index)
    levels = holm_levels(p_values)
    assert {i for i in range(m) if p_values[i] <= 1 - levels[i] - 1e-12 or i in rejected} == rejected
    assert all(p_values[i] <= 1 - levels[i] + 1e-12 for i in rejected)


def test_equal_p_values_stand_in_the_order_given_whatever_their_last_digits():
    assert holm_levels([0.001, 0.01, 0.01 * (1 - 1e-14)]) == holm_levels([0.001, 0.01, 0.01])


def test_holm_levels_of_the_house():
    assert holm_levels([0.001, 0.01, 0.02]) == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 2, 0.95])
