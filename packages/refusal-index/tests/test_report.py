import json
import math

import numpy as np
import pandas as pd
import pytest

from refusal_index import metrics
from refusal_index.estimate import refusal_index
from refusal_index.graded import FORCED, graded_table
from refusal_index.homogeneity import paired_homogeneity
from refusal_index.report import RefusalReport, compare


def simulated(seed=0, n=400, rho=0.6, mu=0.7, rates=(0.2, 0.5), ids=None):
    """Graded rows of latent-threshold respondents: refusal and error are correlated normals above thresholds."""
    from scipy.special import ndtri

    rng = np.random.default_rng(seed)
    z = rng.multivariate_normal([0, 0], [[1, rho], [rho, 1]], size=n)
    wrong = z[:, 1] > ndtri(1 - mu)
    names = [str(i) for i in range(n)] if ids is None else ids
    rows = []
    for k, rate in enumerate(rates):
        refused = z[:, 0] > ndtri(1 - rate)
        for i, name in enumerate(names):
            label = "NOT_ATTEMPTED" if refused[i] else "INCORRECT" if wrong[i] else "CORRECT"
            rows.append({"question_id": name, "prompt": f"p{k}", "pass": 1, "label": label, "response": f"r{i}"})
    for i, name in enumerate(names):
        if z[i, 0] > ndtri(1 - max(rates)):
            rows.append(
                {
                    "question_id": name,
                    "prompt": FORCED,
                    "pass": 2,
                    "label": "INCORRECT" if wrong[i] else "CORRECT",
                    "gold": ["x"],
                }
            )
    return RefusalReport(table=graded_table(rows), model=f"model-{seed}", settings={"temperature": 0})


def tiny(counts, prompt="p"):
    n11, n10, n01, n00 = counts
    rows = []
    for i, (refused, wrong) in enumerate([(1, 1)] * n11 + [(1, 0)] * n10 + [(0, 1)] * n01 + [(0, 0)] * n00):
        label = "INCORRECT" if wrong else "CORRECT"
        rows.append({"question_id": i, "prompt": prompt, "pass": 1, "label": "NOT_ATTEMPTED" if refused else label})
        if refused:
            rows.append({"question_id": i, "prompt": prompt, "pass": 2, "label": label})
    return RefusalReport(table=graded_table(rows))


def test_frame_holds_index_metrics_and_intervals():
    report = simulated()
    frame = report.to_frame()
    for prompt, outcome in report.outcomes.items():
        row = frame.loc[prompt]
        index = refusal_index(outcome.refused, outcome.wrong)
        assert (row["ri"], row["ri_low"], row["ri_high"]) == (index.ri, *index.ci)
        c, r = (~outcome.refused & ~outcome.wrong).mean(), outcome.refused.mean()
        assert row["correct_rate"] == pytest.approx(c)
        assert row["refusal_rate"] == pytest.approx(r)
        assert row["correct_given_attempted"] == pytest.approx(c / (1 - r))
        assert row["f_score"] == pytest.approx(2 * c / (2 - r))
        assert row["weighted_score"] == pytest.approx(c - 0.2 * (1 - r))
        # the bootstrap interval of a share is close to the binomial one
        half = 1.96 * math.sqrt(c * (1 - c) / 400)
        assert row["correct_rate_low"] == pytest.approx(c - half, abs=0.015)
        assert row["correct_rate_high"] == pytest.approx(c + half, abs=0.015)
        assert (row["n11"], row["n"]) == (outcome.counts[0], 400)
        assert row["notes"] == ""


@pytest.mark.parametrize(
    ("counts", "interval", "note"),
    [
        ((30, 3, 40, 30), "analytic", "a cell below 5"),
        ((30, 0, 40, 30), "analytic", "an empty cell puts the index on its bound"),
        ((0, 0, 50, 50), "analytic", "undefined: no question was refused"),
    ],
)
def test_notes_say_what_limits_a_number_without_warning(counts, interval, note):
    row = tiny(counts).to_frame().iloc[0]
    assert note in row["notes"]
    assert row["interval"] == interval
    assert row["small_cells"]
    assert row["boundary"] == ("bound" in note)


def test_stability_over_prompts():
    report = simulated(rates=(0.2, 0.4, 0.6))
    frame, stability = report.to_frame(), report.stability()
    ri = frame["ri"].to_numpy()
    assert stability.loc["ri", "cv"] == pytest.approx(ri.std() / abs(ri.mean()))
    r = frame["refusal_rate"].to_numpy()
    assert stability.loc["refusal_rate", "delta"] == pytest.approx((r[2] - r[0]) / r.mean())
    assert stability.loc["correct_rate", "delta"] < 0
    with pytest.raises(ValueError, match="at least 2 prompts"):
        tiny((9, 9, 9, 9)).stability()


def test_homogeneity_is_paired_where_questions_are_shared_and_chi_square_elsewhere():
    report = simulated()
    refused = np.array([o.refused for o in report.outcomes.values()])
    wrong = np.array([o.wrong for o in report.outcomes.values()])
    assert report.homogeneity() == paired_homogeneity(refused, wrong)
    one, two = simulated(1, rates=(0.3,)), simulated(2, rates=(0.3,), ids=[f"x{i}" for i in range(400)])
    rows = pd.concat([one.table, two.table.assign(prompt=two.table["prompt"].replace("p0", "q0"))])
    assert RefusalReport(table=rows).homogeneity().method == "chi2"
    with pytest.raises(ValueError, match="'x' is none of p0, p1"):
        report.homogeneity(["x", "p0"])
    with pytest.raises(ValueError, match="at least 2"):
        report.homogeneity(["p0"])
    empty = pd.concat([tiny((9, 9, 9, 9), "a").table, tiny((9, 0, 18, 9), "b").table])
    with pytest.raises(ValueError, match="no standard error for b"):
        RefusalReport(table=empty).homogeneity()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    report = simulated()
    report.save(tmp_path / "r")
    again = RefusalReport.load(tmp_path / "r")
    pd.testing.assert_frame_equal(again.to_frame(), report.to_frame())
    assert (again.model, again.settings, again.penalty) == (report.model, report.settings, report.penalty)
    assert again.table["gold"].iloc[-1] == ["x"]
    again.save(tmp_path / "s")
    assert (tmp_path / "s" / "report.json").read_bytes() == (tmp_path / "r" / "report.json").read_bytes()
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["graded.jsonl", "report.json", "summary.csv"]
    content = json.loads((tmp_path / "r" / "report.json").read_text())
    assert {row["prompt"] for row in content["prompts"]} == {"p0", "p1"}


def test_undefined_numbers_are_null_in_json(tmp_path):
    tiny((0, 0, 5, 5)).save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["prompts"][0]["ri"] is None
    assert math.isnan(RefusalReport.load(tmp_path).to_frame()["ri"].iloc[0])


def test_names_the_file_that_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"report\.json: cannot be read"):
        RefusalReport.load(tmp_path)
    simulated().save(tmp_path)
    text = (tmp_path / "report.json").read_text()
    for foreign in ("{}", "[]", "x", '{"schema": 99}'):
        (tmp_path / "report.json").write_text(foreign)
        with pytest.raises(ValueError, match=r"report\.json: is not a report"):
            RefusalReport.load(tmp_path)
    (tmp_path / "report.json").write_text(text)
    rows = (tmp_path / "graded.jsonl").read_text()
    (tmp_path / "graded.jsonl").write_text(rows.replace('"CORRECT"', '"INCORRECT"', 1))
    with pytest.raises(ValueError, match=r"graded\.jsonl: does not belong"):
        RefusalReport.load(tmp_path)


def test_a_model_compared_with_itself_differs_by_nothing_and_pairing_narrows():
    a, b = simulated(0), simulated(1)
    same = compare({"a": a, "again": a})
    assert same[["difference", "low", "high"]].to_numpy().tolist() == [[0.0] * 3] * 2
    apart = compare({"a": a, "again": a}, paired=False)
    assert (apart["low"] < -0.05).all()
    assert (apart["high"] > 0.05).all()
    both = compare({"a": a, "b": b})
    assert list(both["prompt"]) == ["p0", "p1"]
    assert both["difference"].tolist() == (a.to_frame()["ri"] - b.to_frame()["ri"]).tolist()


def test_unpaired_interval_agrees_with_the_delta_method():
    a, b = (
        simulated(0, n=3000, rates=(0.4,)),
        simulated(1, n=3000, rho=0.2, rates=(0.4,), ids=[f"x{i}" for i in range(3000)]),
    )
    row = compare({"a": a, "b": b}, paired=False, resamples=4000).iloc[0]
    se = math.hypot(a.indices["p0"].se, b.indices["p0"].se)
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * se, rel=0.08)
    assert row["low"] > 0


def test_comparison_names_what_is_not_shared():
    a, b = simulated(), simulated(1, ids=["other", *map(str, range(1, 400))])
    with pytest.raises(ValueError, match=r"'a' and 'b' do not share questions '0', 'other'; .*paired=False"):
        compare({"a": a, "b": b})
    assert len(compare({"a": a, "b": b}, paired=False)) == 2
    with pytest.raises(ValueError, match="at least 2 reports"):
        compare({"a": a})
    with pytest.raises(ValueError, match="share no prompt"):
        compare({"a": a, "b": tiny((5, 5, 5, 5), "other")})


def test_metrics_follow_the_penalty():
    report = simulated()
    frame = RefusalReport(table=report.table, penalty=1.0).to_frame()
    row = frame.loc["p0"]
    wrong = row["n01"] / row["n"]
    assert row["weighted_score"] == pytest.approx(-wrong)
    assert metrics.correct_rate(np.array([1, 1, 1, 1.0])) == 0.25


def test_plots_every_prompt():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = simulated().plot()
    assert figure.axes[0].get_xlabel()
    pyplot.close(figure)


@pytest.mark.parametrize("paired", [True, False])
def test_no_certainty_is_made_of_an_empty_cell(paired):
    bound, inside = tiny((30, 0, 40, 30)), tiny((20, 10, 40, 30))
    row = compare({"a": bound, "b": inside}, paired=paired).iloc[0]
    assert row["ri_a"] == 1
    assert np.isnan([row["low"], row["high"]]).all()
    assert row["notes"] == "no interval: an empty cell puts the index of a on its bound"
    undefined = compare({"a": tiny((0, 0, 60, 40)), "b": inside}, paired=paired).iloc[0]
    assert np.isnan(undefined["low"])
    assert undefined["notes"] == "a undefined: no question was refused (r = 0)"


def test_small_cells_are_named_and_quote_the_analytic_interval_of_an_unpaired_difference():
    small, large = tiny((30, 4, 40, 30)), tiny((20, 10, 40, 30))
    row = compare({"a": small, "b": large}, paired=False).iloc[0]
    se = math.hypot(small.indices["p"].se, large.indices["p"].se)
    assert row["high"] - row["low"] == pytest.approx(2 * 1.959964 * se)
    assert row["notes"].startswith("a cell below 5 in a: analytic interval")
    with pytest.raises(ValueError, match="do not share"):
        compare({"a": small, "b": large})
    assert "with care" in compare({"a": large, "b": tiny((26, 4, 40, 30))})["notes"][0]


def test_homogeneity_of_overlapping_prompts_uses_the_common_questions():
    whole = simulated()
    less = whole.table[~((whole.table["prompt"] == "p1") & whole.table["question_id"].isin(["0", "1", "2"]))]
    refused = np.array([o.refused[3:] for o in whole.outcomes.values()])
    wrong = np.array([o.wrong[3:] for o in whole.outcomes.values()])
    assert RefusalReport(table=less).homogeneity() == paired_homogeneity(refused, wrong)
    first = [simulated(k, n=100, rates=(0.4,), ids=[str(i + 60 * k) for i in range(100)]).table for k in range(3)]
    rows = pd.concat([table.assign(prompt=f"q{k}") for k, table in enumerate(first)])
    with pytest.raises(ValueError, match="none is common to all"):
        RefusalReport(table=rows).homogeneity()
    with pytest.raises(ValueError, match="a list of names"):
        whole.homogeneity("p0")


def test_a_table_too_small_for_an_interval_says_so_and_names_no_interval():
    row = tiny((1, 1, 1, 1)).to_frame().iloc[0]
    assert np.isnan(row["ri_low"])
    assert row["notes"].startswith("no interval: ")
    assert row["notes"].endswith("of the resamples undefined")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"level": 95}, "level must lie"),
        ({"resamples": 0}, "resamples must be"),
        ({"resamples": 10.5}, "resamples must be"),
        ({"penalty": math.nan}, "penalty must be"),
    ],
)
def test_options_out_of_range_are_refused_at_construction(bad, message):
    with pytest.raises(ValueError, match=message):
        RefusalReport(table=tiny((5, 5, 5, 5)).table, **bad)
