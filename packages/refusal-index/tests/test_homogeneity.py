import numpy as np
import pytest

from refusal_index.estimate import RefusalIndex, refusal_index
from refusal_index.homogeneity import homogeneity, paired_homogeneity
from refusal_index.iso_curve import iso_curve

RATES = np.array([0.2, 0.4, 0.6, 0.8])


def independent_results(ri: np.ndarray, seed: int, n: int = 2000, mu: float = 0.7) -> list[RefusalIndex]:
    rng = np.random.default_rng(seed)
    n00 = iso_curve(mu, ri, RATES)
    n10, n01 = 1 - mu - n00, 1 - RATES - n00
    shares = np.stack([RATES - n10, n10, n01, n00], axis=1)
    return [refusal_index(counts=rng.multinomial(n, share), ci="analytic") for share in shares]


def shared_questions(thresholds: list[float], spread: list[float], seed: int, n: int = 1000) -> tuple[np.ndarray, ...]:
    """K prompts: latent refusal = difficulty + noise partly shared, latent error = difficulty + noise."""
    rng = np.random.default_rng(seed)
    difficulty, shared = rng.normal(size=(2, n))
    own = rng.normal(size=(len(thresholds), n))
    scale = np.array(spread)[:, None]
    latent = (difficulty + scale * (0.8 * shared + 0.6 * own)) / np.sqrt(1 + scale**2)
    wrong = (difficulty + 0.5 * rng.normal(size=n)) / np.sqrt(1.25) > -0.5
    return latent > np.array(thresholds)[:, None], np.tile(wrong, (len(thresholds), 1))


def test_statistic_by_hand() -> None:
    results = independent_results(np.full(4, 0.4), 0)
    weights = [1 / res.rho_se**2 for res in results]
    centre = sum(w * res.rho for w, res in zip(weights, results, strict=True)) / sum(weights)
    test = homogeneity(results)
    assert test.statistic == pytest.approx(
        sum(w * (res.rho - centre) ** 2 for w, res in zip(weights, results, strict=True))
    )
    assert test.df == 3
    assert test.pooled_ri == pytest.approx(6 / np.pi * np.arcsin(centre / 2))


def test_size_and_power_for_independent_questions() -> None:
    same = [homogeneity(independent_results(np.full(4, 0.5), seed)).p_value for seed in range(400)]
    assert 0.03 <= np.mean(np.array(same) < 0.05) <= 0.08
    assert 0.42 <= np.mean(same) <= 0.58
    different = [homogeneity(independent_results(np.linspace(0.3, 0.6, 4), seed)).p_value for seed in range(50)]
    assert np.mean(np.array(different) < 0.05) > 0.9


def test_size_and_power_for_shared_questions() -> None:
    thresholds = [-0.8, -0.2, 0.3, 0.9]
    same = [
        paired_homogeneity(*shared_questions(thresholds, [1.0] * 4, seed), resamples=200, rng=seed).p_value
        for seed in range(200)
    ]
    assert 0.02 <= np.mean(np.array(same) < 0.05) <= 0.085
    assert 0.42 <= np.mean(same) <= 0.58
    different = [
        paired_homogeneity(*shared_questions(thresholds, [0.5, 1.0, 1.5, 2.0], seed), resamples=200).p_value
        for seed in range(30)
    ]
    assert np.mean(np.array(different) < 0.05) > 0.9


@pytest.mark.filterwarnings("ignore::refusal_index.estimate.SmallCellWarning")
def test_chi_square_would_be_wrong_on_shared_questions() -> None:
    rejected = 0
    for seed in range(150):
        refused, wrong = shared_questions([-0.8, -0.2, 0.3, 0.9], [1.0] * 4, seed)
        results = [refusal_index(r, w, ci="analytic") for r, w in zip(refused, wrong, strict=True)]
        rejected += homogeneity(results).p_value < 0.05
    assert rejected <= 4  # of 150, where 7.5 are due (400 runs: 1.3 %): it misses differences that the paired test sees


def test_errors() -> None:
    results = independent_results(np.full(4, 0.4), 0)
    with pytest.raises(ValueError, match="at least 2"):
        homogeneity(results[:1])
    with pytest.warns(UserWarning, match="below 5"):
        bound = refusal_index(counts=(50, 0, 100, 100), ci="analytic")
    with pytest.raises(ValueError, match=r"settings \[1\] have no standard error"):
        homogeneity([results[0], bound])
