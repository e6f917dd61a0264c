import csv
import json

import numpy as np
import pytest
from made_up_runs import curves, record

from procon.comparison import (
    FILES,
    at_equal_task_loss,
    drift_figure,
    frontier_figure,
    label,
    load_runs,
    table,
    write_comparison,
)


def test_labels():
    assert [label(record(*arm)) for arm in ((None,), ("sft",), ("random", 30.0))] == ["before", "sft", "random-30"]


def test_the_table_has_means_over_seeds():
    rows = table([record("sft", loss=1.0, odds=2.0), record("sft", seed=1, loss=2.0, odds=3.0, refused=1.0)])
    assert rows == [
        {
            "arm": "sft",
            "seeds": "2",
            "refusal rate": "0.75",
            "refusal log-odds": "2.50",
            "over-refusal": "0.00",
            "task loss": "1.50",
            "cosine, two deepest": "0.50",
        }
    ]
    assert [row["arm"] for row in table(curves(1.0))] == [
        *("before", "sft", "procon_s-10", "procon_s-30", "random-10", "random-30")
    ]


@pytest.mark.parametrize(("lead", "verdict"), [(2.0, "holds"), (-2.0, "fails")])
def test_a_lead_at_equal_task_loss_is_found(lead, verdict):
    found = at_equal_task_loss(curves(lead), points=2001)
    assert found["verdict"] == verdict
    assert found["losses"] == [pytest.approx([1.0, 1.3])] * 2
    assert np.mean(found["seeds"]) == pytest.approx(found["effect"])
    # the lead grows from 0 at the shared start to its full size at a loss of 1.1 and stays there to 1.3
    assert found["effect"] == pytest.approx(lead * (0.1 / 2 + 0.2) / 0.3, rel=1e-3)


def test_noise_decides_nothing():
    found = at_equal_task_loss(curves(0.0, noise=3.0))
    assert found["verdict"] == "undecided"
    assert found["low"] < 0 < found["high"]


def test_more_refusal_at_a_higher_loss_is_no_lead():
    """The random directions refuse more, at a cost that ProCon does not pay."""
    found = at_equal_task_loss(curves(0.5))
    assert found["verdict"] == "holds"
    assert np.mean(curves(0.5)[5]["flagged"]["log_odds"]) > np.mean(curves(0.5)[3]["flagged"]["log_odds"])


def test_curves_without_a_loss_in_common_are_not_compared():
    apart = [record("sft", loss=1.0), record("procon_s", 10, loss=1.5), record("random", 10, loss=0.8)]
    assert at_equal_task_loss(apart)["verdict"] == "undecided: the curves share no task loss"
    alone = [record("sft"), record("procon_s", 10, loss=1.5)]
    assert at_equal_task_loss(alone) == {"verdict": "undecided: the curves share no task loss", "losses": []}


def test_files_are_written_from_the_runs_in_a_folder(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        load_runs(tmp_path)
    runs = [*curves(1.0), record("procon_wu", 10, loss=1.1), record("sft_long", loss=1.05)]
    (tmp_path / "runs").mkdir()
    for number, run in enumerate(runs):
        (tmp_path / "runs" / f"{number:02}.json").write_text(json.dumps(run))
    rows, found = write_comparison(tmp_path)
    assert list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines())) == rows == table(runs)
    assert json.loads((tmp_path / "equal-task-loss.json").read_text()) == found
    assert {file.name for file in tmp_path.iterdir()} == {*FILES, "runs"}
    for figure in ("frontier.png", "drift.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")


def test_figures_draw_every_seed_and_arm():
    runs = curves(1.0)
    (axes,) = frontier_figure(runs).axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(drawn) == 4  # two methods, two seeds, through plain fine-tuning and two α
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {"ProCon", "random direction"}
    (axes,) = drift_figure(runs).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        *("sft", "procon_s-10", "procon_s-30", "random-10", "random-30")
    ]
