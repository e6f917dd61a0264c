"""Acceptance checks of the Refusal Index: identities, limits and traps against slow, independent references."""

import warnings

import numpy as np
import ordinalcorr
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm, spearmanr

from refusal_index.estimate import SmallCellWarning, UndefinedRefusalIndexWarning, from_rates, refusal_index
from refusal_index.intervals import analytic_se, bootstrap_ri
from refusal_index.iso_curve import iso_curve
from refusal_index.metrics import correct_given_attempted, f_score, weighted_score
from refusal_index.stability import coefficient_of_variation
from refusal_index.tetrachoric import bivariate_normal_cdf, rho_from_ri, ri_from_rho, tetrachoric

POSITIVE = st.tuples(*[st.integers(1, 3000)] * 4)


def ri_of(counts: object) -> float:
    return float(ri_from_rho(tetrachoric(counts)))  # type: ignore[arg-type]


def latent_table(ri: np.ndarray | float, r: np.ndarray | float, mu: float) -> np.ndarray:
    """Cell probabilities (..., 4) of the latent-threshold respondents of layer A."""
    n00 = iso_curve(mu, ri, r)
    return np.stack(np.broadcast_arrays(r - (1 - mu - n00), 1 - mu - n00, 1 - r - n00, n00), axis=-1)


@given(st.tuples(*[st.integers(1, 10_000)] * 4))
@settings(max_examples=200)
def test_1_independence_is_zero(margins: tuple[int, int, int, int]) -> None:
    a, b, c, d = margins
    assert abs(ri_of((a * c, a * d, b * c, b * d))) < 1e-8


@given(POSITIVE)
@settings(max_examples=100)
def test_2_roles_and_signs(counts: tuple[int, int, int, int]) -> None:
    n11, n10, n01, n00 = counts
    assert ri_of((n11, n01, n10, n00)) == pytest.approx(ri_of(counts), abs=1e-10)
    assert ri_of((n01, n00, n11, n10)) == pytest.approx(-ri_of(counts), abs=1e-10)


@given(POSITIVE, st.integers(2, 1000))
@settings(max_examples=100)
def test_3_scale(counts: tuple[int, int, int, int], k: int) -> None:
    scaled = tuple(k * cell for cell in counts)
    assert ri_of(scaled) == pytest.approx(ri_of(counts), abs=1e-10)
    assert analytic_se(scaled) == pytest.approx(analytic_se(counts) / np.sqrt(k), rel=1e-6)


@given(st.integers(1, 10**6), st.integers(1, 10**6))
@settings(max_examples=100)
def test_4_median_splits_follow_sheppard(same: int, opposite: int) -> None:
    share = same / (2 * (same + opposite))
    assert tetrachoric((same, opposite, opposite, same)) == pytest.approx(np.sin(2 * np.pi * (share - 0.25)), abs=1e-12)


def test_5_agrees_with_ordinalcorr() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        counts = rng.integers(5, 400, size=4)
        refused, wrong = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
        assert tetrachoric(counts) == pytest.approx(ordinalcorr.tetrachoric(refused, wrong), abs=1e-5)


@given(st.tuples(*[st.integers(3, 3000)] * 4))
@settings(max_examples=50)
def test_5_the_likelihood_is_saturated(counts: tuple[int, int, int, int]) -> None:
    rho = float(tetrachoric(counts))
    assume(abs(rho) < 0.999)
    cells = np.array(counts)
    n, r, mu = cells.sum(), (cells[0] + cells[1]) / cells.sum(), (cells[0] + cells[2]) / cells.sum()
    p11 = multivariate_normal.cdf(norm.ppf([r, mu]), cov=[[1, rho], [rho, 1]])
    fitted = np.array([p11, r - p11, mu - p11, 1 - r - mu + p11])
    assert cells @ np.log(fitted) == pytest.approx(cells @ np.log(cells / n), abs=1e-9)


@given(st.tuples(*[st.integers(2, 3000)] * 4))
@settings(max_examples=100)
def test_6_monotone_at_fixed_margins(counts: tuple[int, int, int, int]) -> None:
    n11, n10, n01, n00 = counts
    assert ri_of((n11 + 1, n10 - 1, n01 - 1, n00 + 1)) > ri_of(counts)


@given(st.floats(0.02, 0.98), st.floats(-0.98, 0.98), st.floats(0.02, 0.98))
@settings(max_examples=200)
def test_7_iso_curve_returns_the_index_that_drew_it(mu: float, ri: float, r: float) -> None:
    assert iso_curve(mu, ri, 0) == pytest.approx(1 - mu, abs=1e-15)
    assert iso_curve(mu, ri, 1) == 0
    cells = latent_table(ri, r, mu)
    assume(cells.min() > 1e-8)
    assert ri_of(cells) == pytest.approx(ri, abs=1e-6)


def test_8_analytic_se_equals_the_bootstrap_spread() -> None:
    rng = np.random.default_rng(1)
    tables = rng.integers(30, 2000, size=(200, 4)).astype(float)
    for counts in tables[tables.sum(1) >= 2000][:12]:
        assert analytic_se(counts) == pytest.approx(bootstrap_ri(counts, 20_000, 0).std(), rel=0.05)


def test_8_coverage_and_bias_on_layer_a() -> None:
    truth = float(ri_from_rho(0.55))
    rates = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    rng = np.random.default_rng(0)
    counts = np.stack([rng.multinomial(4326, p, size=500) for p in latent_table(truth, rates, 0.8)])
    ri, se = ri_from_rho(tetrachoric(counts)), analytic_se(counts)
    covered = (np.abs(ri - truth) < norm.ppf(0.975) * se).mean(axis=1)
    assert ((covered >= 0.92) & (covered <= 0.98)).all(), covered
    assert (np.abs(ri.mean(axis=1) - truth) < 0.03).all()
    assert abs(ri.mean() - truth) < 0.005

    n10, n00 = counts[..., 1], counts[..., 3]
    c, r = n00 / 4326, (counts[..., 0] + n10) / 4326
    others = (c, correct_given_attempted(c, r), f_score(c, r), weighted_score(c, r))
    spread = np.array([coefficient_of_variation(metric.T) for metric in others]).min(axis=0)
    assert (coefficient_of_variation(ri.T) < spread / 2).mean() > 0.97


def test_9_refusing_only_what_is_wrong_is_one() -> None:
    with pytest.warns(SmallCellWarning):
        res = refusal_index(counts=(40, 0, 100, 60))
    assert res.ri == 1
    assert res.boundary


@pytest.mark.parametrize(
    ("counts", "cause"),
    [((0, 0, 5, 9), "r = 0"), ((5, 9, 0, 0), "r = 1"), ((0, 5, 0, 9), "mu = 0"), ((5, 0, 9, 0), "mu = 1")],
)
def test_10_undefined_names_its_cause(counts: tuple[int, ...], cause: str) -> None:
    with pytest.warns(UndefinedRefusalIndexWarning, match=cause):
        res = refusal_index(counts=counts)
    assert np.isnan([res.ri, res.rho, res.se, *res.ci]).all()
    assert cause in res.undefined
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paper = refusal_index(counts=counts, on_undefined="zero")
    assert paper.ri == 0
    assert np.isnan(paper.ci).all()
    assert cause in paper.undefined


@given(POSITIVE)
@settings(max_examples=300)
def test_correct_given_attempted_is_caught_when_the_index_is_positive(counts: tuple[int, int, int, int]) -> None:
    n11, n10, n01, n00 = counts
    assume(n11 * n00 > n10 * n01)
    n = sum(counts)
    with pytest.raises(ValueError, match="not C/A"):
        from_rates(n00 / (n00 + n01), (n11 + n10) / n, (n00 + n10) / n, n)


def test_sampled_outputs_attenuate_the_index() -> None:
    # Decisions drawn with probit noise s around a latent difficulty: rho -> q / sqrt((1 + s_R^2)(1 + s_W^2)), while
    # the Spearman correlation of the probabilities stays that of the difficulties.
    rng = np.random.default_rng(2)
    q, s, n = 0.8, 1.0, 400_000
    refuse, err = rng.multivariate_normal([0, 0], [[1, q], [q, 1]], size=n).T
    r, w = norm.cdf((refuse - 0.3) / s), norm.cdf((err + 0.4) / s)
    two_pass = refusal_index(rng.random(n) < r, rng.random(n) < w, ci="analytic")
    assert two_pass.rho == pytest.approx(q / (1 + s**2), abs=0.01)
    assert two_pass.ri == pytest.approx(0.385, abs=0.01)
    assert spearmanr(r, w).statistic == pytest.approx(0.786, abs=0.005)


def test_the_index_moves_with_the_refusal_rate_under_other_dependence() -> None:
    # Clayton copula C(u, v) = (u^-t + v^-t - 1)^(-1/t), t = 1.35 (Spearman .57): its dependence sits in the lower tail.
    def clayton(u: float, v: float, t: float = 1.35) -> float:
        return float((u**-t + v**-t - 1) ** (-1 / t))

    def index(r: float, mu: float, lower: bool) -> float:
        n11 = r + mu - 1 + clayton(1 - r, 1 - mu) if lower else clayton(r, mu)
        return ri_of([n11, r - n11, mu - n11, 1 - r - mu + n11])

    rates = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    lower = np.array([index(r, 0.8, True) for r in rates])
    upper = np.array([index(r, 0.8, False) for r in rates])
    assert (np.diff(lower) > 0).all()
    assert (np.diff(upper) < 0).all()
    assert np.ptp(lower) > 0.2
    assert np.ptp(upper) > 0.2
    assert np.ptp([ri_of(latent_table(0.55, r, 0.8)) for r in rates]) < 1e-9


def test_one_table_cannot_test_the_copula() -> None:
    # Any one-parameter family that reaches n11/n has the same likelihood: the saturated one.
    counts = np.array([1500, 360, 1658, 808])
    p = counts / counts.sum()
    rho = tetrachoric(counts)
    gaussian = bivariate_normal_cdf(norm.ppf(p[0] + p[1]), norm.ppf(p[0] + p[2]), rho)
    assert gaussian == pytest.approx(p[0], abs=1e-14)
    assert rho_from_ri(ri_from_rho(rho)) == pytest.approx(rho, abs=1e-14)
