import json

import numpy as np
import pandas as pd
import pytest
import torch
from aisec_common.files import locked

from icfnet.cli import main
from icfnet.sksurv_estimator import ICFNetSurvival

SMALL = ["--width", "8", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng, n = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0), 60
    risk = rng.normal(size=n)
    ids = [f"C{i:02d}" for i in range(n)]
    pd.DataFrame(
        {
            "case_id": ids,
            "slide_id": [f"{name}.svs" for name in ids],
            "is_female": rng.integers(2, size=n),
            "age": rng.integers(40, 80, size=n),
            "survival_months": 20 * np.exp(-risk) * rng.exponential(size=n) + 0.1,
            "censorship": rng.integers(2, size=n),
            "radiation_treatment": rng.choice(["yes", "no"], size=n),
            **{f"G{j}_rnaseq": risk + rng.normal(size=n) for j in range(6)},
        }
    ).to_csv(folder / "table.csv", index=False)
    pd.DataFrame({"One": ["G0", "G1", "G2"], "Two": ["G3", "G4", "G5"]}).to_csv(folder / "signatures.csv", index=False)
    (folder / "bags").mkdir()
    for name in ids[:-1]:
        torch.save(torch.randn(5, 6), folder / "bags" / f"{name}.pt")
    pd.DataFrame({"train": ids[:40], "val": ids[40:] + [None] * 20}).to_csv(folder / "splits_0.csv")
    return folder


def words_for(files, *more):
    return ["--csv", files / "table.csv", "--signatures", files / "signatures.csv", *more]


def fold(files):
    return ["--splits", files, "--fold", "0"]


def run(capsys, *words):
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    words = ["train", *words_for(files, *fold(files)), "--bags", files / "bags", "--out", out, *SMALL]
    assert main([str(word) for word in words]) == 0
    return out


def test_train_saves_a_model_of_the_training_patients(trained, files, capsys):
    model = ICFNetSurvival.load(trained)
    assert model.modalities_ == ("wsi", "genes", "text")
    # the same command again finds the last epoch's checkpoint and changes nothing
    before = (trained / "model.safetensors").read_bytes()
    words = [*words_for(files, *fold(files)), "--bags", files / "bags", "--out", trained, *SMALL]
    status, out, _ = run(capsys, "train", *words)
    assert status == 0
    assert (trained / "model.safetensors").read_bytes() == before
    assert "40 patients" in out
    assert "immortal-time bias" in out


def test_treatment_can_be_left_out(files, tmp_path, capsys):
    words = [*words_for(files), "--without-treatment", "--out", tmp_path, *SMALL, "--modalities", "genes", "text"]
    status, out, _ = run(capsys, "train", *words)
    assert status == 0
    assert "60 patients" in out
    assert "immortal" not in out


def test_evaluate_reports_and_compares(trained, files, tmp_path, capsys):
    words = [*words_for(files, *fold(files)), "--bags", files / "bags", "--device", "cpu"]
    status, out, _ = run(capsys, "evaluate", trained, *words, "--against", "coxnet", "--out", tmp_path)
    assert status == 0
    assert "20 patients" in out
    assert "| sex | woman |" in out
    assert "coxnet" in out
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert set(numbers) == {"ICFNet", "coxnet"}
    assert (tmp_path / "kaplan_meier.png").stat().st_size > 3000
    assert (tmp_path / "report.md").read_text().startswith("**ICFNet**")


def test_evaluate_refuses_patients_the_model_has_seen(trained, files, tmp_path, capsys):
    ids = [f"C{i:02d}" for i in range(60)]
    pd.DataFrame({"train": ids[5:], "val": ids[:5] + [None] * 50}).to_csv(tmp_path / "splits_1.csv")
    words = [*words_for(files), "--splits", tmp_path, "--fold", "1", "--bags", files / "bags", "--device", "cpu"]
    status, out, error = run(capsys, "evaluate", trained, *words)
    assert (status, out) == (2, "")
    (line,) = error.splitlines()
    assert "trained on 5 of these 5 patients; give the fold that was left out (--fold)" in line
    everybody = tmp_path / "everybody"
    assert run(capsys, "train", *words_for(files), "--out", everybody, *SMALL, "--modalities", "genes")[0] == 0
    status, _, error = run(capsys, "evaluate", everybody, *words_for(files, *fold(files)))
    assert status == 2
    assert "trained on 20 of these 20 patients" in error


def test_evaluate_refuses_treatments_the_model_has_not_seen(files, tmp_path, capsys):
    words = words_for(files, *fold(files))
    train = ["--without-treatment", "--out", tmp_path, *SMALL, "--modalities", "genes", "text"]
    assert run(capsys, "train", *words, *train)[0] == 0
    status, out, error = run(capsys, "evaluate", tmp_path, *words)
    assert (status, out) == (2, "")
    assert error.splitlines()[-1].endswith("(--without-treatment)")
    status, out, _ = run(capsys, "evaluate", tmp_path, *words, "--without-treatment")
    assert status == 0
    assert "immortal" not in out


def test_race_may_be_one_number(files, tmp_path, capsys):
    words = [*words_for(files), "--out", tmp_path, *SMALL, "--modalities", "text", "--race-encoding", "ordinal"]
    assert run(capsys, "train", *words)[0] == 0
    model = ICFNetSurvival.load(tmp_path)
    assert (model.race_encoding, model.scales_.races, model.scales_.sizes.structured) == ("ordinal", None, 5)


def test_compare_writes_and_prints_the_leads(tmp_path, monkeypatch, capsys):
    from icfnet import real_comparison, sksurv_real_tables

    asked = []
    monkeypatch.setattr(real_comparison, "compare", lambda name, out, **rest: asked.append((name, out)))
    monkeypatch.setattr(real_comparison, "load_cohort", lambda name: name)
    monkeypatch.setattr(
        sksurv_real_tables, "write_tables", lambda out, cohort: [{"less": "coxnet", "C-index": "+0.1 [0, 0.2]"}]
    )
    status, out, _ = run(capsys, "compare", "--cohort", "tcga-blca", "--out", tmp_path)
    assert status == 0
    assert asked == [("tcga-blca", tmp_path)]
    assert "| coxnet | +0.1 [0, 0.2] |" in out


def test_misuse_is_one_line(trained, files, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("AISEC_DATA", raising=False)
    train = ["train", "--out", tmp_path, *SMALL]
    for words, message in (
        ([*train, "--csv", tmp_path / "none.csv", "--signatures", files / "signatures.csv"], "there is no file"),
        ([*train, *words_for(files), "--fold", "0"], "belong together"),
        ([*train, *words_for(files), "--splits", files, "--fold", "7"], "fold must be one of"),
        ([*train, *words_for(files), "--modalities", "wsi"], "no patient of the cohort has any of wsi"),
        ([*train, *words_for(files), "--batch-size", "0"], "batch_size"),
        (["evaluate", tmp_path / "none", *words_for(files, *fold(files))], "model.json"),
        (["evaluate", trained, *words_for(files, *fold(files)), "--against", "nosuch"], "--against"),
        (["compare", "--cohort", "tcga-blca", "--out", tmp_path], "AISEC_DATA"),
        (["compare", "--cohort", "nosuch", "--out", tmp_path], "nosuch"),
    ):
        status, _, error = run(capsys, *words)
        assert status == 2, words
        assert message in error.splitlines()[-1]
    assert not (tmp_path / "model.json").exists()


def test_a_folder_in_use_is_left_alone(files, tmp_path, capsys):
    with locked(tmp_path, "--out"):
        status, _, error = run(capsys, "train", *words_for(files), "--out", tmp_path, *SMALL)
    assert status == 2
    assert "another run is at work" in error
