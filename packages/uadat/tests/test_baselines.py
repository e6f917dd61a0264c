import pytest
import torch
from networks import batch, parameters_gradient, staged
from torch.nn import functional as F

from uadat.baselines import ATLoss, MARTLoss, StandardLoss, TRADESLoss
from uadat.robust_loss import Views


@pytest.fixture
def case():
    net, (images, labels) = staged(norm="batch").double().train(), batch()
    images = images.double()
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    attacked = (images + 0.2 * noise - 0.1).clamp(0, 1)
    return net, Views(images=images, labels=labels, reference=images, adversarial=attacked)


def test_standard(case):
    net, views = case
    expected = F.cross_entropy(net(views.images), views.labels)
    torch.testing.assert_close(StandardLoss().on(net, views).total, expected)


def test_at(case):
    net, views = case
    expected = F.cross_entropy(net(views.adversarial), views.labels)
    torch.testing.assert_close(ATLoss(0.1).on(net, views).total, expected)


def test_trades(case):
    net, views = case
    clean, attacked = net(views.images), net(views.adversarial)
    p, q = clean.softmax(1), attacked.softmax(1)
    expected = F.cross_entropy(clean, views.labels) + 3 * (p * (p / q).log()).sum(1).mean()
    found = TRADESLoss(0.1, beta=3.0).on(net, views)
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(parameters_gradient(net, found.total), parameters_gradient(net, expected))


def test_mart_is_the_published_formula(case):
    net, views = case
    nat, adv = net(views.images).softmax(1), net(views.adversarial).softmax(1)
    rows = []
    for i, y in enumerate(views.labels.tolist()):
        wrong = max(adv[i, k] for k in range(4) if k != y)
        kl = sum(nat[i, k] * (nat[i, k] / adv[i, k]).log() for k in range(4))
        rows.append(-adv[i, y].log() - (1 - wrong).log() + 5 * kl * (1 - nat[i, y]))
    expected = torch.stack(rows).mean()
    found = MARTLoss(0.1, beta=5.0).on(net, views)
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(parameters_gradient(net, found.total), parameters_gradient(net, expected))


@pytest.mark.parametrize("loss", [ATLoss(0.1), TRADESLoss(0.1), MARTLoss(0.1)], ids=["at", "trades", "mart"])
def test_adversaries_are_in_the_ball_and_worse(loss, case):
    net, views = case
    found = loss.prepare(net, views.images, views.labels, progress=1.0, generator=torch.Generator().manual_seed(0))
    assert (found.adversarial - views.images).abs().max() <= 0.1 + 1e-9
    assert 0 <= found.adversarial.min() <= found.adversarial.max() <= 1
    net.eval()
    ce = [F.cross_entropy(net(x), views.labels) for x in (found.adversarial, views.images)]
    assert ce[0] > ce[1]
