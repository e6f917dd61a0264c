import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfmextract.frontier import frontier_figure, frontier_points, protected_area

share = st.floats(0, 1)


@given(st.lists(st.tuples(share, share), max_size=6))
def test_protected_area_is_that_of_the_union_of_rectangles(points):
    edges_x = sorted({0.0, *(utility for utility, _ in points)})
    edges_y = sorted({0.0, *(1 - fidelity for _, fidelity in points)})
    area = 0.0
    for (x0, x1), (y0, y1) in itertools.product(itertools.pairwise(edges_x), itertools.pairwise(edges_y)):
        if any(utility >= x1 and 1 - fidelity >= y1 for utility, fidelity in points):
            area += (x1 - x0) * (y1 - y0)
    assert protected_area(points) == pytest.approx(area, abs=1e-12)


def row(**changes):
    return {"defence": "noise", "setting": "a", "adaptive": False, "utility": 0.9, "fidelity": 0.5} | changes


def test_the_best_attacker_counts_whether_he_knows_the_defence_or_not():
    rows = [row(), row(adaptive=True, fidelity=0.8), row(adaptive=True, fidelity=0.6), row(setting="b", fidelity=0.7)]
    assert frontier_points(rows) == {("noise", "a"): (0.9, 0.5, 0.8), ("noise", "b"): (0.9, 0.7, 0.7)}


def test_the_figure_has_a_hollow_and_a_filled_point_a_setting():
    figure = frontier_figure([row(), row(adaptive=True, fidelity=0.8), row(defence="other", utility=0.7)])
    (axes,) = figure.axes
    points = [(line.get_xdata(), line.get_ydata()) for line in axes.lines if line.get_marker() == "o"]
    assert [float(np.atleast_1d(x)[0]) for x, _ in points] == [0.5, 0.8, 0.5, 0.5]
    assert len(frontier_figure([]).axes) == 1
