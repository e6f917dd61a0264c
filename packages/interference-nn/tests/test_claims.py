"""The acceptance checks of the method: identities and limits, against slow references."""

import math

import pytest
import torch
from aisec_common.torch.linf_pgd import input_gradient
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import CLASSES, Pair, bank, images, labels, net

from interference_nn import Backgrounds, InterferenceNet, fit
from interference_nn.draws import Draws
from interference_nn.loss import interference_loss

draws = st.integers(1, 9)
seeds = st.integers(0, 2**31)
few = settings(max_examples=15)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# 1
@few
@given(seeds, draws, st.sampled_from(["two", "joint"]))
def test_without_blending_the_network_is_the_plain_one_for_any_bank(seed, count, head):
    made = net(alpha=0.0, draws=count, bank=bank(seed=seed), head=head)
    x = images(seed=seed)
    plain = made.target_head(made.backbone(x)).log_softmax(1)
    assert torch.allclose(made(x, rng(seed)), plain, atol=1e-6)


@few
@given(seeds, draws)
def test_with_nothing_but_background_the_image_does_not_count(seed, count):
    made = net(alpha=1.0, draws=count)
    x = images(seed=seed).requires_grad_()
    found = made(x, rng(seed))
    other = made(images(seed=seed + 1), rng(seed))
    assert torch.allclose(found, other, atol=1e-6)
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


# 2
@pytest.mark.parametrize("interference", ["superpose", "mosaic", "channel"])
def test_what_the_backbone_sees_stays_in_range(interference):
    made = net(interference=interference)
    seen = []
    handle = made.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made(images().round())
    handle.remove()
    assert seen[0].min() >= 0
    assert seen[0].max() <= 1
    for wrong in (images() + 1, images() - 0.5, images() * torch.nan):
        with pytest.raises(ValueError, match="images must"):
            made(wrong)


# 3
@pytest.mark.parametrize("interference", ["superpose", "mosaic", "channel"])
@pytest.mark.parametrize("mode", ["fixed", "keyed"])
def test_fixed_and_keyed_are_deterministic_across_calls_and_splits(mode, interference):
    made = net(mode=mode, key=b"secret", draws=5, interference=interference)
    x = images(7)
    whole = made(x)
    assert torch.equal(made(x), whole)
    assert torch.allclose(torch.cat([made(part) for part in x.split(3)]), whole, atol=1e-5)
    assert made.deterministic


@pytest.mark.parametrize("replacement", [True, False])
def test_random_is_reproducible_by_its_generator_only(replacement):
    made = net(draws=3, replacement=replacement)
    x = images()
    assert torch.equal(made(x, rng()), made(x, rng()))
    assert not torch.allclose(made(x, rng()), made(x, rng(1)), atol=1e-4)
    assert not torch.allclose(made(x), made(x), atol=1e-4)
    assert made.random


# 4
@few
@given(seeds, draws, st.sampled_from(["two", "joint", "extra_class"]))
def test_predictions_are_probabilities(seed, count, head):
    made = net(draws=count, head=head)
    assert torch.allclose(made(images(seed=seed), rng(seed)).exp().sum(1), torch.ones(6), atol=1e-5)


def test_one_draw_is_one_softmax():
    made = net(draws=1)
    x = images()
    chosen = torch.randint(16 * 4, (6, 1), generator=rng(3)) // 4
    target, _ = made.logits_of(x, Draws(backgrounds=chosen, places=chosen % 4))
    assert torch.equal(made(x, rng(3)), target[:, 0].log_softmax(1))
    assert torch.equal(made.once(x, rng(3)), made(x, rng(3)))


@few
@given(seeds, draws)
def test_the_average_against_a_loop(seed, count):
    made = net(draws=count, mode="fixed")
    x, backgrounds = images(seed=seed), made.bank_images
    each = [
        made.target_head(made.backbone(0.5 * x + 0.5 * backgrounds[m].expand_as(x))).softmax(1) for m in range(count)
    ]
    assert torch.allclose(made(x).exp(), sum(each) / count, atol=1e-6)


# 5
def test_with_one_background_the_eot_gradient_is_the_plain_one():
    one = Backgrounds(images=bank().images[:1], labels=bank().labels[:1], classes=4)
    made = net(bank=one, draws=1)
    x, y = images(), labels()
    plain, _ = input_gradient(made.once, x, y)
    averaged, _ = input_gradient(made.once, x, y, draws=16)
    assert torch.allclose(averaged, plain, atol=1e-5)


@pytest.mark.parametrize("interference", ["superpose", "mosaic"])
def test_the_whole_bank_gives_the_gradient_of_the_exact_expectation(interference):
    made = net(draws=16, mode="fixed", interference=interference)
    x, y = images(), labels()
    found, _ = input_gradient(lambda seen: made.probabilities_over(seen, made.bank_images).log(), x, y)
    seen = x.clone().requires_grad_()
    places = range(4) if interference == "mosaic" else range(1)
    each = []
    for b in range(16):
        for place in places:
            draw = Draws(backgrounds=torch.full((6, 1), b), places=torch.full((6, 1), place))
            each.append(made.logits_of(seen, draw)[0][:, 0].softmax(1))
    mean = sum(each) / len(each)
    (wanted,) = torch.autograd.grad(-mean.gather(1, y[:, None]).log().sum(), seen)
    assert torch.allclose(found, wanted, atol=1e-5)
    if interference == "superpose":
        assert torch.allclose(made(x).exp(), mean, atol=1e-6)  # fixed, with M = J


def test_the_eot_gradient_goes_to_that_of_the_expectation():
    made = net(draws=1)
    x, y = images(), labels()
    exact, _ = input_gradient(lambda seen: made.probabilities_over(seen, made.bank_images).log(), x, y)

    def error(count):
        found, _ = input_gradient(lambda seen: made.once(seen, generator), x, y, draws=count, max_batch=10**6)
        return (found - exact).norm()

    generator = rng()
    few_draws, many = sum(error(4) for _ in range(5)) / 5, sum(error(400) for _ in range(5)) / 5
    assert many < few_draws / 4  # as 1 / sqrt(E): a tenth


# 6
@few
@given(seeds, st.floats(0.05, 0.95))
def test_the_image_gradient_is_the_input_gradient_scaled(seed, alpha):
    made = net(alpha=alpha, draws=1, mode="fixed")
    x, y = images(seed=seed), labels()
    found, _ = input_gradient(made, x, y)
    z = (1 - alpha) * x + alpha * made.bank_images[:1]
    inner, _ = input_gradient(lambda seen: made.target_head(made.backbone(seen)), z, y)
    assert torch.allclose(found, (1 - alpha) * inner, atol=1e-5 * max(1.0, float(inner.abs().max())))


# 10
def test_a_joint_head_without_weight_is_the_target_head_alone():
    two, joint = net(head="two"), net(head="joint")
    x, y = images(), labels()
    assert torch.equal(two(x, rng()), joint(x, rng()))
    draw = Draws(backgrounds=torch.arange(6)[:, None], places=torch.zeros(6, 1).long())
    target, background = (logits[:, 0].detach().requires_grad_() for logits in joint.logits_of(x, draw))
    loss = interference_loss(target, background, y, torch.zeros(6).long(), weight=0.0, head="joint")
    alone = torch.nn.functional.cross_entropy(target, y)
    assert torch.equal(loss, alone)
    assert torch.equal(*(torch.autograd.grad(value, target)[0] for value in (loss, alone)))
    slight = interference_loss(target, background - 40, y, torch.zeros(6).long(), weight=1e-7, head="joint")
    assert slight.item() == pytest.approx(alone.item(), abs=1e-4)  # the limit, where no background is ever named


def test_one_background_class_adds_no_gradient_to_the_backbone():
    features = torch.randn(6, 8, generator=rng()).requires_grad_()
    made = net(bank=bank(classes=1))
    weights = torch.randn(CLASSES, 8, generator=rng(1))
    y, l = labels(), torch.zeros(6).long()  # noqa: E741  the paper's letter
    background = features @ torch.randn(1, 8, generator=rng(2)).T
    assert made.background_head.out_features == 1
    both = interference_loss(features @ weights.T, background, y, l, weight=3.0)
    alone = interference_loss(features @ weights.T, background, y, l, weight=0.0)
    assert torch.equal(*(torch.autograd.grad(loss, features)[0] for loss in (both, alone)))


# 11
@pytest.mark.parametrize("head", ["two", "joint", "extra_class"])
def test_the_first_stage_leaves_every_backbone_tensor_alone(head):
    made = net(head=head)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    fit(made, [(images(), labels())] * 3, head_epochs=2, finetune_epochs=0)
    after = made.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in after if name.startswith("backbone."))
    assert any("running_mean" in name for name in after)
    assert not torch.equal(before["target_head.weight"], after["target_head.weight"])
    assert all(parameter.requires_grad for parameter in made.parameters())


# 12
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: net(bank=Backgrounds(images=torch.zeros(0, 1, 8, 8), labels=labels(0), classes=1)), "bank is empty"),
        (lambda: net()(images(size=6)), "make the bank of the images' size"),
        (lambda: net()(images(channels=3)), "make the bank of the images' size"),
        (lambda: fit(net(), [(images(), labels() + 1)]), "labels must lie in 0..4"),
        (lambda: net(draws=17, replacement=False), "draws must be at most the 16"),
        (lambda: net(draws=17, mode="fixed"), "draws must be at most the 16"),
        (lambda: net(Pair()), "not tuple"),
        (lambda: net(mode="keyed"), "key is missing"),
        (lambda: net(classes=1), "classes must be at least 2"),
        (lambda: net().variant(head="joint"), "head belongs to the weights"),
        (lambda: net(interference="mosaic", bank=bank(size=7))(images(size=7)), "even sides"),
        (lambda: InterferenceNet.load("nosuch"), "nosuch"),
    ],
)
def test_errors_name_the_argument_and_the_fix(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_log_probabilities_do_not_underflow():
    made = net(draws=4)
    with torch.no_grad():
        made.target_head.weight.mul_(1e4)
    found = made(images())
    assert found.isfinite().all()
    assert found.min() < -math.log(1e30)
