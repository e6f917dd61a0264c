import numpy as np
import pytest

from refusal_index.comparison import paired_difference
from refusal_index.estimate import refusal_index


def two_models(n: int, noise: float, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=n)
    wrong = difficulty > -0.5
    refused_a, refused_b = (difficulty + s * rng.normal(size=n) > 0.5 for s in (1.0, noise))
    return refused_a, wrong, refused_b, wrong


def test_the_difference_of_the_two_indices() -> None:
    data = two_models(3000, 3.0, 0)
    diff = paired_difference(*data)
    assert diff.ri_a == refusal_index(data[0], data[1]).ri
    assert diff.ri_b == refusal_index(data[2], data[3]).ri
    assert diff.difference == diff.ri_a - diff.ri_b
    assert 0 < diff.ci[0] < diff.difference < diff.ci[1]
    back = paired_difference(*data[2:], *data[:2])
    assert back.difference == -diff.difference


def test_intervals_cover_zero_for_models_alike() -> None:
    covers = [np.prod(paired_difference(*two_models(1000, 1.0, s), resamples=300).ci) < 0 for s in range(100)]
    assert 88 <= sum(covers) <= 100


def test_pairing_narrows_the_interval_of_similar_models() -> None:
    rng = np.random.default_rng(5)
    refused_a, wrong, *_ = two_models(2000, 1.0, 5)
    refused_b = refused_a ^ (rng.random(2000) < 0.02)
    paired = paired_difference(refused_a, wrong, refused_b, wrong)
    shuffled = rng.permutation(2000)
    unpaired = paired_difference(refused_a, wrong, refused_b[shuffled], wrong[shuffled])
    assert np.diff(paired.ci) < 0.6 * np.diff(unpaired.ci)


def test_undefined_indices_give_no_interval() -> None:
    diff = paired_difference([1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1])
    assert np.isnan([diff.difference, *diff.ci]).all()
    assert diff.dropped == 1


def test_errors() -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_difference([1, 0], [1, 0], [1, 0, 1], [1, 0, 1])
    with pytest.raises(ValueError, match="resamples must be a whole number"):
        paired_difference([1, 0], [1, 0], [1, 0], [1, 0], resamples=0)


def test_an_index_on_its_bound_has_no_interval() -> None:
    refused, wrong = np.repeat([True, True, False, False], 20), np.repeat([True, False, True, False], 20)
    inside = paired_difference(refused, wrong, refused, wrong)
    assert inside.ci == (0, 0)
    on_bound = paired_difference(refused & wrong, wrong, refused, wrong)
    assert on_bound.ri_a == 1
    assert np.isnan(on_bound.ci).all()
