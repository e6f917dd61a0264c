from dataclasses import replace

import pytest
import torch
from networks import batch, parameters_gradient, staged

from uadat.loss import UADLoss
from uadat.split import split_pass
from uadat.statistics import instance_statistics

OFF = {"samples": 0, "refine": False, "stat": 0.0, "iga": 0.0}


def loss(**options):
    return UADLoss(**{"eps": 0.1, "layer": "stage1", "steps": 2, "warmup": 0.0, **options})


def prepared(found, net, rows=20):
    images, labels = batch(rows)
    return found.prepare(net, images, labels, progress=1.0, generator=torch.Generator().manual_seed(0))


def test_the_terms_add_up():
    net = staged()
    for base, beta in (("trades", 6.0), ("at", 4.0)):
        parts = loss(base=base, stat=3.0, iga=0.5)(net, *batch(20)).parts
        total = parts["ce"] + beta * parts["align"] + 3 * parts["stat"] + 0.5 * parts["iga"]
        assert parts["total"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    "on", [{"samples": 2}, {"refine": True}, {"stat": 1.0}, {"iga": 1.0}, {"iga": 1.0, "iga_mode": "indirect"}]
)
def test_every_component_is_a_switch(on):
    net = staged()
    whole = loss(**{**OFF, **on})
    bare = loss(**OFF)
    views = prepared(whole, net)
    assert torch.equal(prepared(bare, net).adversarial, views.adversarial)
    found, plain = whole.on(net, views), bare.on(net, prepared(bare, net))
    assert not torch.allclose(parameters_gradient(net, found.total), parameters_gradient(net, plain.total), rtol=1e-3)


def test_base_at_takes_the_cross_entropy_at_the_adversary():
    net = staged()
    at, trades = loss(base="at", **OFF), loss(**OFF)
    views = prepared(at, net)
    for found, images in ((at, views.adversarial), (trades, views.images)):
        expected = torch.nn.functional.cross_entropy(net(images), views.labels).item()
        assert found.on(net, views).parts["ce"] == pytest.approx(expected, rel=1e-6)


def test_draws_go_through_the_rest_of_the_model():
    """L_align against one pass for each draw, features replaced by hand."""
    net, found = staged(norm="group"), loss(refine=False, iga=0.0, stat=0.0, samples=3)
    views = prepared(found, net)
    parts = found.on(net, views).parts
    z = net.stage1(views.adversarial)
    means, stds = instance_statistics(z)
    s_mu, s_s = (values.var(0).add(1e-6).sqrt() for values in (means, stds))
    reference = net(views.images).softmax(1)
    total = 0.0
    for m in range(-1, 3):
        changed = z
        if m >= 0:
            new_mean = means + 0.5 * views.noise[m, 0] * s_mu
            new_std = torch.maximum(stds + 0.5 * views.noise[m, 1] * s_s, 0.1 * stds)
            changed = (z - means[..., None, None]) / stds[..., None, None] * new_std[..., None, None]
            changed = changed + new_mean[..., None, None]
        logits = net.head(net.stage2(changed).mean((2, 3)))
        total += (reference * (reference.log() - logits.log_softmax(1))).sum(1).mean().item()
    assert parts["align"] == pytest.approx(total / 4, rel=1e-4)


def test_draws_change_neither_logits_nor_input_gradients_at_the_adversary():
    net, found = staged(norm="batch").train(), loss(refine=False)
    views = prepared(found, net)
    with_draws, without = (found.on(net, replace(views, noise=noise)).parts for noise in (views.noise, None))
    assert with_draws["iga"] == without["iga"] > 0
    assert with_draws["stat"] == without["stat"]
    assert with_draws["align"] != without["align"]


def test_references_wait_for_the_warm_up():
    net, (images, labels) = staged(), batch(20)
    found = loss(warmup=0.2)
    early = found.prepare(net, images, labels, progress=0.19)
    late = found.prepare(net, images, labels, progress=0.2)
    assert torch.equal(early.reference, images)
    assert early.shares["refined"] == 0 < late.shares["refined"]


def test_the_class_gaussians_see_the_correct_clean_images():
    net, (images, labels) = staged(norm="batch"), batch(20)
    found = loss()
    found.prepare(net, images, labels)
    net.eval()
    seen = []
    logits = split_pass(net, net, "stage1", images, lambda z: seen.append(z) or z)
    right = logits.argmax(1) == labels
    means = instance_statistics(seen[0])[0]
    for label in labels[right].unique():
        torch.testing.assert_close(found.gaussians.first[label], means[right & (labels == label)].mean(0))
    assert found.gaussians.seen.sum() == right.sum()


def test_a_batch_without_a_correct_image():
    net, (images, _) = staged(norm="batch").train(), batch(20)
    with torch.no_grad():
        labels = (net.eval()(images).argmax(1) + 1) % 4
    found = loss()
    assert found(net.train(), images, labels).total.isfinite()
    assert not found.gaussians.seen.any()


@pytest.mark.parametrize("layer", ["stage1", "stage2", "input"])
@pytest.mark.parametrize("cov", ["diag", "lowrank"])
def test_layers_and_covariances(layer, cov):
    net = staged(norm="batch").train()
    found = loss(layer=layer, cov=cov, iga_metric="l2")(net, *batch(20))
    found.total.backward()
    assert all(weight.grad.isfinite().all() for weight in net.parameters())


def test_state_is_saved_and_continued():
    net, (images, labels) = staged(), batch(12)
    first = loss()
    for _ in range(3):
        first(net, images, labels)
    again = loss()
    again.load_state_dict(first.state_dict())
    results = [each(net, images, labels, generator=torch.Generator().manual_seed(7)).parts for each in (first, again)]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "eps must be positive"),
        ({"iga_metric": "dot"}, "iga_metric must be one of cos, l2"),
        ({"iga_mode": "fast"}, "iga_mode must be one of exact, indirect"),
        ({"base": "mart"}, "base must be one of trades, at"),
        ({"start": "zero"}, "start must be one of uniform, normal"),
        ({"cov": "full"}, "cov must be"),
        ({"samples": -1}, "samples must not be negative"),
        ({"kappa": float("nan")}, "kappa must not be negative"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"warmup": 2.0}, r"warmup in \[0, 1\]"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        loss(**options)


def test_unknown_layer():
    with pytest.raises(ValueError, match="'layer2' is not in the model; it has stage1, stage2, head"):
        loss(layer="layer2")(staged(), *batch())


def test_a_batch_of_one():
    net, (images, labels) = staged(), batch(8)
    found = loss()
    with pytest.raises(ValueError, match="images must be a batch of at least 2"):
        found(net, images[:1], labels[:1])
    found(net, images, labels)
    assert found(net, images[:1], labels[:1]).total.isfinite()


def test_settings_make_it_again():
    assert UADLoss(**loss(kappa=0.3, cov="lowrank").settings).settings == loss(kappa=0.3, cov="lowrank").settings
