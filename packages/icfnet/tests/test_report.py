from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from icfnet.report import Comparison, Curve, SurvivalReport, kaplan_meier_figure


def curve(label):
    steps = np.array([1.0, 2.0])
    return Curve(label=label, n=4, time=steps, survival=np.array([0.9, 0.5]), low=steps * 0, high=steps * 0 + 1)


REPORT = SurvivalReport(
    name="ICFNet",
    n=8,
    events=5,
    c_index=0.7,
    c_low=0.6,
    c_high=0.8,
    ipcw=0.65,
    auc=0.72,
    ibs=0.2,
    logrank_p=0.01,
    times=np.array([1.0, 2.0]),
    horizon=2.0,
    calibration=pd.DataFrame({"quarter of predicted survival": [1], "n": [8], "predicted": [0.5], "observed": [0.4]}),
    subgroups=pd.DataFrame({"group": ["sex"], "value": ["woman"], "C-index": [np.nan]}),
    curves=(curve("lower risk"), curve("higher risk")),
    risk=np.arange(8.0),
    draws=np.linspace(0.6, 0.8, 101),
    warnings=("mind this",),
)


def test_the_report_in_words():
    text = REPORT.to_markdown()
    assert "8 patients, 5 events" in text
    assert "| ICFNet | 0.700 [0.600, 0.800] | 0.650 | 0.720 | 0.200 | 0.01 |" in text
    assert "| sex | woman | n/a |" in text
    assert "Warning: mind this" in text
    assert REPORT.metrics == {"c_index": 0.7, "ipcw": 0.65, "auc": 0.72, "ibs": 0.2, "logrank_p": 0.01}


def test_a_comparison_pairs_the_bootstrap_samples():
    other = replace(REPORT, name="coxnet", c_index=0.6, draws=REPORT.draws - 0.1, logrank_p=np.nan)
    asked = []
    report = replace(REPORT, refit=lambda arm: asked.append(arm) or replace(other, name=arm))
    table = report.compare("coxnet", "rsf").table
    assert asked == ["coxnet", "rsf"]
    assert table["ICFNet leads by"].tolist() == ["", *["0.100 [0.100, 0.100]"] * 2]  # the spread is shared: no interval
    assert table["log-rank p"].tolist() == ["0.01", "n/a", "n/a"]
    assert "leads by" in Comparison(reports=(REPORT, other)).to_markdown()


def test_nothing_to_compare_with_is_refused():
    with pytest.raises(ValueError, match="training cohort"):
        REPORT.compare("coxnet")
    with pytest.raises(ValueError, match="arms"):
        replace(REPORT, refit=lambda arm: REPORT).compare()


def test_the_figure_has_a_panel_a_model_and_a_band_a_curve():
    figure = kaplan_meier_figure({"a": REPORT.curves, "b": REPORT.curves[:1]}, {"a": 0.01, "b": np.nan})
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    assert [len(axes.collections) for axes in figure.axes] == [2, 1]
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "lower risk (n = 4)"
    assert len(REPORT.figure().axes) == 1
