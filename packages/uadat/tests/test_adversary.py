import torch
from networks import batch, staged
from torch.nn import functional as F

from uadat.adversary import draw_noise, kl_adversary, restyled, sampled_statistics
from uadat.statistics import instance_statistics


def clean_logits(net, images):
    with torch.no_grad():
        return net.eval()(images)


def test_the_attack_is_that_of_trades():
    """Against the published loop, from the same start."""
    net, (images, labels) = staged(), batch()
    logits = clean_logits(net, images)
    start = (images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    start = torch.min(torch.max(start, images - 0.1), images + 0.1)
    ours = kl_adversary(net, images, labels, logits, eps=0.1, steps=4, step_size=0.03, start=start)
    x = start
    for _ in range(4):
        x = x.detach().requires_grad_()
        loss = F.kl_div(F.log_softmax(net(x), 1), F.softmax(logits, 1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = torch.min(torch.max(x.detach() + 0.03 * gradient.sign(), images - 0.1), images + 0.1).clamp(0, 1)
    torch.testing.assert_close(ours, x, atol=1e-6, rtol=0)


def test_the_attack_raises_the_divergence_and_leaves_the_model():
    net, (images, labels) = staged(norm="batch"), batch()
    logits = clean_logits(net, images)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = kl_adversary(net, images, labels, logits, eps=0.1, generator=torch.Generator().manual_seed(0))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert (found - images).abs().max() <= 0.1 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    noise = (images + 0.1 * torch.randn(images.shape).sign()).clamp(0, 1)
    divergences = [
        F.kl_div(clean_logits(net, x).log_softmax(1), logits.softmax(1), reduction="batchmean") for x in (found, noise)
    ]
    assert divergences[0] > divergences[1]


def test_noise_comes_from_the_generator():
    features = torch.zeros(3, 5, 2, 2)
    first, again = (draw_noise(4, features, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == (4, 2, 3, 5)
    assert torch.equal(first, again)


def test_kappa_zero_changes_nothing():
    z = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    means, stds = instance_statistics(z)
    drawn = sampled_statistics(means, stds, torch.ones(3), torch.ones(3), draw_noise(2, z), 0.0)
    torch.testing.assert_close(restyled(z, means, stds, *drawn), z.repeat(2, 1, 1, 1), atol=1e-5, rtol=0)


def test_low_rank_draws_have_the_covariance_of_their_root():
    root = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
    means = torch.zeros(1, 3)
    noise = torch.randn(20000, 2, 1, 3, generator=torch.Generator().manual_seed(0))
    new, _ = sampled_statistics(means, torch.ones(1, 3), root, torch.ones(3), noise, 0.5)
    torch.testing.assert_close(new[:, 0].T.cov(), 0.25 * root.T @ root, atol=0.05, rtol=0)


def test_a_std_keeps_a_tenth_of_itself():
    means, stds = torch.zeros(1, 2), torch.tensor([[2.0, 3.0]])
    noise = torch.full((1, 2, 1, 2), -50.0)
    _, new = sampled_statistics(means, stds, torch.ones(2), torch.ones(2), noise, 1.0)
    torch.testing.assert_close(new[0], 0.1 * stds)
