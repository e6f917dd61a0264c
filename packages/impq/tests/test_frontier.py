import csv
import json

import pytest

from impq.frontier import differences, draw_frontier, frontier_table, write_comparison


def row(method, walks, seed, bits, nll, quantiser="rtn"):
    return {
        "method": method,
        "walks": walks,
        "seed": seed,
        "avg_bits": bits,
        "nll": nll,
        "quantiser": quantiser,
        "evaluations": 10 * seed,
    }


def rows():
    found = []
    for seed in range(3):
        for bits in (3.0, 3.5):
            found.append(row("shapley", "full", seed, bits, 5.0))
            found.append(row("precedence", "full", seed, bits, 4.0 + seed))
            found.append(row("random", "", seed, bits, 9.0 + seed))
        found.append(row("precedence", "truncated", seed, 3.5, 3.0 + seed + 0.1 * seed))
    return found


def test_the_table_holds_means_over_seeds_and_leaves_out_what_was_not_measured():
    table = {line["method"]: line for line in frontier_table(rows(), "rtn")}
    assert table["precedence, full walks"] == {
        "method": "precedence, full walks",
        "evaluations": 20,
        "3": "5.00",
        "3.5": "5.00",
    }
    assert table["precedence, truncated walks"]["3"] == ""
    assert table["random"]["3.5"] == "10.00"
    assert frontier_table(rows(), "hqq") == []


def test_differences_are_paired_by_seed_over_the_budgets_that_both_serve():
    table = {line["comparison"]: line for line in differences(rows())}
    truncated = table["truncated over full walks, precedence"]
    assert truncated["average bits"] == "3.5 to 3.5"
    assert truncated["difference of held-out loss"] == "-0.900"  # -1, -.9, -.8: not the spread of the seeds themselves
    low, high = json.loads(truncated["95 % interval"].replace("+", ""))
    assert (low, high) == pytest.approx((-0.9 - 4.303 * 0.1 / 3**0.5, -0.9 + 4.303 * 0.1 / 3**0.5), abs=2e-3)
    assert table["precedence over shapley, full walks"]["difference of held-out loss"] == "+0.000"
    assert "covariance over shapley, full walks" not in table


def test_two_seeds_give_no_interval():
    few = [r for r in rows() if r["seed"] < 2]
    assert {line["95 % interval"] for line in differences(few)} == {""}


def test_the_figure_has_a_panel_per_quantiser_and_a_line_per_method():
    both = [*rows(), *(r | {"quantiser": "hqq"} for r in rows())]
    figure = draw_frontier(both, {"rtn": {"2": 12.0, "3": 4.0, "4": 3.0}})
    assert [axes.get_title() for axes in figure.axes] == ["rtn", "hqq"]
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["shapley, full", "precedence, full", "precedence, truncated", "uniform"]


def test_what_is_written_can_be_read(tmp_path):
    content = {"rows": rows(), "differences": differences(rows()), "uniform": {"rtn": {"4": 3.0}}}
    write_comparison(tmp_path, content)
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"] == rows()
    with (tmp_path / "frontier-rtn.csv").open() as file:
        assert next(line["method"] for line in csv.DictReader(file)) == "shapley, full walks"
    with (tmp_path / "differences.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(content["differences"])
    assert (tmp_path / "frontier.png").stat().st_size > 5000
