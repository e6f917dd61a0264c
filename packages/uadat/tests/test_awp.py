import copy

import pytest
import torch
from networks import batch, parameters_gradient, staged

from uadat.awp import AWP
from uadat.baselines import TRADESLoss
from uadat.loss import UADLoss

LOSSES = [TRADESLoss(0.1, steps=2), UADLoss(0.1, "stage1", steps=2, warmup=0.0)]


@pytest.mark.parametrize("inner", LOSSES, ids=["trades", "uad"])
def test_it_is_the_loss_of_a_copy_with_moved_weights(inner):
    net, (images, labels) = staged(norm="batch").double(), batch(20)
    loss = AWP(copy.deepcopy(inner), gamma=0.05)
    views = loss.prepare(net, images.double(), labels, progress=1.0, generator=torch.Generator().manual_seed(0))
    state = copy.deepcopy(loss.state_dict())
    found = loss.on(copy.deepcopy(net), views)

    moved, plain = copy.deepcopy(net), copy.deepcopy(inner)
    plain.load_state_dict({name.removeprefix("loss."): value for name, value in state.items()})
    gradients = torch.autograd.grad(
        copy.deepcopy(plain).on(copy_ := copy.deepcopy(net), views).total, [*copy_.parameters()]
    )
    with torch.no_grad():
        for weight, gradient in zip(moved.parameters(), gradients, strict=True):
            if weight.ndim > 1:
                weight += 0.05 * weight.norm() * gradient / gradient.norm()
    expected = plain.on(moved, views)
    torch.testing.assert_close(found.total, expected.total)

    own = copy.deepcopy(net)
    torch.testing.assert_close(
        parameters_gradient(own, AWP(copy.deepcopy(inner), 0.05).on(own, views).total),
        parameters_gradient(moved, expected.total),
    )
    for name, value in plain.state_dict().items():  # averages: of one pass, at the moved weights
        torch.testing.assert_close(loss.state_dict()[f"loss.{name}"], value)


def test_weights_and_statistics_are_those_of_one_pass():
    net, (images, labels) = staged(norm="batch").train(), batch(20)
    before = {name: value.clone() for name, value in net.named_parameters()}
    AWP(TRADESLoss(0.1, steps=2), 0.05)(net, images, labels).total.backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())
    assert net.stage1[1].num_batches_tracked == 2  # x and x_a, once each


def test_the_perturbation_raises_the_loss():
    net, (images, labels) = staged().eval(), batch(20)
    loss = TRADESLoss(0.1, steps=2)
    views = loss.prepare(net, images, labels, progress=1.0, generator=None)
    assert AWP(loss, 0.02).on(net, views).total > loss.on(net, views).total


def test_gamma():
    with pytest.raises(ValueError, match="gamma must be positive"):
        AWP(TRADESLoss(0.1), 0.0)
