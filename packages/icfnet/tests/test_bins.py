import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icfnet.bins import TimeBins


@given(st.integers(0, 10**6), st.integers(2, 6))
@settings(max_examples=30)
def test_bins_are_those_of_pandas(seed, n_bins):
    rng = np.random.default_rng(seed)
    time, event = rng.exponential(20, size=60), rng.random(60) < 0.6
    bins = TimeBins.fit(time, event, n_bins=n_bins)
    _, edges = pd.qcut(time[event], q=n_bins, retbins=True)
    edges[0], edges[-1] = time.min() - 1e-6, time.max() + 1e-6
    np.testing.assert_allclose(bins.edges, edges, rtol=1e-12)
    assert bins.label(time).tolist() == pd.cut(time, bins=bins.edges, labels=False, right=False).tolist()


@pytest.mark.parametrize(
    ("time", "event", "words"),
    [
        ([1, 2, 3, 4, 5], [0] * 5, "event: no patient has an event"),
        ([1, 1, 2, 3, 5], [1, 1, 1, 1, 0], "n_bins=4 needs as many distinct event times, got 3"),
        ([1, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4], [1] * 11, "tied event times"),
    ],
)
def test_outcomes_without_bins(time, event, words):
    with pytest.raises(ValueError, match=words):
        TimeBins.fit(np.array(time, dtype=float), np.array(event, dtype=bool))


@pytest.mark.parametrize("edges", [(0.0, 1.0), (0.0, 2.0, 1.0), (0.0, 1.0, float("inf"))])
def test_wrong_edges(edges):
    with pytest.raises(ValueError, match="edges must be"):
        TimeBins(edges=edges)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_interpolation_is_numpys(seed):
    rng = np.random.default_rng(seed)
    bins = TimeBins(edges=tuple(np.cumsum(rng.random(5) + 0.01)))
    survival = np.cumprod(rng.random((3, 4)), axis=1)
    times = rng.random(20) * 8 - 1
    found = bins.interpolate(survival, times)
    for row, values in zip(found, survival, strict=True):
        np.testing.assert_allclose(row, np.interp(times, bins.edges, [1.0, *values]), rtol=1e-12)
