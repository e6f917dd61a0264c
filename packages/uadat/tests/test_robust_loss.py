import copy

import pytest
import torch
from networks import batch, staged

from uadat.awp import AWP
from uadat.baselines import ATLoss, MARTLoss, StandardLoss, TRADESLoss
from uadat.loss import UADLoss
from uadat.robust_loss import LossParts, check_radius

LOSSES = [
    StandardLoss(),
    ATLoss(0.1, steps=2),
    TRADESLoss(0.1, steps=2),
    MARTLoss(0.1, steps=2),
    UADLoss(0.1, "stage1", steps=2),
    AWP(TRADESLoss(0.1, steps=2)),
]
every = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


@every
def test_one_signature_for_all(loss):
    images, labels = batch()
    totals = []
    for _ in range(2):
        net, again = staged(norm="batch").train(), copy.deepcopy(loss)
        found = again(net, images, labels, progress=0.5, generator=torch.Generator().manual_seed(0))
        totals.append(found.parts["total"])
    assert totals[0] == totals[1] == found.total.item()
    found.total.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())


@every
def test_preparing_leaves_the_model_as_it_was(loss):
    net, (images, labels) = staged(norm="batch"), batch()
    net.train()
    net.stage1.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    loss.prepare(net, images, labels, progress=1.0, generator=None)
    with pytest.raises((ValueError, TypeError)):
        loss.prepare(net, images + 9, labels, progress=1.0, generator=None)
    assert net.training
    assert net.stage2.training
    assert not net.stage1.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())


@every
def test_bad_images_and_labels(loss):
    net, (images, labels) = staged(), batch()
    for bad in (images * 255, images - 1, images * torch.nan):
        with pytest.raises(ValueError, match="images must"):
            loss(net, bad, labels)
    for bad in (labels + 4, labels - 4):
        with pytest.raises(ValueError, match="labels must"):
            loss(net, images, bad)


class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = staged(norm="batch")
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 3:
            raise RuntimeError("broke")
        return self.net(x)


def test_the_mode_comes_back_from_an_exception():
    net, (images, labels) = Broken().train(), batch()
    with pytest.raises(RuntimeError, match="broke"):
        UADLoss(0.1, "net.stage1")(net, images, labels)
    assert all(part.training for part in net.modules())
    assert all(weight.requires_grad for weight in net.parameters())


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), float("inf")])
def test_radius(eps):
    with pytest.raises(ValueError, match="eps must be positive"):
        check_radius(eps)


def test_parts_are_numbers():
    found = LossParts.of(torch.tensor(3.0, requires_grad=True), {"a": torch.tensor(1.0)}, {"b": 2.0})
    assert found.parts == {"total": 3.0, "a": 1.0, "b": 2.0}
