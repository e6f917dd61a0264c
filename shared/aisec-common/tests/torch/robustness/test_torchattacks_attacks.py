from __future__ import annotations

import pytest
import torch
from aisec_common.seeding import torch_rng
from aisec_common.torch.robustness import apgd, autoattack, callable_attack, fab, pgd, square
from aisec_common.torch.robustness import torchattacks_attacks as module
from torch import Tensor, nn

from tests.torch.robustness.conftest import EPS, Noisy

RUNGS = [apgd("ce", 10), apgd("dlr", 10), apgd("targeted", 10), apgd("ce", 5, draws=4), fab(5), square(100)]


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1) == labels


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_in_the_ball_contained_and_strong(rung, plain, test_set, capsys):
    images, labels = test_set[0][:60], test_set[1][:60]
    plain.train()
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    state = torch.get_rng_state()
    found = rung.attack(plain, images, labels, EPS, torch_rng(0))
    again = rung.attack(plain, images, labels, EPS, torch_rng(0))
    assert plain.training
    plain.eval()
    assert torch.equal(found, again)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in plain.parameters())
    assert float((found - images).abs().max()) <= EPS + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    lost = right(plain, images, labels).sum() - right(plain, found, labels).sum()
    assert lost >= (2 if rung.kind == "gradient_free" else 10)
    assert capsys.readouterr().out == ""


def test_the_model_is_let_go(plain, test_set):
    made: list[nn.Module] = []
    original = module._StandIn

    class Spy(original):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_StandIn", Spy)
        apgd("ce", 1).attack(plain, test_set[0][:2], test_set[1][:2], EPS, torch_rng(0))
    assert made[0].run is None  # torchattacks keeps the stand-in itself in a list of its own


def test_draws_are_pooled_in_one_pass(plain, test_set):
    calls: list[int] = []
    model = Noisy(plain, 0.05)
    model.register_forward_hook(lambda part, inputs, output: calls.append(len(output)))
    apgd("ce", 3, draws=8).attack(model, test_set[0][:10], test_set[1][:10], EPS, torch_rng(0))
    assert set(calls) == {8, 80}  # one image to count classes, then all draws of all images


def test_apgd_of_a_random_model_returns_more_than_clean_images(plain, test_set):
    model = Noisy(plain, 0.05)
    images, labels = test_set[0][:50], test_set[1][:50]
    found = apgd("ce", 5, draws=4).attack(model, images, labels, EPS, torch_rng(0))
    assert ((found - images).abs().flatten(1).amax(1) > EPS / 2).all()


@pytest.mark.slow
def test_autoattack_breaks_at_least_what_its_parts_break(robust, test_set):
    images, labels = test_set[0][:40], test_set[1][:40]
    whole = right(robust, autoattack().attack(robust, images, labels, EPS, torch_rng(0)), labels)
    part = right(robust, apgd("ce").attack(robust, images, labels, EPS, torch_rng(0)), labels)
    assert whole.sum() <= part.sum()
    weak = right(robust, pgd(5).attack(robust, images, labels, EPS, torch_rng(0)), labels)
    assert whole.sum() <= weak.sum()
    model = Noisy(robust, 0.05)
    found = autoattack("rand").attack(model, images[:5], labels[:5], EPS, torch_rng(0))
    assert float((found - images[:5]).abs().max()) <= EPS + 1e-6


def test_an_autoattack_object_is_taken_as_it_is(plain, test_set):
    class Authors:
        epsilon = EPS
        seed = None

        def run_standard_evaluation(self, images: Tensor, labels: Tensor, bs: int) -> Tensor:
            print("initial accuracy")
            torch.manual_seed(self.seed)
            return (images + EPS * (2 * torch.rand_like(images) - 1)).clamp(0, 1)

    attack = Authors()
    rung = callable_attack("AA", "white_box", attack)
    state = torch.get_rng_state()
    found = rung.attack(plain, *test_set, EPS, torch_rng(0))
    assert torch.equal(state, torch.get_rng_state())
    assert 0 < float((found - test_set[0]).abs().max()) <= EPS + 1e-6
    with pytest.raises(ValueError, match=r"was made for 0\.1"):
        rung.attack(plain, *test_set, 0.2, torch_rng(0))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: apgd("hinge"), "objective must be one of"),
        (lambda: apgd("targeted", draws=4), "targeted APGD has no draws"),
        (lambda: autoattack("plus"), "version must be"),
    ],
)
def test_errors(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(("objective", "classes"), [("dlr", 2), ("targeted", 3)])
def test_too_few_classes_are_refused(objective, classes, test_set):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    with pytest.raises(ValueError, match=r"classes or more, not \d; use apgd\('ce'\)"):
        apgd(objective, 5).attack(net, test_set[0][:4], torch.zeros(4, dtype=torch.long), EPS, torch_rng(0))
