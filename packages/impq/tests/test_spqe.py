import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from impq import spqe

values = arrays(float, st.tuples(st.integers(2, 6).map(lambda n: 2 * n), st.integers(1, 4)), elements=st.floats(-5, 5))


def test_marginals_go_to_the_step_that_was_taken():
    orders, losses = np.array([[2, 0], [1, 2]]), np.array([[3.0, 4.5], [0.5, 2.0]])
    found = spqe.marginals(orders, losses, 1.0, 3)
    np.testing.assert_array_equal(found, [[1.5, np.nan, 2.0], [np.nan, -0.5, 1.5]])
    np.testing.assert_array_equal(spqe.marginals(orders, losses, 1.0, 3, sign=-1), -found)


@given(values)
def test_one_step_at_a_time_agrees_with_scipy(marginals):
    count = len(marginals)
    assert spqe.shapley(marginals) == pytest.approx(marginals.mean(axis=0))
    error = stats.sem(marginals, axis=0)
    assert spqe.stderr(marginals) == pytest.approx(error, abs=1e-12)
    half = stats.t.ppf(0.95, count - 1) * error
    expected = np.stack([marginals.mean(axis=0) - half, marginals.mean(axis=0) + half], axis=1)
    assert spqe.interval(marginals, level=0.9) == pytest.approx(expected, abs=1e-9)


@given(values)
def test_antithetic_walks_count_by_pairs(marginals):
    pairs = (marginals[::2] + marginals[1::2]) / 2
    assert spqe.stderr(marginals, antithetic=True) == pytest.approx(stats.sem(pairs, axis=0), abs=1e-12)
    half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(pairs, axis=0)
    assert np.diff(spqe.interval(marginals, antithetic=True)).ravel() == pytest.approx(2 * half, abs=1e-9)
    assert spqe.shapley(marginals) == pytest.approx(pairs.mean(axis=0))


@given(values)
def test_covariance_agrees_with_numpy(marginals):
    expected = np.atleast_2d(np.cov(marginals, rowvar=False, ddof=1))
    assert spqe.covariance(marginals) == pytest.approx(expected, abs=1e-9)


def test_truncated_walks_count_for_the_steps_they_take():
    nan = np.nan
    marginals = np.array([[1.0, nan, 4.0], [3.0, 2.0, nan], [nan, 2.0, nan], [5.0, nan, nan]])
    assert spqe.shapley(marginals).tolist() == [3.0, 2.0, 4.0]
    assert spqe.stderr(marginals) == pytest.approx([2 / np.sqrt(3), 0.0, np.inf])
    bounds = spqe.interval(marginals)
    assert bounds[0] == pytest.approx(3 + np.array([-1, 1]) * stats.t.ppf(0.975, 2) * 2 / np.sqrt(3))
    assert bounds[2].tolist() == [-np.inf, np.inf]
    with pytest.raises(ValueError, match="precedence"):
        spqe.covariance(marginals)


def test_what_the_walks_do_not_tell_is_refused():
    with pytest.raises(ValueError, match="no walk takes step 1"):
        spqe.shapley(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="even"):
        spqe.stderr(np.ones((3, 2)), antithetic=True)
    with pytest.raises(ValueError, match="at least 2 walks"):
        spqe.covariance(np.ones((1, 2)))
    with pytest.raises(ValueError, match="level"):
        spqe.interval(np.ones((3, 2)), level=95)
    assert spqe.stderr(np.ones((1, 2))).tolist() == [np.inf, np.inf]
