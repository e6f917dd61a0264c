import statistics

import numpy as np
import pytest

from refusal_index.stability import coefficient_of_variation, relative_range


def test_against_the_standard_library() -> None:
    values = [0.31, 0.28, 0.45, 0.52]
    assert coefficient_of_variation(values) == pytest.approx(statistics.pstdev(values) / statistics.fmean(values))
    delta = (0.28 - 0.52) / statistics.fmean(values)
    assert relative_range(values, [0.3, 0.9, 0.5, 0.1]) == pytest.approx(delta)


def test_unit_free_signed_and_vectorised() -> None:
    values, rates = np.array([[0.1, 0.2, 0.4], [0.4, 0.2, 0.1]]), np.tile([0.1, 0.5, 0.9], (2, 1))
    assert coefficient_of_variation(-3 * values) == pytest.approx(coefficient_of_variation(values))
    delta = relative_range(values, rates)
    assert delta[0] == pytest.approx(-delta[1])
    assert delta[0] > 0


def test_a_mean_of_zero_has_no_relative_spread() -> None:
    assert np.isnan(coefficient_of_variation([-1.0, 1.0]))
    assert np.isnan(relative_range([-1.0, 1.0], [0.1, 0.2]))


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        coefficient_of_variation([1.0])
    with pytest.raises(ValueError, match="one shape"):
        relative_range([1.0, 2.0], [0.1, 0.2, 0.3])
