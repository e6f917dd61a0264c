import pytest
import torch
from aisec_common.seeding import torch_rng
from aisec_common.torch.linf_pgd import linf_pgd
from aisec_common.torch.robustness import Rung, callable_attack
from torch import nn

from uadat.baselines import TRADESLoss
from uadat.digits import EPS, digits
from uadat.hf_trainer import RobustTrainer
from uadat.image_splits import as_tensors, loader
from uadat.network import small_resnet
from uadat.report import repeated, robust_report, stacked

DATA = digits(0)
TEST = as_tensors(DATA.test, 100)


@pytest.fixture(scope="module")
def trades():
    model = small_resnet(10, seed=0)
    trainer = RobustTrainer(
        model, TRADESLoss(EPS, steps=5), epochs=10, optimizer={"lr": 0.1}, schedule="onecycle", device="cpu"
    )
    trainer.fit(loader(DATA.train, 100, shuffle_seed=0))
    return model.eval()


class Sharp(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return 1e4 * self.model(images)


class Quantised(Sharp):
    def forward(self, images):
        return self.model((images * 8).round() / 8)


def test_passes_an_adversarially_trained_model_and_goes_on_from_its_samples(trades, tmp_path):
    report = robust_report(trades, TEST, EPS, attacks="quick", folder=tmp_path)
    assert report.passes == 1
    assert report.flags == ()
    report.raise_if_masked()
    assert report.accuracy("clean") > 0.8
    assert 0.05 < report.worst_case() <= min(report.accuracy(rung.name) for rung in report.rungs)
    asked = []
    again = robust_report(
        trades, TEST, EPS, attacks="quick", folder=tmp_path, progress=lambda what, done, total: asked.append(what)
    )
    assert again.samples.equals(report.samples)
    with pytest.raises(ValueError, match="another folder"):
        robust_report(trades, TEST, EPS, attacks="quick", seeds=2, folder=tmp_path)


@pytest.mark.parametrize("mask", [Sharp, Quantised])
def test_flags_a_masked_model(trades, mask):
    report = robust_report(mask(trades), (TEST[0][:50], TEST[1][:50]), EPS, attacks="quick")
    assert "F6" in {flag.code for flag in report.flags}
    assert report.verdict == "undecided (masking suspected)"
    with pytest.raises(ValueError, match="masking"):
        report.raise_if_masked()


def test_a_loader_gives_what_its_tensors_give():
    images, labels = stacked(loader(torch.utils.data.Subset(DATA.test, range(30)), 7))
    assert torch.equal(images, TEST[0][:30])
    assert torch.equal(labels, TEST[1][:30])
    assert stacked(TEST)[0] is TEST[0]


def test_another_run_of_an_attack_can_only_break_more(trades):
    def attack(model, images, labels, eps, generator):
        return linf_pgd(model, images, labels, eps=eps, steps=2, generator=generator)

    rung = Rung(name="weak", kind="white_box", attack=attack)
    broken = []
    for times in (1, 4):
        found = repeated(rung, times).attack(trades, *TEST, EPS, torch_rng(0, "attack"))
        assert (found - TEST[0]).abs().max() <= EPS + 1e-6
        with torch.no_grad():
            broken.append(trades(found).argmax(1) != TEST[1])
    assert (broken[1] | ~broken[0]).all()
    assert broken[1].sum() > broken[0].sum()
    assert repeated(rung, 1) is rung


def test_a_transfer_rung_joins_where_a_surrogate_is_given(trades):
    few = TEST[0][:20], TEST[1][:20]
    report = robust_report(trades, few, EPS, attacks="quick", surrogate=small_resnet(10, seed=1))
    assert "transfer" in [rung.name for rung in report.rungs]
    assert len(report.about["surrogate"]) == 12


class Noisy(Sharp):
    """Random, and says so; `once` is what a call averages."""

    random = True

    def once(self, images):
        return self.model((images + 0.3 * torch.rand_like(images)).clamp(0, 1))

    def forward(self, images):
        return torch.stack([self.once(images).softmax(1) for _ in range(4)]).mean(0).log()


def test_a_random_model_is_attacked_through_its_average_and_scored_often(trades):
    few = TEST[0][:20], TEST[1][:20]
    report = robust_report(Noisy(trades), few, EPS, attacks="quick")
    assert {rung.name for rung in report.rungs if rung.kind == "adaptive"} == {
        "EOT-PGD-20",
        "EOT-APGD-CE",
        "EOT-APGD-DLR",
    }
    assert report.passes == 10
    shares = report.samples["mean"]
    assert ((shares > 0) & (shares < 1)).any()
    assert not report.samples[shares < 1]["right"].any()  # wrong once in ten passes is wrong
    with pytest.raises(ValueError, match="seeds must be 1 for a random model"):
        robust_report(Noisy(trades), few, EPS, attacks="quick", seeds=2)


def test_a_further_attack_counts_in_the_worst_case(trades):
    """AutoAttack of its authors comes as an object; this one breaks all images but the first."""

    class Object:
        epsilon = EPS

        def run_standard_evaluation(self, images, labels, bs):
            self.images = len(images)
            attacked = linf_pgd(trades, images, labels, eps=EPS, steps=50, early_stop=False)
            return torch.cat([images[:1], attacked[1:]])

    few = TEST[0][:20], TEST[1][:20]
    made = Object()
    rung = callable_attack("AutoAttack", "white_box", made)
    report = robust_report(trades, few, EPS, attacks="quick", extra_rungs=[rung])
    assert [each.name for each in report.rungs][-1] == "AutoAttack"
    assert made.images == round(report.accuracy("clean") * 20)
    assert report.right("AutoAttack", EPS).any()
    assert report.worst_case() <= report.accuracy("AutoAttack")
    with pytest.raises(ValueError, match="distinct names"):
        robust_report(trades, few, EPS, attacks="quick", extra_rungs=[rung, rung])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stacked([]), "no image"),
        (lambda: stacked([1, 2]), "pairs"),
        (lambda: robust_report(small_resnet(10, seed=0), TEST, EPS, seeds=0), "seeds"),
        (lambda: robust_report(small_resnet(10, seed=0), TEST, 0.0), "eps"),
        (lambda: robust_report(small_resnet(10, seed=0), (TEST[0] * 255, TEST[1]), EPS), r"\[0, 1\]"),
        (lambda: robust_report(small_resnet(10, seed=0), (TEST[0], TEST[1] + 5), EPS), "labels"),
    ],
)
def test_misuse(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
