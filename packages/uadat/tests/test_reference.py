import pytest
import torch
from networks import batch, staged
from torch.nn import functional as F

from uadat.adversary import kl_adversary
from uadat.reference import adversary_and_reference
from uadat.statistics import ClassGaussians, instance_statistics


@pytest.fixture(params=[False, True], ids=["ce only", "with the class's Gaussian"])
def case(request):
    net, (images, labels) = staged(norm="batch"), batch(40)
    net.eval()
    with torch.no_grad():
        logits = net(images)
        means = instance_statistics(net.stage1(images))[0]
    gaussians = None
    if request.param:
        gaussians = ClassGaussians()
        gaussians.update(means, labels, 4)
    net.train()
    return net, images, labels, logits, {"layer": "stage1", "gaussians": gaussians}


def refined(case, **options):
    net, images, labels, logits, more = case
    return adversary_and_reference(net, images, labels, logits, **{"eps": 0.1, "steps": 4, **more, **options})[1]


def test_bitwise_the_image_where_it_is_right(case):
    _, images, labels, logits, _ = case
    right = logits.argmax(1) == labels
    assert 0 < right.sum() < len(labels)
    found = refined(case)
    assert torch.equal(found[right], images[right])
    assert not torch.equal(found[~right], images[~right])


def test_in_the_ball_and_nearer_to_the_class(case):
    net, images, labels, logits, _ = case
    found = refined(case)
    assert (found - images).abs().max() <= 0.1 + 1e-6
    assert 0 <= found.min() <= found.max() <= 1
    with torch.no_grad():
        before, after = (F.cross_entropy(net.eval()(x), labels, reduction="none") for x in (images, found))
    assert (after <= before).all()
    assert (after < before)[logits.argmax(1) != labels].any()


def test_a_descent_that_raises_the_cross_entropy_is_undone(case):
    _, images, _, _, more = case
    if more["gaussians"] is None:
        pytest.skip("needs a pull elsewhere")
    more["gaussians"].first += 100.0  # all pull, away from the class
    found = refined(case, weight=1e6)
    kept = (found == images).flatten(1).all(1)
    with torch.no_grad():
        net, _, labels, _, _ = case
        before, after = (F.cross_entropy(net.eval()(x), labels, reduction="none") for x in (images, found))
    assert kept.any()
    assert (after <= before).all()


def test_the_pull_to_the_class_changes_the_way(case):
    _, _, _, _, more = case
    if more["gaussians"] is None:
        pytest.skip("no pull")
    assert not torch.equal(refined(case, weight=10.0), refined(case, weight=0.0))


def test_model_and_mode_stay(case):
    net = case[0]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    refined(case)
    assert net.training
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_both_are_what_they_are_alone(case, steps):
    """Against the attack by itself, and the descent of one image at a time."""
    net, images, labels, logits, more = case
    net, images, logits = net.double(), images.double(), logits.double()
    gaussians = more["gaussians"]
    if gaussians is not None:
        gaussians = ClassGaussians()
        gaussians.update(instance_statistics(net.stage1(images))[0], labels, 4)
    options = {"eps": 0.1, "steps": steps, "step_size": 0.04}
    adversarial, reference = adversary_and_reference(
        net,
        images,
        labels,
        logits,
        layer="stage1",
        gaussians=gaussians,
        weight=0.5,
        generator=torch.Generator().manual_seed(3),
        **options,
    )
    alone = kl_adversary(net, images, labels, logits, generator=torch.Generator().manual_seed(3), **options)
    torch.testing.assert_close(adversarial, alone)
    net.eval()
    for row in (logits.argmax(1) != labels).nonzero()[:, 0]:
        begin, label = images[row : row + 1], labels[row : row + 1]
        x = begin
        for _ in range(3):
            x = x.detach().requires_grad_()
            features = net.stage1(x)
            loss = F.cross_entropy(net.head(net.stage2(features).mean((2, 3))), label)
            if gaussians is not None:
                loss = loss + 0.5 * gaussians.distance_to(label)(features.mean((2, 3))).sum()
            (gradient,) = torch.autograd.grad(loss, x)
            x = torch.clamp(x.detach() - 0.1 / 3 * gradient.sign(), (begin - 0.1).clamp(min=0), begin + 0.1)
            x = x.clamp(max=1)
        better = F.cross_entropy(net(x), label) < F.cross_entropy(logits[row : row + 1], label)
        torch.testing.assert_close(reference[row : row + 1], x if better else begin)
