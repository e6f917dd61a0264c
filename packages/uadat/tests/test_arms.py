import pytest
import torch
from aisec_common.torch.robustness import standard_rungs

from uadat import arms
from uadat.arms import ARMS, chosen_beta, trained_model
from uadat.awp import AWP
from uadat.baselines import TRADESLoss
from uadat.digits import EPS, digits
from uadat.image_splits import as_tensors
from uadat.loss import UADLoss
from uadat.network import small_resnet

DATA = digits(0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path))


def test_each_ablation_switches_one_part_on():
    switched = {
        name: {part for part in ("samples", "refine", "stat", "iga") if ARMS[name].loss(6.0).settings[part]}
        for name in ("dist", "ref", "stat", "iga", "uad", "at_kl", "at_uad")
    }
    everything = {"samples", "refine", "stat", "iga"}
    assert switched == {
        "dist": {"samples"},
        "ref": {"refine"},
        "stat": {"stat"},
        "iga": {"iga"},
        "uad": everything,
        "at_kl": set(),
        "at_uad": everything,
    }


def test_every_arm_has_the_same_radius_and_takes_the_beta_of_the_grid():
    for name, arm in ARMS.items():
        loss = arm.loss(3.0)
        assert loss.eps == (None if name == "standard" else EPS)
        assert loss.settings.get("beta", 3.0) == 3.0
        assert ("beta" in loss.settings) == arm.aligned
    assert isinstance(ARMS["uad_awp"].loss(6.0).loss, UADLoss)
    assert isinstance(ARMS["trades_awp"].loss(6.0), AWP)


def test_the_switches_off_are_trades():
    """The ablation starts from the baseline itself: same adversary, same loss."""
    images, labels = as_tensors(DATA.train, 40)
    found = []
    for loss in (TRADESLoss(EPS, 6.0), arms._uad()(6.0)):
        generator = torch.Generator().manual_seed(0)
        found.append(loss(small_resnet(10, seed=0).train(), images, labels, generator=generator).total.item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_model_is_trained_once_and_its_control_from_another_seed():
    counted = []
    one = trained_model("trades", DATA, 0, epochs=1, progress=lambda *told: counted.append(told))
    two = trained_model("trades", DATA, 0, epochs=1, progress=lambda *told: counted.append(told))
    images = as_tensors(DATA.test, 20)[0]
    assert counted[-1] == ("epochs", 1, 1)
    assert len(counted) == 2
    assert torch.equal(one(images), two(images))
    assert not one.training
    other = trained_model("trades_reseeded", DATA, 0, epochs=1)
    assert not torch.equal(one.stage3.conv.weight, other.stage3.conv.weight)


def test_another_setting_trains_anew():
    models = [trained_model("trades", DATA, 0, epochs=1, beta=beta).stage3.conv.weight for beta in (6.0, 1.0)]
    assert not torch.equal(*models)


def test_beta_is_chosen_by_accuracy_under_attack(monkeypatch):
    """A stand-in for training: models that are right on a share of the validation images which beta decides."""

    class Knows(torch.nn.Module):
        def __init__(self, share):
            super().__init__()
            self.share = share

        def forward(self, images):
            return images.flatten(1)[:, :10] * 0 + torch.eye(10)[self.answers(images)]

        def answers(self, images):
            count = len(images)
            return torch.where(torch.arange(count) < self.share * count, as_tensors(DATA.validation)[1][:count], 0)

    shares = {2.0: 0.3, 4.0: 0.8, 6.0: 0.8, 9.0: 0.5}
    monkeypatch.setattr(arms, "trained_model", lambda *_, epochs, beta: Knows(shares[beta]))
    assert chosen_beta("trades", DATA, 0, epochs=1, betas=tuple(shares)) == 4.0
    assert chosen_beta("at", DATA, 0, epochs=1, betas=tuple(shares)) == 2.0


def test_the_rungs_of_the_study_are_there():
    assert {"PGD-20", "APGD-CE", "APGD-T"} <= {rung.name for rung in standard_rungs("quick")}
