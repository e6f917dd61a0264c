import csv
import json

import pytest

from tracerouter.comparison import FILES, differences, frontier_figure, load_runs, table, write_comparison

PROMPTS = 16


def record(seed, setting, *, attacked, served, sites="resid", budget=12, perplexity=20.0):
    """One setting's record: how many of the prompts were attacked and served, the first ones in either case."""
    about = {"seed": seed, "setting": setting} if setting == "none" else {"seed": seed, "sites": sites}
    about |= {} if setting == "none" else {"budget": budget, "setting": setting}
    flags = {
        name: [int(i < count) for i in range(PROMPTS)] for name, count in (("attacked", attacked), ("served", served))
    }
    return {
        "settings": {"model": "made-up", **about},
        **({} if setting == "none" else {"units": 2 * budget}),
        "asr": attacked / PROMPTS,
        "utility": served / PROMPTS,
        "over_refusal": 0.0,
        "perplexity": perplexity,
        **flags,
    }


@pytest.fixture
def records():
    """The path stops 12 of 16; no defence and local stop none, random stops 13, everywhere does just as well."""
    return [
        made
        for seed in (0, 1)
        for made in (
            record(seed, "none", attacked=16, served=14, perplexity=18.0 + seed),
            record(seed, "path", attacked=4, served=14, perplexity=20.0 + seed),
            record(seed, "local", attacked=16, served=14),
            record(seed, "random", attacked=0, served=16),
            record(seed, "delta_wfs", attacked=4, served=14),
        )
    ]


def test_the_table_has_a_row_a_setting_and_shows_every_seed(records):
    rows = {row["cut"]: row for row in table(records[::-1])}
    assert list(rows) == ["none", "delta_wfs", "local", "path", "random"]
    assert rows["path"] == {
        "sites": "resid",
        "K": "12",
        "cut": "path",
        "units": "24 / 24",
        "flagged topic refused": "0.25 / 0.25",
        "countries right": "0.88 / 0.88",
        "countries refused": "0.00 / 0.00",
        "perplexity": "20.0 / 21.0",
    }
    assert (rows["none"]["sites"], rows["none"]["K"], rows["none"]["units"]) == ("–", "–", "0 / 0")


def test_differences_hold_fail_or_stay_undecided_by_their_interval(records):
    rows = {row["path over"]: row["J, seed 0"] for row in differences(records)}
    verdicts = {other: told.split()[-1] for other, told in rows.items()}
    assert verdicts == {"none": "holds", "local": "holds", "random": "fails", "delta_wfs": "undecided"}
    assert rows["none"].startswith("0.75 [0.5")
    assert rows["delta_wfs"] == "0.00 [0.00, 0.00] undecided"
    assert "printed_fis" not in rows, "what was not run is not told"


def test_seeds_that_disagree_are_not_averaged(records):
    changed = [r for r in records if (r["settings"]["seed"], r["settings"]["setting"]) != (1, "local")]
    changed.append(record(1, "local", attacked=0, served=14))
    (row,) = [row for row in differences(changed) if row["path over"] == "local"]
    assert (row["J, seed 0"].split()[-1], row["J, seed 1"].split()[-1]) == ("holds", "fails")


def test_differences_are_paired_within_a_place_a_budget_and_a_seed(records):
    elsewhere = [
        record(0, "path", attacked=16, served=14, sites="attn_out+mlp_out", budget=48),
        record(0, "local", attacked=16, served=14, sites="attn_out+mlp_out", budget=12),
        record(2, "path", attacked=0, served=16),  # a seed whose other settings are not finished
    ]
    rows = differences([*records, *elsewhere])
    resid = [row for row in rows if row["sites"] == "resid"]
    assert [{**row, "J, seed 2": None} for row in resid] == [{**row, "J, seed 2": None} for row in differences(records)]
    (other,) = [row for row in rows if row["sites"] != "resid"]
    assert (other["K"], other["path over"]) == ("48", "none")
    assert [other[f"J, seed {seed}"] for seed in range(3)] == ["0.00 [0.00, 0.00] undecided", "–", "–"]


def test_the_figure_has_a_panel_a_place_and_a_mark_a_cut(records):
    figure = frontier_figure([*records, record(0, "path", attacked=8, served=9, sites="mlp_out")])
    assert [axes.get_title() for axes in figure.axes] == ["mlp_out", "resid"]
    marks = {line.get_label(): line for line in figure.axes[1].lines}
    assert set(marks) == {"none", "path", "local", "random", "delta_wfs"}
    assert list(marks["path"].get_xdata()) == [20.0, 21.0]
    assert list(marks["path"].get_ydata()) == [0.25, 0.25]


def test_everything_is_written_from_the_runs_on_disk(records, tmp_path):
    (tmp_path / "runs").mkdir()
    for i, made in enumerate(records):
        (tmp_path / "runs" / f"{i}.json").write_text(json.dumps(made))
    assert load_runs(tmp_path) == records
    found = write_comparison(tmp_path)
    with (tmp_path / "differences.csv").open() as file:
        assert list(csv.DictReader(file)) == found == differences(records)
    with (tmp_path / "comparison.csv").open() as file:
        assert list(csv.DictReader(file)) == table(records)
    assert all((tmp_path / name).stat().st_size > 100 for name in FILES)


def test_without_runs_the_command_to_make_them_is_named(tmp_path):
    with pytest.raises(ValueError, match="start with `tracerouter compare"):
        load_runs(tmp_path)
