import torch
from networks import batch, staged

from uadat.baselines import ATLoss
from uadat.passes import counted


def test_rows_of_an_adversarial_step():
    net, (images, labels) = staged(), batch(8)
    with counted(net) as passes:
        ATLoss(0.1, steps=5)(net, images, labels).total.backward()
    assert (passes.forward, passes.backward) == (48, 48)
    net(images)
    assert passes.forward == 48


def test_no_gradient_no_backward():
    net, (images, _) = staged(), batch(8)
    with counted(net) as passes, torch.no_grad():
        net(images)
    assert (passes.forward, passes.backward) == (8, 0)
