import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusal_index.ranking import isotonic_residuals, kendall_w, winner_entropy


def test_kendall_w_equals_friedman() -> None:
    from scipy.stats import friedmanchisquare

    scores = np.random.default_rng(0).normal(size=(8, 5))
    friedman = friedmanchisquare(*scores.T).statistic
    assert kendall_w(scores) == pytest.approx(friedman / (8 * (5 - 1)))


def test_kendall_w_limits() -> None:
    order = np.arange(6.0)
    assert kendall_w(np.tile(order, (4, 1))) == 1
    assert kendall_w([order, order[::-1]]) == 0
    random = [kendall_w(np.random.default_rng(seed).normal(size=(4, 5))) for seed in range(300)]
    assert np.mean(random) == pytest.approx(1 / 4, abs=0.02)


def test_winner_entropy() -> None:
    assert winner_entropy(np.eye(3)) == pytest.approx(1)
    assert winner_entropy([[3, 2, 1], [9, 8, 7]]) == 0
    p = [3 / 4, 1 / 4]
    assert winner_entropy([[1, 0], [1, 0], [1, 0], [0, 1]]) == pytest.approx(-sum(x * math.log(x, 2) for x in p))
    assert winner_entropy([[1, 1, 0], [1, 1, 0]]) == pytest.approx(math.log(2, 3))


def monotone_least_squares(y: np.ndarray, x: np.ndarray, sign: int) -> np.ndarray:
    """Minimax formula of isotonic regression, in exact arithmetic of means: slow and independent."""
    order = np.argsort(sign * x)
    z = y[order]
    fit = [max(min(z[i : j + 1].mean() for j in range(k, len(z))) for i in range(k + 1)) for k in range(len(z))]
    return np.array(fit)[np.argsort(order)]


def test_one_covariate_against_the_minimax_formula() -> None:
    rng = np.random.default_rng(1)
    metric, x = rng.normal(size=(8, 3)), rng.random(size=(8, 3))
    residual = isotonic_residuals(metric, x)
    for i in range(3):
        ranks = [np.argsort(np.argsort(v[:, i])) for v in (x, metric)]
        sign = 1 if np.corrcoef(*ranks)[0, 1] >= 0 else -1
        np.testing.assert_allclose(residual[:, i], metric[:, i] - monotone_least_squares(metric[:, i], x[:, i], sign))


def test_an_additive_monotone_metric_leaves_nothing() -> None:
    rng = np.random.default_rng(2)
    c, r = rng.random((8, 4)), rng.random((8, 4))
    metric = c**2 - 0.3 * np.sqrt(r)
    assert np.abs(isotonic_residuals(metric, c, r)).max() < 0.05 * np.ptp(metric)
    np.testing.assert_allclose(isotonic_residuals(c**2, c), 0, atol=1e-12)


@given(st.integers(0, 10_000), st.integers(4, 16))
@settings(max_examples=40)
def test_the_additive_fit_converges_and_explains_more_than_either_part(seed: int, settings_: int) -> None:
    rng = np.random.default_rng(seed)
    metric, c, r = rng.normal(size=(3, settings_, 2))
    both = isotonic_residuals(metric, c, r)
    assert (np.square(both).sum(0) <= np.square(isotonic_residuals(metric, c)).sum(0) + 1e-9).all()
    np.testing.assert_allclose(both.mean(axis=0), 0, atol=1e-9)


def test_a_constant_covariate_explains_the_mean_only() -> None:
    metric = np.random.default_rng(3).normal(size=(5, 2))
    np.testing.assert_allclose(isotonic_residuals(metric, np.ones((5, 2))), metric - metric.mean(axis=0), atol=1e-12)


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        kendall_w([[1, 2]])
    with pytest.raises(ValueError, match="finite"):
        winner_entropy([[1, np.nan], [1, 2]])
    with pytest.raises(ValueError, match="one or two"):
        isotonic_residuals(np.eye(2))
    with pytest.raises(ValueError, match="shape"):
        isotonic_residuals(np.eye(2), np.eye(3))
