from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from aisec_common.torch.robustness import Comparison, Flag, RobustnessReport, noise, pgd
from scipy.stats import binomtest

EPS = (0.1, 0.2)
RUNGS = (pgd(20), noise())
N = 40


def report(*, shift: int = 0, flags: tuple[Flag, ...] | None = ()) -> RobustnessReport:
    """Of 40 images 38 are right clean; PGD leaves 20 and 10, noise 30 of the last and 25."""
    left = {("clean", 0.0): 38, ("PGD-20", 0.1): 20, ("PGD-20", 0.2): 10, ("noise", 0.1): 30, ("noise", 0.2): 25}
    rows, cost = [], []
    for (rung, eps), count in left.items():
        for number in range(N):
            place = N - 1 - number if rung == "noise" else number  # noise breaks other images than PGD
            right = place < count - shift
            rows.append(
                {"rung": rung, "eps": eps, "id": str(number), "right": right, "mean": 0.5 + right / 2, "distance": eps}
            )
        cost.append(
            {"rung": rung, "eps": eps, "forward": 20.0 * (rung == "PGD-20"), "backward": 19.5 * (rung == "PGD-20")}
        )
    return RobustnessReport(
        rungs=RUNGS,
        eps=EPS,
        passes=10,
        samples=pd.DataFrame(rows),
        cost=pd.DataFrame(cost),
        flags=flags,
        about={"model": "a | b"},
    )


def test_accuracies_and_the_worst_case_of_each_sample():
    found = report()
    assert found.accuracy("clean") == 38 / N
    assert found.accuracy("PGD-20") == found.accuracy("PGD-20", 0.1) == 20 / N
    assert found.worst_case() == 10 / N  # PGD leaves 0-19, noise 10-39
    assert found.worst_case(0.2) == 0
    assert np.array_equal(found.right("worst case"), (np.arange(N) >= 10) & (np.arange(N) < 20))


def test_intervals_are_wilsons():
    theirs = binomtest(20, N).proportion_ci(0.9, method="wilson")
    assert report().interval("PGD-20", level=0.9) == pytest.approx((theirs.low, theirs.high))


def test_table_has_every_rung_and_the_worst_case_at_each_eps():
    table = report().table()
    assert list(table["rung"]) == ["clean", *["PGD-20", "noise", "worst case"] * 2]
    worst = table[(table["rung"] == "worst case") & (table["eps"] == 0.1)].iloc[0]
    assert (worst["forward"], worst["backward"]) == (20, 19.5)
    assert np.isnan(worst["mean"])
    assert table.set_index("rung").loc["clean", "mean"] == pytest.approx(0.5 + 38 / N / 2)


def test_markdown_states_what_was_done_and_aligns():
    text = report(flags=(Flag(code="F6", text="zeros"),)).to_markdown()
    assert "40 images, l_inf, eps 0.1, 0.2 in units of [0, 1]; right means right in all of 10 passes" in text
    assert "model: a | b" in text
    assert "undecided (masking suspected); F6: zeros" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 7
    assert len({row.count("|") for row in rows}) == 1
    assert "| PGD-20 | white box | 0.1 | 0.500 | 0.352 to 0.648 | 0.750 | 20 | 20 |" in rows


@pytest.mark.parametrize(
    ("flags", "verdict", "error"),
    [
        ((), "no sign of masking", None),
        (None, "masking was not looked for", "run the report with flags=True"),
        ((Flag(code="F1", text="noise wins"),), "undecided (masking suspected)", "F1: noise wins"),
    ],
)
def test_verdict_and_stop(flags, verdict, error):
    found = report(flags=flags)
    assert found.verdict == verdict
    assert found.masked == (flags not in ((), None))
    if error is None:
        found.raise_if_masked()
    else:
        with pytest.raises(ValueError, match=error):
            found.raise_if_masked()


def test_figure_has_a_line_for_each_rung_and_the_worst_case():
    axes = report().figure().axes[0]
    assert [line.get_label() for line in axes.get_lines()] == ["PGD-20", "noise", "worst case"]
    assert list(axes.get_lines()[-1].get_xdata()) == [0.0, *EPS]
    assert list(axes.get_lines()[-1].get_ydata()) == [38 / N, 10 / N, 0]


def test_comparison_shows_rungs_that_only_one_report_has():
    other = report(shift=4, flags=(Flag(code="F1", text="a"), Flag(code="F1", text="b"), Flag(code="F6", text="c")))
    samples = other.samples[other.samples["rung"] != "noise"]
    other = replace(other, rungs=RUNGS[:1], samples=samples)
    table = report().compare({"TRADES": other}, name="UAD").table()
    assert list(table["model"]) == ["UAD", "UAD", "TRADES", "TRADES"]
    assert list(table.columns[:3]) == ["model", "eps", "clean"]
    assert np.isnan(table.iloc[2]["noise"])
    assert table.iloc[2]["flags"] == "F1 F6"
    assert table.iloc[2]["worst case"] == 16 / N
    text = report().compare({"TRADES": other}).to_markdown()
    assert "| TRADES | 0.1 | 0.850 | 0.400 | – | 0.400 (0.263 to 0.554) | F1 F6 | 20 | 20 |" in text
    assert "| this | 0.1 |" in text


def test_errors():
    with pytest.raises(ValueError, match=r"'FGSM' was not run at eps 0.1; there are PGD-20, noise"):
        report().accuracy("FGSM")
    with pytest.raises(ValueError, match=r"was not run at eps 0\.3"):
        report().worst_case(0.3)
    with pytest.raises(ValueError, match="choose another name"):
        report().compare({"this": report()})
    with pytest.raises(ValueError, match="same ids, eps and passes"):
        Comparison(reports={"a": report(), "b": replace(report(), passes=1)})
