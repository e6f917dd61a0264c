import numpy as np
import pytest

from refusal_index.estimate import refusal_index
from refusal_index.iso_curve import iso_curve, plot_iso_curves


def test_monotone_in_both_arguments() -> None:
    curves = iso_curve(0.7, np.linspace(-1, 1, 9)[:, None], np.linspace(0, 1, 51))
    assert (np.diff(curves, axis=1) <= 1e-15).all()
    assert (np.diff(curves, axis=0) >= -1e-15).all()


def test_bounds_are_refusing_the_wrong_or_the_right_first() -> None:
    r = np.linspace(0, 1, 11)
    np.testing.assert_allclose(iso_curve(0.7, 1, r), np.minimum(0.3, 1 - r), atol=1e-15)
    np.testing.assert_allclose(iso_curve(0.7, -1, r), np.maximum(0.3 - r, 0), atol=1e-15)
    np.testing.assert_allclose(iso_curve(0.7, 0, r), 0.3 * (1 - r), atol=1e-15)


@pytest.mark.parametrize("bad", [(1.2, 0.5, 0.5), (0.5, 1.5, 0.5), (0.5, 0.5, -0.1), (np.nan, 0.5, 0.5)])
def test_errors(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        iso_curve(*bad)


def test_plot_draws_every_curve_and_prompt() -> None:
    prompts = [
        refusal_index(counts=(60, 10, 300, 130), ci="analytic"),
        refusal_index(counts=(250, 60, 90, 100), ci="analytic"),
    ]
    figure = plot_iso_curves({"model-a": prompts, "model-b": prompts[:1]}, ri=(0.0, 0.5))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["RI 0.00", "RI 0.50"]
    assert len(axes.containers) == 2
    assert axes.containers[0].lines[0].get_xydata()[:, 0].tolist() == [res.refusal_rate for res in prompts]
    assert f"{np.mean([prompts[0].error_rate] * 2 + [prompts[1].error_rate]):.2f}" in axes.get_title(loc="left")
    with pytest.raises(ValueError, match="mu"):
        plot_iso_curves()
    assert len(plot_iso_curves(mu=0.5).axes[0].texts) == 5


def test_an_undefined_index_is_a_dash_in_the_legend() -> None:
    with pytest.warns(UserWarning, match="undefined"):
        nothing_refused = refusal_index(counts=(0, 0, 30, 20))
    axes = plot_iso_curves({"m": [nothing_refused]}).axes[0]
    assert axes.get_legend().get_texts()[0].get_text() == "m: RI \N{EN DASH}"
