import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_index.intervals import (
    analytic_se,
    bootstrap_counts,
    bootstrap_ri,
    paired_bootstrap,
    percentile_interval,
    rho_standard_error,
)
from refusal_index.table import cell_counts
from refusal_index.tetrachoric import ri_from_rho, tetrachoric

TABLE = (1500.0, 360.0, 1658.0, 808.0)


@given(st.tuples(*[st.integers(20, 5000)] * 4))
@settings(max_examples=50)
def test_analytic_se_equals_numerical_differentiation(counts: tuple[int, int, int, int]) -> None:
    table = np.array(counts, dtype=float)
    n, share, step = table.sum(), table / table.sum(), 1e-6
    for function, se in ((tetrachoric, rho_standard_error), (lambda t: ri_from_rho(tetrachoric(t)), analytic_se)):
        slope = np.array([(function(share + e) - function(share - e)) / (2 * step) for e in step * np.eye(4)])
        variance = (share * slope**2).sum() - (share * slope).sum() ** 2
        assert se(table) == pytest.approx(np.sqrt(variance / n), rel=1e-3)


def test_analytic_se_is_vectorised_and_undefined_on_a_bound() -> None:
    se = analytic_se([TABLE, (5, 0, 3, 4), (0, 0, 3, 4)])
    assert se[0] == analytic_se(TABLE) > 0
    assert np.isnan(se[1:]).all()


def test_multinomial_draws_are_the_bootstrap_over_questions() -> None:
    rng = np.random.default_rng(0)
    refused, wrong = rng.random(60) < 0.5, rng.random(60) < 0.6
    slow = []
    for _ in range(4000):
        index = rng.integers(60, size=60)
        slow.append(cell_counts(refused[index], wrong[index]))
    fast = bootstrap_counts(cell_counts(refused, wrong), resamples=4000)
    np.testing.assert_allclose(fast.mean(0), np.mean(slow, axis=0), atol=0.3)
    np.testing.assert_allclose(np.cov(fast.T), np.cov(np.array(slow).T), atol=1.0)


def test_generator_and_seed() -> None:
    first = bootstrap_counts(TABLE, 5, rng=3)
    assert np.array_equal(first, bootstrap_counts(TABLE, 5, rng=np.random.default_rng(3)))
    assert not np.array_equal(first, bootstrap_counts(TABLE, 5, rng=4))


def test_correction_keeps_replicates_inside_but_not_undefined_ones() -> None:
    plain, corrected = (bootstrap_ri(np.array([2.0, 1.0, 5.0, 4.0]), 500, 0, added) for added in (0.0, 0.5))
    assert np.array_equal(np.isnan(plain), np.isnan(corrected))
    assert np.nanmax(np.abs(plain)) == 1
    assert np.nanmax(np.abs(corrected)) < 1


def test_percentile_interval_refuses_undefined_replicates() -> None:
    replicates = np.arange(100.0)
    replicates[:5] = np.nan
    assert percentile_interval(replicates, 0.5) == tuple(np.quantile(replicates[5:], [0.25, 0.75]))
    replicates[5] = np.nan
    assert np.isnan(percentile_interval(replicates, 0.5)).all()


def settings_on_shared_questions(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    noise = rng.normal(size=(2, 3, n))
    return difficulty + noise[0] > [[0.0], [0.8], [-0.8]], difficulty + noise[1] > -0.5


def test_paired_bootstrap_against_a_loop_over_resamples() -> None:
    refused, wrong = settings_on_shared_questions(300, 0)
    rng = np.random.default_rng(1)
    slow = []
    for _ in range(3000):
        index = rng.integers(300, size=300)
        slow.append(ri_from_rho(tetrachoric(cell_counts(refused[:, index], wrong[:, index]))))
    fast = paired_bootstrap(refused, wrong, resamples=3000)
    assert fast.shape == (3000, 3)
    np.testing.assert_allclose(fast.mean(0), np.mean(slow, axis=0), atol=0.01)
    np.testing.assert_allclose(np.cov(fast.T), np.cov(np.array(slow).T), atol=0.1 * fast.var(0).max())
    assert np.corrcoef(fast.T)[0, 1] > 0.05  # the pairing is kept


def test_paired_bootstrap_of_one_setting_is_the_bootstrap() -> None:
    refused, wrong = settings_on_shared_questions(2000, 2)
    single = bootstrap_ri(cell_counts(refused[0], wrong[0]), 4000, 0)
    paired = paired_bootstrap(refused[:1], wrong[:1], resamples=4000)[:, 0]
    assert paired.std() == pytest.approx(single.std(), rel=0.05)
    assert paired.mean() == pytest.approx(single.mean(), abs=0.005)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    refused, wrong = settings_on_shared_questions(200, 3)
    whole = paired_bootstrap(refused, wrong, resamples=50)
    monkeypatch.setattr("refusal_index.intervals.BLOCK", 100)
    assert np.array_equal(paired_bootstrap(refused, wrong, resamples=50), whole)


def test_many_settings_do_not_overflow_the_pattern_codes() -> None:
    refused, wrong = settings_on_shared_questions(100, 4)
    replicates = paired_bootstrap(np.tile(refused, (40, 1)), np.tile(wrong, (40, 1)), resamples=5)
    assert np.array_equal(replicates[:, :3], replicates[:, -3:])


def test_errors() -> None:
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_counts(TABLE, 0)
    with pytest.raises(ValueError, match="one table"):
        bootstrap_counts([TABLE, TABLE], 5)
    with pytest.raises(ValueError, match="one row per setting"):
        paired_bootstrap([1, 0], [1, 0])
    with pytest.raises(ValueError, match="level"):
        percentile_interval(np.arange(3.0), 95)
