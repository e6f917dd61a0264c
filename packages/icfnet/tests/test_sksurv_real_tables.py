import csv
import json

import numpy as np
import pytest
import torch

from icfnet.cohort import Cohort
from icfnet.sksurv_real_tables import FILES, METHOD, comparison, figure, leads, load_runs, pooled_halves, write_tables

COHORT = Cohort(
    ids=tuple(f"{fold}-{i}" for fold in range(3) for i in range(20)),
    time=[i + 1 for _ in range(3) for i in range(20)],
    event=[i % 4 > 0 for _ in range(3) for i in range(20)],
    genes={"Oncogenes": torch.zeros(60, 1)},
)


def record(setting, fold, c_index, *, best=None, offset=0.0):
    patients = [{"id": f"{fold}-{i}", "risk": offset - i} for i in range(20)]
    scores = {"c_index": c_index, "ipcw": c_index - 0.01, "ibs": 0.2 + fold / 100, "logrank_p": 0.1}
    return {"settings": {"setting": setting, "fold": fold}, **scores, "best_epoch": best, "patients": patients}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    for fold in range(3):
        for made in (record(METHOD, fold, 0.6 + fold / 20, best=0.9), record("coxnet", fold, 0.6 - fold / 20)):
            file = tmp_path / "runs" / f"{made['settings']['setting']}-{fold}.json"
            file.write_text(json.dumps(made))
    (tmp_path / "runs" / "rsf-0.json").write_text(json.dumps(record("rsf", 0, 0.7)))  # cut off
    return tmp_path


def test_a_setting_counts_when_all_of_its_folds_are_there(folder):
    runs = load_runs(folder)
    assert set(runs) == {METHOD, "coxnet"}
    assert [r["settings"]["fold"] for r in runs["coxnet"]] == [0, 1, 2]


def test_rows_give_folds_mean_and_population_deviation(folder):
    first, second = comparison(load_runs(folder), COHORT)
    assert (first["model"], second["model"]) == (METHOD, "coxnet")
    assert [first[f"fold {fold}"] for fold in range(3)] == ["0.600", "0.650", "0.700"]
    assert first["C-index, last epoch"] == f"0.650 ± {np.std([0.6, 0.65, 0.7]):.3f}"
    assert first["best epoch on the test fold (optimistic)"] == "0.900"
    assert second["best epoch on the test fold (optimistic)"] == "–"


def test_leads_are_paired_over_folds(folder):
    (row,) = leads(load_runs(folder))
    assert row[f"{METHOD} less"] == "coxnet"
    half = 4.302653 * 0.1 / 3**0.5  # Student's t with two degrees of freedom on 0, .1, .2
    assert row["C-index"] == f"+0.100 [{0.1 - half:+.3f}, {0.1 + half:+.3f}]"
    assert leads({"coxnet": []}) == []


def test_halves_are_those_of_each_fold():
    apart = [record("x", 0, 0.5), record("x", 1, 0.5, offset=1000.0)]
    (low, high), p_value = pooled_halves(apart, COHORT)
    assert (low.n, high.n) == (20, 20)
    assert p_value < 1e-3
    assert pooled_halves([apart[0], record("x", 1, 0.5)], COHORT)[1] == pytest.approx(p_value)


def test_files_are_written_and_hold_the_tables(folder):
    write_tables(folder, COHORT)
    assert all((folder / name).is_file() for name in FILES)
    with (folder / "comparison.csv").open(encoding="utf-8") as file:
        assert [row["model"] for row in csv.DictReader(file)] == [METHOD, "coxnet"]
    assert len(figure(load_runs(folder), COHORT).axes) == 2


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        load_runs(tmp_path)
