import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import multivariate_normal, norm

from refusal_index.table import empty_margin
from refusal_index.tetrachoric import bivariate_normal_cdf, rho_from_ri, ri_from_rho, ri_slope, tetrachoric

CELL = st.one_of(st.integers(0, 10), st.integers(0, 5000), st.integers(0, 10**9))
TABLE = st.tuples(CELL, CELL, CELL, CELL)


def test_bivariate_cdf_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    h, k, rho = 2 * rng.normal(size=200), 2 * rng.normal(size=200), rng.uniform(-1, 1, size=200)
    rho[:20] = np.sign(rho[:20]) * (1 - 10.0 ** -rng.uniform(2, 7, size=20))
    slow = [multivariate_normal.cdf([a, b], cov=[[1, c], [c, 1]]) for a, b, c in zip(h, k, rho, strict=True)]
    np.testing.assert_allclose(
        bivariate_normal_cdf(h, k, rho), slow, atol=2e-10
    )  # the reference's own error near |rho|=1


def test_bivariate_cdf_at_its_limits() -> None:
    limits = [-np.inf, -1.0, -0.0, 0.0, 0.7, np.inf]
    for h, k in itertools.product(limits, limits):
        x, y = norm.cdf(h), norm.cdf(k)
        for rho, expected in ((1, min(x, y)), (-1, max(0, x + y - 1)), (0, x * y)):
            assert bivariate_normal_cdf(h, k, rho) == pytest.approx(expected, abs=1e-15), (h, k, rho)
    with pytest.raises(ValueError, match="rho"):
        bivariate_normal_cdf(0, 0, 1.01)
    assert np.isnan(bivariate_normal_cdf(np.nan, 0, 0.5))


@given(st.floats(-6, 6), st.floats(-6, 6), st.floats(-1, 1))
@settings(max_examples=200)
def test_bivariate_cdf_reflects(h: float, k: float, rho: float) -> None:
    value = bivariate_normal_cdf(h, k, rho)
    assert value == bivariate_normal_cdf(k, h, rho)
    assert value + bivariate_normal_cdf(h, -k, -rho) == pytest.approx(norm.cdf(h), abs=1e-14)


def test_ri_and_rho_invert_each_other() -> None:
    rho = np.linspace(-1, 1, 21)
    np.testing.assert_allclose(rho_from_ri(ri_from_rho(rho)), rho, atol=1e-15)
    assert ri_from_rho(-1.0) == -1
    step = 1e-6
    np.testing.assert_allclose(
        ri_slope(0.4), (ri_from_rho(0.4 + step) - ri_from_rho(0.4 - step)) / (2 * step), rtol=1e-8
    )


@given(TABLE)
@settings(max_examples=400)
def test_any_table_gives_a_root_a_bound_or_nan(counts: tuple[int, int, int, int]) -> None:
    n11, n10, n01, n00 = counts
    rho = float(tetrachoric(counts))
    if empty_margin(np.array(counts, dtype=float)):
        assert np.isnan(rho)
    elif min(counts) == 0:
        assert rho == (1.0 if n10 == 0 or n01 == 0 else -1.0)
    else:
        assert -1 <= rho <= 1
        assert np.sign(round(rho, 7)) in (0, np.sign(n11 * n00 - n10 * n01))
        n = sum(counts)
        corner = bivariate_normal_cdf(ndtri((n11 + n10) / n), ndtri((n11 + n01) / n), rho)
        assert corner == pytest.approx(
            n11 / n, abs=3e-8
        )  # rho itself is a float: sqrt(1e-16) of probability at |rho|=1


@given(TABLE, st.integers(2, 9))
@settings(max_examples=200)
def test_symmetries(counts: tuple[int, int, int, int], k: int) -> None:
    n11, n10, n01, n00 = counts
    assume(min(counts) > 0)
    rho = float(tetrachoric(counts))
    same = [(n11, n01, n10, n00), (n00, n01, n10, n11), (k * n11, k * n10, k * n01, k * n00)]
    negated = [(n01, n00, n11, n10), (n10, n11, n00, n01)]
    np.testing.assert_allclose(tetrachoric(same), rho, atol=1e-7)
    np.testing.assert_allclose(tetrachoric(negated), -rho, atol=1e-7)


@given(st.tuples(*[st.integers(1, 2000)] * 4))
@settings(max_examples=200)
def test_vectorised_over_leading_axes(counts: tuple[int, int, int, int]) -> None:
    stack = np.array([[counts, [1, 0, 0, 1]], [[1, 2, 3, 4], counts]])
    rho = tetrachoric(stack)
    assert rho.shape == (2, 2)
    assert rho[0, 0] == rho[1, 1] == tetrachoric(counts)
    assert rho[0, 1] == 1


def test_thresholds_far_in_the_tail() -> None:
    # 40-digit quadrature and root finding (mpmath) of the same equation
    assert tetrachoric([11, 195, 593485081, 1644896]) == pytest.approx(-0.7496472842143413, abs=1e-10)
    assert tetrachoric([13279, 869729746, 1, 1]) == pytest.approx(-0.6923788227845756, abs=1e-10)
