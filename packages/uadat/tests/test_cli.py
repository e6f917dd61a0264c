import csv
import functools
import json
import sys

import pytest
from PIL import Image

from uadat.cli import main
from uadat.photographs import photographs

FAST = ["--epochs", "1", "--batch-size", "100", "--steps", "1", "--device", "cpu"]


def run(capsys, *words):
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for loss in ("uad", "trades"):
        assert main(["train", "--out", str(folder / loss), "--loss", loss, *FAST]) == 0
    return folder


def test_train_leaves_a_run(trained):
    folder = trained / "uad"
    held = {path.name for path in folder.iterdir()} - {".lock"}
    assert held == {"run.json", "best.safetensors", "last.safetensors", "history.json", "state.pt"}
    run = json.loads((folder / "run.json").read_text())
    assert (run["dataset"], run["model"], run["eps"], run["loss"]) == ("digits", "small-resnet", 0.15, "uad")
    kept = json.loads((folder / "history.json").read_text())
    assert kept["configuration"]["loss"]["layer"] == "stage2"
    assert set(kept["history"][0]) >= {"val_clean", "val_pgd10", "align", "forward", "backward"}


def test_train_again_goes_on_and_trains_nothing_anew(trained, monkeypatch, capsys):
    monkeypatch.setattr("uadat.loss.UADLoss.prepare", lambda *_, **__: pytest.fail("trained again"))
    status, out, _ = run(capsys, "train", "--out", trained / "uad", "--loss", "uad", *FAST)
    assert status == 0
    assert "epoch 1 of 1" in out


def test_evaluate_reports_and_compares(trained, monkeypatch, capsys):
    words = [trained / "uad", "--attacks", "quick", "--images", "10", "--device", "cpu", "--eps", "1/20", "0.15"]
    words += ["--compare", trained / "trades", "--surrogate", trained / "trades"]
    status, out, err = run(capsys, "evaluate", *words)
    assert status == 0, err
    assert "10 images, l_inf, eps 0.05, 0.15" in out
    assert "| worst case |" in out
    assert "| transfer |" in out
    assert "| trades | 0.05 |" in out
    report = trained / "uad" / "report-best-quick"
    assert (report / "report.md").read_text() in out
    assert "<img" in (report / "report.html").read_text()
    assert (report / "report.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((report / "report.csv").read_text().splitlines()))
    assert [(row["model"], row["eps"]) for row in rows] == [(m, e) for m in ("uad", "trades") for e in ("0.05", "0.15")]
    monkeypatch.setattr("torchattacks.APGD.forward", lambda *_: pytest.fail("attacked again"))
    assert run(capsys, "evaluate", *words)[0] == 0


def test_runs_on_other_images_are_refused_before_any_attack(trained, tmp_path, monkeypatch, capsys):
    held = json.loads((trained / "trades" / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(held | {"seed": 1}))
    monkeypatch.setattr("uadat.report.robust_report", lambda *_, **__: pytest.fail("attacked"))
    status, _, err = run(
        capsys, "evaluate", trained / "uad", "--compare", trained / "trades", tmp_path, "--out", tmp_path / "out"
    )
    assert status == 2
    assert f"compare: {tmp_path} must be a run on the images of" in err
    assert not (tmp_path / "out").exists()


def test_folders_of_images_and_a_model_of_timm(tmp_path, capsys):
    for part, count in (("train", 6), ("test", 2)):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(count):
                shade = (60 * number, 30 * index, 120)
                Image.new("RGB", (20, 20), shade).save(tmp_path / "images" / part / name / f"{index}.png")
    words = ["--dataset", "folder", "--data", tmp_path / "images", "--size", "16", "--model", "timm:resnet10t"]
    words += ["--eps", "8/255", "--loss", "at", "--epochs", "1", "--batch-size", "5", "--validation", "2"]
    status, out, err = run(capsys, "train", "--out", tmp_path / "out", "--steps", "1", "--device", "cpu", *words)
    assert status == 0, err
    assert "PGD-10" in out


def test_photographs_and_a_pretrained_model(tmp_path, monkeypatch, capsys, random_lite0):
    monkeypatch.setattr("uadat.photographs.photographs", functools.partial(photographs, train=2))
    words = ["--dataset", "photographs", "--size", "32", "--epochs", "1", "--batch-size", "18", "--validation", "9"]
    words += ["--steps", "1", "--lr", "0.01", "--device", "cpu"]
    status, out, err = run(capsys, "train", "--out", tmp_path / "run", *words)
    assert status == 0, err
    assert "PGD-10" in out
    held = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (held["model"], held["classes"], held["size"], held["eps"]) == ("efficientnet-lite0", 9, 32, 4 / 255)
    assert json.loads((tmp_path / "run" / "history.json").read_text())["configuration"]["loss"]["layer"] == "blocks.2"
    words = ["evaluate", tmp_path / "run", "--attacks", "quick", "--images", "3", "--device", "cpu"]
    status, out, err = run(capsys, *words)
    assert status == 0, err
    assert "3 images, l_inf, eps 0.01569" in out


def test_what_is_not_there_is_named_with_the_fix(tmp_path, monkeypatch, capsys):
    words = ["train", "--out", tmp_path / "out", "--dataset", "photographs", "--size", "16", "--device", "cpu"]
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path / "cache"))
    assert run(capsys, *words)[::2] == (
        2,
        "uadat: efficientnet-lite0 is not in the cache: run `aisec data fetch efficientnet-lite0`\n",
    )
    status, _, err = run(capsys, *words[:3], "--model", "efficientnet-lite0")
    assert status == 2
    assert "take small-resnet" in err
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    status, _, err = run(capsys, *words)
    assert (status, err.count("\n")) == (2, 1)
    assert "aisec-uadat[photographs]" in err
    monkeypatch.setitem(sys.modules, "timm", None)
    for name in ("uadat.timm_classifier", "aisec_common.torch.timm_efficientnet_lite0"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    status, _, err = run(capsys, *words[:3], "--model", "efficientnet-lite0")
    assert status == 2
    assert "aisec-uadat[timm]" in err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["train", "--out", "OUT", "--eps", "0"], "eps"),
        (["train", "--out", "OUT", "--dataset", "photographs", "--data", "OUT"], "data must name"),
        (["train", "--out", "OUT", "--layer", "nosuch", *FAST], "stage1"),
        (["train", "--out", "OUT", "--model", "nosuch", *FAST], "model must be"),
        (["train", "--out", "OUT", "--model", "timm:nosuch", *FAST], "nosuch"),
        (["train", "--out", "OUT", "--dataset", "cifar10"], "data must name"),
        (["train", "--out", "OUT", "--dataset", "cifar10", "--data", "OUT"], "cifar-10-batches-py"),
        (["train", "--out", "OUT", "--batch-size", "501"], "batch_size 501"),
        (["train", "--out", "OUT", "--device", "tpu"], "device"),
        (["train", "--out", "RUN", "--seed", "1", *FAST], "another seed"),
        (["train", "--out", "RUN", *FAST, "--kappa", "0.1"], "another loss"),
        (["evaluate", "OUT"], "run.json"),
        (["evaluate", "RUN", "--images", "0"], "images"),
        (["evaluate", "RUN", "--eps", "2"], "eps"),
        (["evaluate", "RUN", "--compare", "RUN", "--images", "5", "--attacks", "quick"], "distinct"),
        (["evaluate", "RUN", "--surrogate", "OUT"], "run.json"),
    ],
)
def test_misuse_is_one_line_and_status_2(words, why, trained, tmp_path, capsys):
    places = {"RUN": trained / "uad", "OUT": tmp_path / "out"}
    status, _, err = run(capsys, *(places.get(word, word) for word in words))
    last = err.strip().splitlines()[-1]
    assert status == 2
    assert last.startswith("uadat: ")
    assert why in last


def test_ctrl_c_keeps_the_finished_epochs(tmp_path, monkeypatch, capsys):
    from uadat.loss import UADLoss

    real, calls = UADLoss.on, []

    def interrupted(self, *arguments, **named):
        calls.append(1)
        if len(calls) == 8:  # in the second epoch of five batches
            raise KeyboardInterrupt
        return real(self, *arguments, **named)

    monkeypatch.setattr(UADLoss, "on", interrupted)
    words = ["train", "--out", tmp_path, *FAST, "--epochs", "2"]
    status, _, err = run(capsys, *words)
    assert status == 130
    assert "kept" in err
    assert len(json.loads((tmp_path / "history.json").read_text())["history"]) == 1
    assert run(capsys, *words)[0] == 0
    assert len(json.loads((tmp_path / "history.json").read_text())["history"]) == 2


def test_another_loss_of_the_same_run_is_refused_before_its_record_is_touched(trained, capsys):
    before = (trained / "trades" / "run.json").read_bytes()
    status, _, err = run(capsys, "train", "--out", trained / "trades", "--loss", "mart", *FAST)
    assert status == 2
    assert "another loss" in err
    assert (trained / "trades" / "run.json").read_bytes() == before


def test_without_the_extra_the_command_says_which(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in [name for name in sys.modules if name.startswith("uadat.torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    status, _, err = run(capsys, "train", "--out", tmp_path, "--dataset", "cifar10", "--data", tmp_path)
    assert status == 2
    assert "aisec-uadat[torchvision]" in err
