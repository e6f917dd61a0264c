import sys

import numpy as np
import pandas as pd
import pytest
import torch
from aisec_common.files import locked
from PIL import Image
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from interference_nn import InterferenceNet, real_comparison
from interference_nn.cli import main

SMALL = ["--size", "32", "--bank", "8", "--background-labels", "4", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes of flat images with a little noise."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 40, (32, 32, 3), np.uint8) + 150 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    words = ["fit", "--backbone", "resnet18", "--data", data, "--out", folder, "--draws", "2", *SMALL]
    words += ["--head-epochs", "1", "--finetune-epochs", "1", "--batch-size", "6", "--alpha", "random"]
    assert main([str(word) for word in words]) == 0
    return folder, words


def run(capsys, *words):
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_fit_saves_a_network(fitted):
    net = InterferenceNet.load(fitted[0])
    assert net.classes == 2
    assert net.bank_images.shape == (8, 3, 32, 32)
    assert net.settings.draws == 2
    assert net.settings.alpha == "random"


def test_fit_with_other_settings_does_not_give_the_first_network(fitted, capsys):
    folder, words = fitted
    before = (folder / "interference.safetensors").read_bytes()
    assert run(capsys, *words)[0] == 0
    for more, differing in (
        (["--adversarial"], "adversarial, eps, attack_steps"),
        (["--alpha", "0.5"], "alpha"),
    ):
        status, _, error = run(capsys, *words, *more)
        assert status == 2, more
        assert f"with other {differing})" in error.splitlines()[-1]
    assert (folder / "interference.safetensors").read_bytes() == before


def test_ladder_writes_table_text_and_page_and_goes_on(fitted, data, tmp_path, capsys):
    words = ["ladder", "--net", fitted[0], "--data", data, "--out", tmp_path, "--images", "4", "--eps", "4/255"]
    words += ["--effort", "quick", "--device", "cpu"]
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "saved:" in out
    table = pd.read_csv(tmp_path / "ladder.csv")
    assert list(table["model"]) == ["interference"]
    assert "Verdict: undecided" in (tmp_path / "ladder.md").read_text()
    assert (tmp_path / "ladder.html").stat().st_size > 5000
    samples = tmp_path / "samples" / "interference" / "samples.jsonl"
    before = samples.read_text()
    assert run(capsys, *words)[0] == 0
    assert samples.read_text() == before
    status, _, error = run(capsys, *words, "--seed", "1")
    assert status == 2
    assert "of a report with other seed" in error.splitlines()[-1]


def test_beside_its_undefended_backbone_there_is_an_over_claim_and_a_verdict(fitted, data, tmp_path, capsys):
    """The README's command, on a classifier of two classes from a folder."""
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=2, layer_type="basic")
    torch.manual_seed(0)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "plain")
    ViTImageProcessor().save_pretrained(tmp_path / "plain")
    words = ["ladder", "--net", fitted[0], "--backbone", f"hf:{tmp_path / 'plain'}", "--data", data]
    words += ["--out", tmp_path / "out", "--images", "2", "--eps", "4/255", "--effort", "quick", "--device", "cpu"]
    status, out, error = run(capsys, *words, "--control")
    assert status == 0, error
    table = pd.read_csv(tmp_path / "out" / "ladder.csv").set_index("model")
    assert list(table.index) == ["interference", "plain", "noise average"]
    assert table["R1"].notna().all()
    assert (table["over-claim"] - (table["R1"] - table["worst case"])).abs().max() < 1e-3
    text = (tmp_path / "out" / "ladder.md").read_text()
    assert "R1 (no undefended model was given)" not in text
    assert "no baseline was given" not in out


def test_a_pretrained_backbone_is_climbed_beside_its_wrapped_self(data, tmp_path, monkeypatch, capsys):
    asked = {}

    def climb(net, given, **settings):
        asked.update(settings, net=net, images=given[0])
        raise ValueError("enough")

    monkeypatch.setattr(sys.modules["interference_nn.ladder"], "ladder", climb)
    from_backbone = InterferenceNet.from_backbone
    made = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))

    def small(name, *, weights, size, **settings):
        from interference_nn.backbone import Backbone, split_head

        model, head, dim = split_head(made)
        return from_backbone(Backbone(model, dim=dim, pretrained=head), size=size, **settings)

    monkeypatch.setattr(InterferenceNet, "from_backbone", small)
    words = ["ladder", "--backbone", "resnet18", "--data", data, "--out", tmp_path, "--size", "32", "--device", "cpu"]
    status, _, error = run(capsys, *words, "--images", "3", "--mode", "keyed", "--key", "k")
    assert (status, error.splitlines()[-1]) == (2, "interference-nn: enough")
    assert asked["images"].shape == (3, 3, 32, 32)
    assert asked["net"].settings.mode == "keyed"
    assert asked["eps"] == (4 / 255, 16 / 255)
    plain = asked["baselines"]["plain"]
    assert (set(asked["baselines"]), asked["control"]) == ({"plain"}, None)
    images = asked["images"]
    assert torch.allclose(plain(images), asked["net"].without_interference(images), atol=1e-5)


def test_compare_hands_over_and_saves(tmp_path, monkeypatch, capsys):
    asked = {}

    class Report:
        verdict, reason = "fails", "as expected"

        def table(self):
            return pd.DataFrame([{"model": "interference", "eps": 0.1}])

        def header(self):
            return "18 images"

        def to_markdown(self):
            return "text"

        def save(self, file):
            file.write_text("page")

    def compare(out, **settings):
        asked.update(settings)
        return Report()

    monkeypatch.setattr(real_comparison, "compare", compare)
    status, out, _ = run(capsys, "compare", "--out", tmp_path, "--images", "9", "--device", "cpu")
    assert status == 0
    assert "fails: as expected" in out
    assert asked["images"] == 9
    assert asked["effort"] == real_comparison.EFFORT
    assert {file.name for file in tmp_path.iterdir()} >= {"ladder.csv", "ladder.md", "ladder.html"}


def test_misuse_is_one_line(data, fitted, tmp_path, capsys):
    fit = ["fit", "--backbone", "resnet18", "--out", tmp_path, *SMALL]
    ladder = ["ladder", "--data", data, "--out", tmp_path, "--device", "cpu"]
    for words, message in (
        ([*fit, "--data", tmp_path / "none"], "holds no subfolders"),
        ([*fit, "--data", data, "--bank", "2"], "at least its 4 classes"),
        ([*fit, "--data", data, "--alpha", "2"], "alpha"),
        ([*ladder], "give --net"),
        ([*ladder, "--net", tmp_path / "none"], "none"),
        ([*ladder, "--net", fitted[0], "--eps", "0"], "--eps"),
        ([*ladder, "--net", fitted[0], "--eps", "4"], "such as 8/255, not 4"),
        ([*fit, "--data", data, "--eps", "4.0"], "such as 8/255, not 4.0"),
        ([*ladder, "--backbone", "resnet18", "--size", "32"], "was not trained for the 2 classes"),
        (["compare", "--out", tmp_path, "--images", "0"], "--images"),
    ):
        status, _, error = run(capsys, *words)
        assert status == 2, words
        assert message in error.splitlines()[-1]


def test_a_folder_in_use_is_left_alone(data, tmp_path, capsys):
    with locked(tmp_path, "--out"):
        status, _, error = run(capsys, "fit", "--backbone", "resnet18", "--data", data, "--out", tmp_path, *SMALL)
    assert status == 2
    assert "another run is at work" in error


def test_what_is_not_fetched_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path / "empty"))
    status, _, error = run(capsys, "compare", "--out", tmp_path / "out", "--device", "cpu")
    assert status == 2
    assert "run `aisec data fetch efficientnet-lite0`" in error.splitlines()[-1]
