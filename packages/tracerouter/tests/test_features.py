from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tracerouter.activity import Activity
from tracerouter.features import back_projection, delta_wfs, elbow, source_units, top_units


def activity(*rows):
    found = Activity(len(rows[0]))
    found.update(torch.tensor(rows))
    return found


def test_delta_wfs_is_the_difference_of_means_of_codes():
    plus, minus = activity((2.0, 0.0), (4.0, 1.0)), activity((1.0, 0.0), (0.0, 0.0), (0.0, 6.0))
    assert delta_wfs(plus, minus).tolist() == pytest.approx([3 - 1 / 3, 0.5 - 2])


def test_delta_wfs_wants_the_same_units():
    with pytest.raises(ValueError, match="minus counts 1 units"):
        delta_wfs(activity((1.0, 2.0)), activity((1.0,)))


def farthest_from_chord(scores):
    """The same rank by geometry: perpendicular distance of points in the plane."""
    curve = sorted(scores, reverse=True)
    a, b = (1.0, curve[0]), (float(len(curve)), curve[-1])
    length = ((b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2) ** 0.5
    return [
        abs((b[0] - a[0]) * (a[1] - y) - (a[0] - x) * (b[1] - a[1])) / length
        for x, y in ((i + 1.0, y) for i, y in enumerate(curve))
    ]


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=40), st.integers(0, 10**6))
@settings(max_examples=60)
def test_elbow_is_the_point_farthest_from_the_chord(values, seed):
    distances = farthest_from_chord(values)
    ranked = sorted(range(len(distances)), key=lambda i: -distances[i])
    assume(distances[ranked[0]] > distances[ranked[1]] * (1 + 1e-9) + 1e-9)  # no tie
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    assert elbow(torch.tensor(values).double()[order], k_min=1, k_max=1000) == ranked[0] + 1


def test_elbow_is_clamped():
    scores = torch.cat([torch.linspace(100, 50, 100), torch.linspace(0.9, 0, 100)])
    assert elbow(scores) == 64
    assert elbow(scores, k_max=500) == 101
    assert elbow(torch.tensor([9.0, 1.0, 0.9, 0.8]), k_min=3) == 3
    with pytest.warns(UserWarning, match="no elbow"):
        assert elbow(torch.tensor([3.0])) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: elbow(torch.ones(2, 2)), r"scores must be \[n\]"),
        (lambda: elbow(torch.ones(0)), r"scores must be \[n\]"),
        (lambda: elbow(torch.tensor([1.0, float("nan")])), "NaN"),
        (lambda: elbow(torch.arange(4.0), k_min=5, k_max=4), "k_min must be in"),
        (lambda: top_units(torch.arange(4.0), k=5), r"k must be in 1..4"),
        (lambda: top_units(torch.arange(4.0), k=0), r"k must be in 1..4"),
        (lambda: back_projection(torch.ones(2, 3), torch.tensor([3])), r"selected must be indices in 0..2"),
        (lambda: back_projection(torch.ones(2, 3), torch.tensor([], dtype=torch.int64)), "at least one"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_top_units_are_the_largest_positive_ones_best_first():
    scores = torch.tensor([0.5, -2.0, 3.0, 0.0, 3.0, 1.0])
    assert top_units(scores, k=3).tolist() == [2, 4, 5]
    assert top_units(scores, k=6).tolist() == [2, 4, 5, 0]
    assert top_units(-scores.abs(), k=2).tolist() == []
    assert top_units(scores).tolist() == top_units(scores, k=elbow(scores)).tolist()


def test_source_units_go_by_absolute_value():
    assert source_units(torch.tensor([0.1, -5.0, 0.2, 3.0]), k=2).tolist() == [1, 3]
