import numpy as np
import pandas as pd
import pytest
from aisec_common.torch.robustness import Flag, RobustnessReport
from aisec_common.torch.robustness.result import WORST
from aisec_common.torch.robustness.rungs import Rung

from interference_nn.ladder_report import LadderReport
from interference_nn.rungs import Effort

EPS = (0.1, 0.2)
N = 40


def report(broken, flags=()):
    """Of two rungs at two radii: R1 breaks nothing, R5 the first `broken` images."""
    kinds = {"R1 transfer": "transfer", "R5": "adaptive"}
    rungs = [Rung(name=name, kind=kind, attack=None) for name, kind in kinds.items()]
    rows = [("clean", 0.0, str(i), True) for i in range(N)]
    for eps in EPS:
        rows += [("R1 transfer", eps, str(i), True) for i in range(N)]
        rows += [("R5", eps, str(i), i >= broken) for i in range(N)]
    samples = pd.DataFrame(rows, columns=["rung", "eps", "id", "right"]).assign(mean=1.0, distance=0.0)
    cost = samples.groupby(["rung", "eps"]).size().reset_index()[["rung", "eps"]].assign(forward=3.0, backward=2.0)
    return RobustnessReport(rungs=tuple(rungs), eps=EPS, passes=1, samples=samples, cost=cost, flags=flags)


def of(net=10, over=20, control=None, **settings):
    reports = {"interference": report(net), "plain": report(over)}
    reports |= {"noise": report(control)} if control is not None else {}
    settings = {"left_out": {}, "effort": Effort(rungs=("R1", "R5"))} | settings
    return LadderReport(reports=reports, eps=EPS, control="noise" if control is not None else None, **settings)


def test_accuracies_and_over_claim():
    found = of(net=10)
    assert found.accuracy("R1", 0.1) == 1
    assert found.accuracy("R5", 0.2) == found.worst_case(0.2) == 0.75
    assert found.over_claim(0.1) == 0.25
    assert found.over_claim(0.1, "plain") == 0.5
    table = found.table()
    assert list(table.columns[:6]) == ["model", "eps", "R0", "R1", "R5", "noise"]
    assert list(table["forward"]) == [6.0] * 4
    assert table["noise"].isna().all()


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        ({"net": 10, "over": 30}, "holds", "no control"),
        ({"net": 30, "over": 10}, "fails", "over plain"),
        ({"net": 10, "over": 11}, "undecided", "interval holds 0"),
        ({"net": 10, "over": 10}, "undecided", "no difference"),
        ({"net": 10, "over": 30, "control": 30}, "holds", "over the control noise"),
        ({"net": 10, "over": 30, "control": 11}, "undecided", "control noise does as well"),
    ],
)
def test_the_verdict(given, verdict, reason):
    found = of(**given)
    assert found.verdict == verdict
    assert reason in found.reason


def test_a_flag_makes_it_undecided_whoever_raised_it():
    flag = Flag(code="F6", text="zero gradients")
    for model in ("interference", "plain"):
        found = of(net=10, over=30)
        reports = dict(found.reports) | {model: report(10, (flag,))}
        flagged = LadderReport(reports=reports, eps=EPS, left_out={}, effort=found.effort)
        assert flagged.verdict == "undecided"
        assert flagged.reason == f"masking suspected ({model} F6)"


def test_the_strongest_baseline_is_compared_with():
    found = of(net=10, over=20)
    reports = dict(found.reports) | {"PGD-AT": report(5), "noise": report(0)}
    both = LadderReport(reports=reports, eps=EPS, left_out={}, effort=found.effort, control="noise")
    assert both.compared_with == "PGD-AT"
    assert of(net=10, over=20).compared_with == "plain"


def test_what_is_not_there_is_told():
    found = of()
    with pytest.raises(ValueError, match="eps"):
        found.accuracy("R5")
    with pytest.raises(ValueError, match="eps"):
        found.accuracy("R5", 0.3)
    with pytest.raises(KeyError, match="R8"):
        found.accuracy("R8", 0.1)


def test_text_page_and_figure(tmp_path):
    found = of(left_out={"plain": {"R2": "no interference"}})
    text = found.to_markdown()
    for words in ("40 images", "eps 0.1, 0.2", "R5 PGD-100 through E = 32 draws", "Verdict: ", "plain: R2 (no inter"):
        assert words in text
    found.save(tmp_path / "ladder.html")
    page = (tmp_path / "ladder.html").read_text()
    assert "data:image/png" in page
    assert "http" not in page
    assert len(found.figure().axes) == 2
    line = found.figure().axes[0].lines[0]
    assert np.asarray(line.get_ydata())[-1] == found.worst_case(0.1)
    assert WORST in [label.get_text() for label in found.figure().axes[0].get_xticklabels()]
    with pytest.raises(ValueError, match="html"):
        found.save(tmp_path / "ladder.txt")
