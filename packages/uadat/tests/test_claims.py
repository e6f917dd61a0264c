"""The acceptance checks of the method, each against an independent reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aisec_common.torch.folded_norms import FoldedNorms
from aisec_common.torch.linf_pgd import linf_pgd
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import batch, parameters_gradient, staged
from torch import nn
from torch.nn import functional as F

from uadat.adversary import draw_noise, restyled, sampled_statistics
from uadat.gradient_alignment import cosine_misalignment, input_gradients
from uadat.loss import UADLoss
from uadat.network import small_resnet
from uadat.statistics import BatchUncertainty, instance_statistics
from uadat.timm_classifier import timm_classifier
from uadat.torchvision_resnet import SmallImageResNet18
from uadat.wide_resnet import WideResNet

OFF = {"samples": 0, "refine": False, "stat": 0.0, "iga": 0.0}
SEEDS = st.integers(0, 10**6)


@given(SEEDS, st.floats(0, 10))
@settings(max_examples=10)
def test_everything_off_is_trades(seed, beta):
    """Row 1, on fixed x_a: the published two lines, loss and gradients."""
    net, (images, labels) = staged(seed=seed, norm="batch").train(), batch(12, seed=seed)
    loss = UADLoss(0.1, "stage1", beta=beta, steps=2, **OFF)
    views = loss.prepare(net, images, labels, generator=torch.Generator().manual_seed(seed))
    clean = net(images)
    divergence = F.kl_div(F.log_softmax(net(views.adversarial), 1), F.softmax(clean, 1), reduction="batchmean")
    trades = F.cross_entropy(clean, labels) + beta * divergence
    found = loss.on(net, views).total
    torch.testing.assert_close(found, trades, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(parameters_gradient(net, found), parameters_gradient(net, trades), atol=1e-6, rtol=1e-5)


def test_without_uncertainty_the_draws_are_the_adversary():
    """Row 2."""
    net, (images, labels) = staged().eval(), batch(20)
    still = UADLoss(0.1, "stage1", kappa=0.0, samples=3, refine=False, stat=0.0, iga=0.0, steps=2)
    views = still.prepare(net, images, labels, generator=torch.Generator().manual_seed(0))
    plain = UADLoss(0.1, "stage1", **OFF).on(net, views)
    assert still.on(net, views).parts["align"] == pytest.approx(plain.parts["align"], rel=1e-4, abs=1e-7)


def test_sampled_statistics_have_their_mean_and_spread():
    """Row 3: 10,000 draws of every instance, and what the restyled features then have."""
    z = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[:, 2] = 1.5  # a constant channel
    means, stds = instance_statistics(z)
    root, of_stds = BatchUncertainty()(means, stds)
    kappa, draws = 0.4, 10_000
    new_means, new_stds = sampled_statistics(
        means, stds, root, of_stds, draw_noise(draws, z, torch.Generator().manual_seed(1)), kappa
    )
    error = kappa * root / np.sqrt(draws)
    assert ((new_means.mean(0) - means).abs() <= 4 * error).all()  # 18 comparisons: three would fail one run in 20
    spread = new_means.std(0)
    assert ((spread - kappa * root).abs() <= 4 * kappa * root / np.sqrt(2 * draws)).all()
    some = slice(0, 50)
    changed = restyled(z, means, stds, new_means[some], new_stds[some]).unflatten(0, (50, 6))
    assert changed.isfinite().all()
    torch.testing.assert_close(changed.mean((3, 4)), new_means[some])
    variance = z.var((2, 3), correction=0)
    expected = new_stds[some] * (variance / (variance + 1e-5)).sqrt()
    torch.testing.assert_close(changed.std((3, 4), correction=0), expected, atol=1e-9, rtol=1e-7)


@given(SEEDS, st.sampled_from([0.02, 0.1, 0.3]))
@settings(max_examples=10)
def test_adversary_and_reference_stay_in_the_ball(seed, eps):
    """Row 4."""
    net, (images, labels) = staged(seed=seed, norm="batch").train(), batch(20, seed=seed)
    images = images.round(decimals=1)  # some at 0 and 1
    loss = UADLoss(eps, "stage1", steps=3, warmup=0.0)
    views = loss.prepare(net, images, labels, generator=torch.Generator().manual_seed(seed))
    net.eval()
    with torch.no_grad():
        right = net(images).argmax(1) == labels
        before, after = (F.cross_entropy(net(x), labels, reduction="none") for x in (images, views.reference))
    for found in (views.adversarial, views.reference):
        assert (found - images).abs().max() <= eps + 1e-6
        assert 0 <= found.min() <= found.max() <= 1
    assert torch.equal(views.reference[right], images[right])
    assert (after <= before + 1e-6).all()


@given(SEEDS)
@settings(max_examples=20)
def test_a_linear_model_of_two_classes_is_aligned(seed):
    """Row 5: its input gradients all point along the difference of the weights."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    nn.init.normal_(net[1].weight, std=0.1, generator=generator)
    reference, adversarial = torch.rand(2, 12, 1, 6, 6, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(0, 2, (12,), generator=generator)
    assert net(reference).abs().max() < 5
    gradients = [input_gradients(net(x), labels, x) for x in (reference, adversarial)]
    found, dead = cosine_misalignment(*gradients)
    assert found.item() == pytest.approx(0, abs=1e-9)
    assert dead == 0
    scaled = cosine_misalignment(*(7 * gradient for gradient in gradients))[0]
    assert scaled.item() == pytest.approx(0, abs=1e-9)


def test_the_exact_gradient_of_alignment_is_that_of_finite_differences():
    """Row 6: on a softplus net, weight by weight."""
    net, (images, labels) = staged(activation=nn.Softplus, norm="none").double(), batch(5)
    loss = UADLoss(0.1, "stage1", beta=0.0, samples=0, refine=False, stat=0.0, iga=1.0, steps=2)
    views = loss.prepare(net, images.double(), labels, generator=torch.Generator().manual_seed(0))

    def value():
        result = loss.on(net, views)
        return result.total - F.cross_entropy(net(views.images), views.labels)

    for weight in (net.stage1[0].weight, net.stage2[0].weight, net.head.weight):
        (gradient,) = torch.autograd.grad(value(), weight)
        for index in range(0, weight.numel(), max(1, weight.numel() // 5)):
            with torch.no_grad():
                flat, step = weight.view(-1), 1e-5
                kept = flat[index].item()
            ends = []
            for moved in (kept + step, kept - step):
                with torch.no_grad():
                    flat[index] = moved
                ends.append(value().item())
            with torch.no_grad():
                flat[index] = kept
            slope = (ends[0] - ends[1]) / (2 * step)
            assert gradient.view(-1)[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_the_indirect_form_follows_the_exact_one_as_the_line_shortens():
    """Along a short line the loss is straight: both slopes are one, and the indirect form vanishes with its square."""
    net, (images, labels) = staged(activation=nn.Softplus, norm="none").double(), batch(8)
    values = []
    for eps in (0.08, 0.04):
        loss = UADLoss(eps, "stage1", samples=0, refine=False, stat=0.0, iga=1.0, iga_mode="indirect", steps=5)
        views = loss.prepare(net, images.double(), labels, generator=torch.Generator().manual_seed(0))
        line = views.adversarial - views.images
        moved = [F.cross_entropy(net(views.images + t * line), labels, reduction="none") for t in (0, 0.5, 1)]
        first, second = moved[1] - moved[0], moved[2] - moved[1]
        by_hand = (1 - 2 * first * second / (first**2 + second**2)).mean().item()
        values.append(loss.on(net, views).parts["iga"])
        assert values[-1] == pytest.approx(by_hand, rel=1e-5)
        assert 0 <= values[-1] <= 2


@pytest.mark.parametrize("own_start", [False, True], ids=["from the image", "from one random start"])
def test_our_attack_is_torchattacks(own_start):
    """Row 9: accuracy under PGD of equal radius, steps, step size and starts within a point."""
    torchattacks = pytest.importorskip("torchattacks")
    net, (images, _) = staged().eval(), batch(200)
    with torch.no_grad():
        labels = net(images).argmax(1)
    begin = images
    if own_start:
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) * 0.04 - 0.02
        begin = (images + noise).clamp(0, 1)
    eps, size, steps = 0.02, 0.006, 10
    attack = torchattacks.PGD(net, eps=eps, alpha=size, steps=steps, random_start=False)
    if own_start:
        # the library offers no start: its random one is replaced by ours through the generator it draws from
        attack.random_start = True
        drawn = begin - images
        original = torch.Tensor.uniform_
        try:
            torch.Tensor.uniform_ = lambda self, *_: self.copy_(drawn)
            theirs = attack(images, labels)
        finally:
            torch.Tensor.uniform_ = original
    else:
        theirs = attack(images, labels)
    ours = linf_pgd(net, images, labels, eps=eps, steps=steps, step_size=size, start=begin)
    with torch.no_grad():
        rates = [(net(x).argmax(1) == labels).float().mean().item() for x in (ours, theirs)]
    assert rates[0] < 1
    assert abs(rates[0] - rates[1]) <= 0.01


FOLDED = {
    "small resnet": (lambda: small_resnet(10, seed=0), 1, 5),
    "wide resnet": (lambda: WideResNet(10, depth=10, width=1), 3, 3),
    "resnet-18": (lambda: SmallImageResNet18(10), 3, 20),
    "efficientnet": (lambda: timm_classifier("tf_efficientnet_lite0", 10), 3, 49),
}


@pytest.mark.parametrize(("make", "channels", "folds"), FOLDED.values(), ids=FOLDED)
def test_the_networks_fold_in_attacks_and_compute_the_same(make, channels, folds):
    net = make().double().eval().requires_grad_(False)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.running_mean, part.running_var, part.weight, part.bias):
                values.uniform_(0.5, 1.5)
    folded = FoldedNorms()
    for _ in range(2):
        x = torch.rand(2, channels, 16, 16, dtype=torch.double, requires_grad=True)
        with folded:
            logits = net(x)
        gradient, expected = (torch.autograd.grad(out.square().sum(), x)[0] for out in (logits, net(x)))
        torch.testing.assert_close(logits, net(x))
        torch.testing.assert_close(gradient, expected)
    assert len(folded) == folds
