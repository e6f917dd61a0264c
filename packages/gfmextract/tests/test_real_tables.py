import csv
import json

import pytest

from gfmextract.real_tables import FILES, VALIDITY, budget_figure, read_runs, table, validity, write_tables


def record(attacker, budget, seed, fidelity, source="one"):
    settings = {"source": source, "attacker": attacker, "budget": budget, "seed": seed}
    rest = dict.fromkeys(("accuracy", "victim_accuracy", "cosine", "cka"), 0.5)
    return {"settings": settings, "queries": budget, "fidelity": fidelity, "seconds": 1.0, **rest}


RECORDS = [
    *(record("gin", budget, seed, 0.5 + budget / 1000 + seed / 10) for budget in (10, 100) for seed in (0, 1)),
    record("permuted", 100, 0, 0.25),
    record("gin", 10, 0, 0.75, source="two"),
]


def kept(folder):
    (folder / "runs").mkdir()
    for number, each in enumerate(reversed(RECORDS)):
        (folder / "runs" / f"{number}.json").write_text(json.dumps(each))
    return folder


def test_rows_are_means_over_seeds_in_order(tmp_path):
    rows = table(read_runs(kept(tmp_path)))
    assert [(row["queried"], row["copy"], row["queries"]) for row in rows] == [
        ("one", "gin", "10"),
        ("one", "gin", "100"),
        ("one", "permuted", "100"),
        ("two", "gin", "10"),
    ]
    assert rows[1]["fidelity"] == "0.650"
    assert rows[1]["fidelity of seeds"] == "0.60 to 0.70"


def test_the_figure_has_a_panel_a_source_and_flat_lines_for_controls():
    first, second = budget_figure(RECORDS).axes
    gin, permuted = first.lines
    assert list(gin.get_ydata()) == pytest.approx([0.56, 0.65])
    assert permuted.get_linestyle() == ":"
    assert first.get_title() == "one"
    assert len(second.lines) == 1


def test_files_are_written(tmp_path):
    rows = write_tables(kept(tmp_path))
    with (tmp_path / FILES[0]).open() as file:
        assert list(csv.DictReader(file)) == rows
    assert (tmp_path / FILES[1]).stat().st_size > 3000


def test_no_records(tmp_path):
    with pytest.raises(ValueError, match="holds no record"):
        read_runs(tmp_path)


def gained(source, seed, low):
    told = {"gain": low + 0.1, "gain_low": low, "gain_high": low + 0.2, "neighbours_accuracy": 0.4, "nodes": 30}
    return record("text-only", 100, seed, 0.5, source=source) | told


def test_a_victim_is_valid_where_its_gain_lies_above_nothing(tmp_path):
    rows = validity([*RECORDS, gained("one", 0, 0.01), gained("one", 1, 0.01), gained("two", 0, -0.02)])
    assert [(row["queried, read"], row["valid"]) for row in rows] == [("one", "yes"), ("two", "no")]
    assert rows[1]["gain"] == "+0.080"
    assert rows[1]["interval"] == "-0.020 to +0.180"
    write_tables(kept(tmp_path))
    assert not (tmp_path / VALIDITY).exists(), "none of these records says"
    (tmp_path / "runs" / "one.json").write_text(json.dumps(gained("one", 0, 0.01)))
    write_tables(tmp_path)
    assert len((tmp_path / VALIDITY).read_text().splitlines()) == 2
