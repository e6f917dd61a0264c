import json
import os
from pathlib import Path

import pytest

from icfnet import real_comparison
from icfnet.real_comparison import REAL_TOWER, SETTINGS, TOWERS, Recipe, Setting, compare, load_cohort

FEW = (Setting(arm="icfnet", tower="tiny"), Setting(arm="permuted", tower=REAL_TOWER), Setting(arm="coxnet"))
TINY = Recipe(width=8, epochs=1)


@pytest.fixture
def tower(monkeypatch):
    from icfnet.hf_text import FrozenTextTower

    def load(name, *, device="cpu"):
        assert name == REAL_TOWER
        return FrozenTextTower.tiny(["The patient is a woman."], device=device)

    monkeypatch.setattr(FrozenTextTower, "load", load)
    monkeypatch.setattr(real_comparison, "SETTINGS", FEW)
    monkeypatch.setattr(real_comparison, "FOLDS", 2)


def test_every_fold_is_kept_and_not_repeated(tower, tmp_path, monkeypatch):
    told = []
    records = compare("gse7390", tmp_path, recipe=TINY, show=lambda *seen: told.append(seen))
    assert len(records) == 6
    assert told[-1] == ("gse7390: models and folds", 6, 6)
    assert {record["best_epoch"] is None for record in records if record["settings"]["setting"] == "coxnet"} == {True}
    patients = [p["id"] for record in records[:2] for p in record["patients"]]
    assert sorted(patients) == sorted(load_cohort("gse7390").ids)
    assert not records[0]["warnings"]  # no treatment is known

    monkeypatch.setattr(real_comparison, "_fold", lambda *_: pytest.fail("was done"))
    assert compare("gse7390", tmp_path, recipe=TINY) == records

    (tmp_path / "runs" / "coxnet-1.json").unlink()
    monkeypatch.setattr(real_comparison, "_fold", lambda *_: {"c_index": 1.0})
    again = compare("gse7390", tmp_path, recipe=TINY)
    assert [i for i, (a, b) in enumerate(zip(again, records, strict=True)) if a != b] == [5]
    assert json.loads((tmp_path / "runs" / "coxnet-1.json").read_text())["c_index"] == 1.0


def test_another_recipe_is_run_anew(tower, tmp_path, monkeypatch):
    monkeypatch.setattr(real_comparison, "_fold", lambda *_: {"c_index": 0.5})
    compare("gse7390", tmp_path, recipe=TINY)
    monkeypatch.setattr(real_comparison, "_fold", lambda *_: {"c_index": 0.6})
    assert {r["c_index"] for r in compare("gse7390", tmp_path, recipe=Recipe(width=8, epochs=2))} == {0.6}


def test_the_settings_cover_both_towers_the_control_and_the_peers():
    names = {setting.name for setting in SETTINGS}
    assert {f"icfnet-{tower}" for tower in TOWERS} | {"coxnet", "rsf", f"permuted-{REAL_TOWER}"} <= names
    assert len(names) == len(SETTINGS)


def test_an_unknown_cohort_and_absent_data_are_told(monkeypatch):
    with pytest.raises(ValueError, match="cohort must be"):
        load_cohort("nosuch")
    monkeypatch.delenv("AISEC_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="AISEC_DATA"):
        load_cohort("tcga-blca")


@pytest.mark.real
def test_tcga_blca_on_one_published_fold(tower):
    if not (Path(os.environ["AISEC_DATA"]) / "tcga").is_dir():
        pytest.skip("AISEC_DATA holds no folder tcga")
    from icfnet.hf_text import FrozenTextTower

    cohort = load_cohort("tcga-blca")
    towers = {"tiny": FrozenTextTower.tiny([text for pair in cohort.text for text in pair if text])}
    found = real_comparison._fold("tcga-blca", cohort, FEW[0], 0, TINY, towers, "cpu")
    assert len(found["patients"]) == 75
    assert 0.3 < found["c_index"] < 0.8
    assert found["warnings"] == []
