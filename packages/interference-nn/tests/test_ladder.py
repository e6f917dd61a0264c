import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from aisec_common.torch.robustness.result import WORST
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from interference_nn import InterferenceNet, ProceduralBackgrounds, ladder
from interference_nn.baselines import fit_baseline
from interference_nn.digits import load_digits
from interference_nn.ladder import gathered
from interference_nn.ladder_report import R0
from interference_nn.network import Classifier, conv_backbone
from interference_nn.rungs import NAMES, Effort
from interference_nn.training import Recipe

EPS = 0.1
TINY = Effort(
    transfer_steps=3,
    average_steps=3,
    eot_steps=3,
    draws=2,
    restarts=1,
    apgd_steps=4,
    apgd_draws=2,
    square_queries=5,
    decision_queries=100,
)


@pytest.fixture(scope="session")
def digits():
    return load_digits(0)


@pytest.fixture(scope="session")
def robust(digits):
    """A small classifier, trained adversarially for a few seconds."""
    torch.manual_seed(0)
    model = Classifier(conv_backbone(width=16), 64, 10)
    loader = DataLoader(TensorDataset(digits.train_images, digits.train_labels), batch_size=128, shuffle=True)
    recipe = Recipe(epochs=6, lr=1e-2, optimizer="adamw", schedule="onecycle")
    fit_baseline(model, loader, "fast", recipe, eps=EPS)
    return model


@pytest.fixture(scope="session")
def some(digits):
    return digits.test_images[:12], digits.test_labels[:12]


@pytest.fixture(scope="session")
def net(robust):
    bank = ProceduralBackgrounds(n=8, classes=4, size=8, channels=1)
    net = InterferenceNet.from_backbone(robust.backbone, classes=10, bank=bank, alpha=0.1, draws=2)
    with torch.no_grad():
        net.target_head.weight.copy_(robust.head.weight)
        net.target_head.bias.copy_(robust.head.bias)
    return net.eval()


@pytest.fixture(scope="session")
def report(net, robust, some):
    return ladder(net, some, eps=[0.05, 0.2], baselines={"plain": robust}, effort=TINY, probes=4)


def test_all_rungs_are_climbed_by_both(report):
    assert report.climbed() == (R0, *NAMES, "noise", WORST)
    assert report.climbed("plain") == (R0, "R1", *NAMES[2:], "noise", WORST)
    assert "no interference" in report.left_out["plain"]["R2"]
    table = report.table()
    assert list(table["model"]) == ["interference"] * 2 + ["plain"] * 2
    assert table.loc[table["model"] == "plain", "R2"].isna().all()
    assert (table["forward"] > table["backward"]).all()


def test_attacks_stay_in_the_ball_and_the_worst_case_is_below_each_rung(report):
    """Acceptance row 7."""
    for model, each in report.reports.items():
        distances = each.samples.groupby("eps")["distance"].max()
        assert all(distance <= eps + 1e-6 for eps, distance in distances.items())
        for eps in report.eps:
            for rung in report.climbed(model):
                assert report.worst_case(eps, model) <= report.accuracy(rung, eps, model)


def test_the_worst_case_is_taken_image_by_image(report):
    names = [rung.name for rung in report.reports["interference"].rungs]
    samples = report.reports["interference"].samples
    at = samples[(samples["eps"] == 0.2) & samples["rung"].isin(names)]
    assert report.worst_case(0.2) == at.groupby("id")["right"].all().mean()


def test_at_radius_zero_every_rung_shows_clean_accuracy(net, some):
    """Acceptance row 7."""
    report = ladder(net, some, eps=0.0, effort=TINY, probes=0, surrogates={"plain": net.without_interference})
    assert {report.accuracy(rung) for rung in report.climbed()} == {report.accuracy(R0)}


def test_over_claim_is_what_the_weakest_rung_promises_too_much(report):
    assert report.over_claim(0.2) == pytest.approx(report.accuracy("R1", 0.2) - report.worst_case(0.2))


class Loud(nn.Module):
    """Logits times 1e4: the softmax saturates, and the gradient is gone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return 1e4 * self.model(images)


class Rounded(Loud):
    def forward(self, images):
        return self.model((images * 16).round() / 16)


@pytest.mark.parametrize("planted", [Loud, Rounded])
def test_a_planted_mask_is_flagged(planted, robust, digits):
    """Acceptance row 8."""
    data = digits.test_images[:60], digits.test_labels[:60]
    report = ladder(planted(robust), data, eps=EPS, effort=Effort(rungs=("R3",)), probes=60)
    assert "F6" in {flag.code for flag in report.reports["interference"].flags}
    assert report.verdict == "undecided"
    assert "masking suspected (interference F" in report.reason


def test_an_adversarially_trained_model_is_not_flagged(robust, digits):
    """Acceptance row 8."""
    data = digits.test_images[:60], digits.test_labels[:60]
    effort = Effort(rungs=("R3", "R5", "R6"), eot_steps=20, restarts=1, apgd_steps=20)
    report = ladder(robust, data, eps=EPS, effort=effort, probes=60)
    assert report.reports["interference"].flags == ()
    assert report.worst_case() > 0.4


def test_a_keyed_network_is_climbed_with_and_without_the_key(net, some):
    keyed = net.variant(mode="keyed", key=b"secret")
    report = ladder(keyed, some, eps=0.2, effort=Effort(rungs=("R3", "R4"), average_steps=3), probes=0)
    assert list(report.reports) == ["interference", "interference key secret"]
    assert report.compared_with is None
    assert report.accuracy(R0) == report.accuracy(R0, model="interference key secret")


def test_the_draws_are_random_and_the_seed_decides(net, some):
    effort = Effort(rungs=("R4",), average_steps=2)
    blurred = net.variant(alpha=0.8)  # far from what it was trained for, so that draws decide
    one, two, other = (
        ladder(blurred, some, eps=0.1, effort=effort, probes=0, seed=seed).reports["interference"] for seed in (0, 0, 1)
    )
    assert one.samples.equals(two.samples)
    assert not one.samples.equals(other.samples)


def test_batches_of_a_loader_are_one_set():
    images, labels = torch.rand(5, 1, 2, 2), torch.arange(5)
    found = gathered(DataLoader(TensorDataset(images, labels), batch_size=2))
    assert torch.equal(found[0], images)
    assert torch.equal(found[1], labels)
    with pytest.raises(TypeError, match="pairs"):
        gathered([(images, labels, labels)])


def test_names_are_checked(net, some):
    with pytest.raises(ValueError, match="control"):
        ladder(net, some, eps=0.1, control="noise")
    with pytest.raises(ValueError, match="interference"):
        ladder(net, some, eps=0.1, baselines={"interference": net})


SCRIPT = """
import sys, torch
from interference_nn import ladder
from interference_nn.network import Classifier, conv_backbone
from interference_nn.rungs import Effort
torch.manual_seed(0)
model = Classifier(conv_backbone(width=8), 32, 10).eval()
rng = torch.Generator().manual_seed(0)
data = torch.rand(60, 1, 8, 8, generator=rng), torch.arange(60) % 10
data = data[0], model(data[0]).argmax(1)
steps = Effort(rungs=("R3", "R4", "R5"), average_steps=200, eot_steps=100)
report = ladder(model, data, eps=0.02, effort=steps, batch_size=4, probes=0, folder=sys.argv[1])
print(report.reports["interference"].samples.to_csv())
"""


@pytest.mark.slow
def test_a_killed_ladder_goes_on_to_the_same_numbers(tmp_path):
    def start(folder):
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True)

    whole = start(tmp_path / "whole").communicate(timeout=300)[0]
    samples = tmp_path / "killed" / "interference" / "samples.jsonl"
    process = start(tmp_path / "killed")
    while process.poll() is None and not (samples.exists() and samples.stat().st_size > 8000):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = samples.stat().st_size
    assert start(tmp_path / "killed").communicate(timeout=300)[0] == whole
    assert samples.stat().st_size > kept
