import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from refusal_index.metrics import (
    correct_given_attempted,
    correct_rate,
    f_score,
    phi,
    refusal_rate,
    weighted_score,
    yule_q,
)

TABLES = np.array([[30, 10, 20, 40], [3, 1, 200, 4]])


def test_scores_from_labels() -> None:
    c, r = correct_rate(TABLES), refusal_rate(TABLES)
    np.testing.assert_allclose(c, [40 / 100, 4 / 208])
    np.testing.assert_allclose(r, [40 / 100, 4 / 208])
    np.testing.assert_allclose(correct_given_attempted(c, r), [40 / 60, 4 / 204])
    attempted = 1 - r
    precision, recall = c / attempted, c
    np.testing.assert_allclose(f_score(c, r), 2 * precision * recall / (precision + recall))
    np.testing.assert_allclose(weighted_score(c, r, penalty=1), c - (1 - r))
    np.testing.assert_allclose(weighted_score(c, r), c - 0.2 * (1 - r))


def test_nothing_attempted() -> None:
    assert np.isnan(correct_given_attempted(0.0, 1.0))
    assert f_score(0.0, 1.0) == 0


@pytest.mark.parametrize("rates", [(0.6, 0.5), (-0.1, 0.5), (0.1, -0.5)])
def test_rates_that_cannot_be(rates: tuple[float, float]) -> None:
    for metric in (correct_given_attempted, f_score, weighted_score):
        with pytest.raises(ValueError, match="shares of all questions"):
            metric(*rates)


@given(st.tuples(*[st.integers(1, 40)] * 4))
def test_phi_is_pearson_and_spearman_of_the_flags(counts: tuple[int, int, int, int]) -> None:
    refused, wrong = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
    assert phi(counts) == pytest.approx(pearsonr(refused, wrong).statistic, abs=1e-12)
    assert phi(counts) == pytest.approx(spearmanr(refused, wrong).statistic, abs=1e-12)


@given(st.tuples(*[st.integers(1, 10**9)] * 4))
def test_yule_q_from_the_odds_ratio(counts: tuple[int, int, int, int]) -> None:
    n11, n10, n01, n00 = counts
    odds = (n11 * n00) / (n10 * n01)
    assert yule_q(counts) == pytest.approx((odds - 1) / (odds + 1), abs=1e-12)
    assert -1 <= phi(counts) <= 1


def test_undefined_correlations_are_nan() -> None:
    assert np.isnan(phi([0, 0, 5, 5]))
    assert np.isnan(yule_q([0, 0, 5, 5]))
