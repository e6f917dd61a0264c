import json
import math

from gfmextract.records import RowKeeper, recorded


def test_a_record_is_made_once_and_anew_for_other_settings(tmp_path):
    file, made = tmp_path / "runs" / "one.json", []

    def make():
        made.append(len(made))
        return {"value": made[-1]}

    first = recorded(file, {"budgets": (1, 2)}, make)
    assert first == {"settings": {"budgets": [1, 2]}, "value": 0}
    assert recorded(file, {"budgets": (1, 2)}, make) == first
    assert recorded(file, {"budgets": (1,)}, make)["value"] == 1
    assert json.loads(file.read_text()) == {"settings": {"budgets": [1]}, "value": 1}


def test_rows_are_kept_for_what_they_depend_on(tmp_path):
    made = []

    def rows(keeper, about):
        return keeper.rows("query budget, 5%", about, lambda: made.append(about) or [{"gap": 0.1, "ratio": math.nan}])

    keeper = RowKeeper(folder=tmp_path, shared={"victim": "a"})
    first = rows(keeper, {"row": "5%"})
    assert math.isnan(first[0]["ratio"])
    assert str(rows(keeper, {"row": "5%"})) == str(first)
    assert len(made) == 1
    rows(keeper, {"row": "10%"})
    rows(RowKeeper(folder=tmp_path, shared={"victim": "b"}), {"row": "5%"})
    assert len(made) == len(list(tmp_path.glob("query-budget-5--*.json"))) == 3
    assert str(rows(keeper, {"row": "5%"})) == str(first), "another victim's rows take nobody's place"
    assert len(made) == 3


def test_without_a_folder_nothing_is_kept():
    made = []
    keeper = RowKeeper(shared={})
    for _ in range(2):
        assert keeper.rows("a", {}, lambda: made.append(0) or [{"gap": 0.1}]) == [{"gap": 0.1}]
    assert len(made) == 2
