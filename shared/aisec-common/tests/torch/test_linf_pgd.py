from __future__ import annotations

import contextlib
import math

import pytest
import torch
import torchattacks
from aisec_common.seeding import torch_rng
from aisec_common.torch.linf_pgd import (
    check_images,
    cross_entropy,
    evaluating,
    input_gradient,
    linf_pgd,
    margin,
    mean_logits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

EPS = 0.1


def net(seed: int = 0, *, norm: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = nn.BatchNorm2d(8) if norm else nn.GroupNorm(2, 8)
        return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), middle, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10))


def batch(size: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch_rng(seed, "batch")
    return torch.rand(size, 1, 8, 8, generator=rng), torch.randint(10, (size,), generator=rng)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


class Dithered(nn.Module):
    """Logits that differ from row to row of one batch, whichever the image: draws from the global generator."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + 0.2 * torch.randn_like(images))


# ---------------------------------------------------------------- the steps


def test_equals_the_slow_loop_and_torchattacks_from_the_same_start():
    model, (images, _) = net().eval(), batch(200)
    labels = model(images).argmax(1)
    start = (images + EPS * (2 * torch.rand(images.shape, generator=torch_rng(1)) - 1)).clamp(0, 1)
    ours = linf_pgd(model, images, labels, eps=EPS, steps=10, step_size=EPS / 4, start=start)

    x = start
    for _ in range(10):
        x = x.detach().requires_grad_()
        nn.functional.cross_entropy(model(x), labels, reduction="sum").backward()
        x = (images + (x + EPS / 4 * x.grad.sign() - images).clamp(-EPS, EPS)).clamp(0, 1)
    assert torch.allclose(ours, x, atol=1e-6)

    peer = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=10)
    theirs = peer_from(peer, images, labels, start)
    assert abs(accuracy(model, ours, labels) - accuracy(model, theirs, labels)) <= 0.01
    assert accuracy(model, ours, labels) < 0.5


def peer_from(peer: torchattacks.PGD, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
    """torchattacks' PGD from a given start: it begins where `empty_like(...).uniform_` takes it."""

    class Given:
        def uniform_(self, low: float, high: float) -> Tensor:
            return start - images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda *a, **k: Given())
        return peer(images, labels)


@settings(max_examples=25)
@given(
    eps=st.floats(0.001, 1.0),
    steps=st.integers(0, 3),
    start=st.sampled_from(["uniform", "normal", "zero"]),
    loss=st.sampled_from(["ce", "cw"]),
    early=st.booleans(),
    restarts=st.integers(1, 2),
    draws=st.integers(1, 3),
    seed=st.integers(0, 5),
)
def test_stays_in_the_ball_and_in_range(eps, steps, start, loss, early, restarts, draws, seed):
    model, (images, labels) = net(), batch(5, seed)
    found = linf_pgd(
        model,
        images,
        labels,
        eps=eps,
        steps=steps,
        start=start,
        loss=loss,
        early_stop=early,
        restarts=restarts,
        draws=draws,
        generator=torch_rng(seed),
        max_batch=4,
    )
    assert found.shape == images.shape
    assert not found.requires_grad
    assert float((found - images).abs().max()) <= eps + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1


@pytest.mark.parametrize("early", [False, True])
def test_each_image_may_have_a_step_size_of_its_own(early):
    model, (images, labels) = net(), batch(40)
    sizes = torch.tensor([0.01, 0.02]).repeat(20)
    options = {"eps": EPS, "steps": 5, "start": "zero", "early_stop": early}
    mixed = linf_pgd(model, images, labels, step_size=sizes, **options)
    for row, size in enumerate((0.01, 0.02)):
        alone = linf_pgd(model, images, labels, step_size=size, **options)
        assert torch.equal(mixed[row::2], alone[row::2])
        assert not torch.equal(mixed[1 - row :: 2], alone[1 - row :: 2])


@pytest.mark.parametrize("early", [False, True])
def test_each_image_may_have_steps_of_its_own(early):
    model, (images, labels) = net(), batch(40)
    model, images = model.double(), images.double()
    labels = model.eval()(images).argmax(1)
    options = {"eps": EPS, "step_size": 0.03, "start": "zero", "early_stop": early}
    seen = []

    def loss(logits, aims):
        seen.append(len(logits))
        return cross_entropy(logits, aims)

    mixed = linf_pgd(model, images, labels, steps=torch.tensor([2, 0, 5, 3]).repeat(10), loss=loss, **options)
    assert early or seen == [30, 30, 20, 10, 10]
    for row, steps in enumerate((2, 0, 5, 3)):
        alone = linf_pgd(model, images, labels, steps=steps, **options)
        torch.testing.assert_close(mixed[row::4], alone[row::4])
        assert torch.equal(mixed[row::4], images[row::4]) == (steps == 0)


def test_who_has_steps_left_may_all_be_broken():
    model, (images, labels) = net(), batch(40)
    labels = model.eval()(images).argmax(1)
    labels[::2] = (labels[::2] + 1) % 10
    found = linf_pgd(model, images, labels, eps=EPS, steps=torch.tensor([5, 2]).repeat(20), early_stop=True)
    assert float((found - images).abs().max()) <= EPS + 1e-6


@pytest.mark.parametrize("restarts", [1, 2])
def test_folding_changes_nothing_but_the_rounding(monkeypatch, restarts):
    model, (images, labels) = net(), batch(40)
    model, images = model.double(), images.double()
    for _ in range(20):
        model.train()(images * 3)  # statistics to fold
    options = {"eps": EPS, "steps": 10, "restarts": restarts}
    with_it = linf_pgd(model, images, labels, generator=torch_rng(0), **options)
    folds = []

    class Unfolded(contextlib.nullcontext):
        def __init__(self):
            super().__init__()
            folds.append(self)

    monkeypatch.setattr("aisec_common.torch.linf_pgd.FoldedNorms", Unfolded)
    without = linf_pgd(model, images, labels, generator=torch_rng(0), **options)
    assert folds
    torch.testing.assert_close(with_it, without)


@pytest.mark.parametrize("draws", [8, 16])
def test_draws_change_nothing_of_a_deterministic_model(draws):
    model, (images, labels) = net(), batch(60)
    one, many = (
        linf_pgd(model, images, labels, eps=EPS, steps=20, draws=e, generator=torch_rng(0)) for e in (1, draws)
    )
    assert torch.equal(one, many)


def test_chunks_change_nothing():
    model, (images, labels) = net(), batch(50)
    whole, parts = (
        linf_pgd(model, images, labels, eps=EPS, draws=4, generator=torch_rng(0), max_batch=m) for m in (None, 12)
    )
    assert torch.equal(whole, parts)


def test_more_steps_restarts_and_the_margin_increase_what_they_climb():
    model, (images, labels) = net().eval(), batch(100)

    def loss(**options: object) -> float:
        found = linf_pgd(model, images, labels, eps=EPS, generator=torch_rng(0), **options)
        with torch.no_grad():
            return float(cross_entropy(model(found), labels).mean())

    assert loss(steps=0) < loss(steps=1) < loss(steps=10)
    right = model(images).argmax(1)
    few = linf_pgd(model, images, right, eps=0.02, steps=2, generator=torch_rng(0))
    many = linf_pgd(model, images, right, eps=0.02, steps=2, restarts=5, generator=torch_rng(0))
    assert accuracy(model, many, right) < accuracy(model, few, right)


def test_targets_are_reached_more_often_than_by_running_away():
    model, (images, _) = net().eval(), batch(100)
    labels = model(images).argmax(1)
    targets = (labels + 3) % 10
    away = linf_pgd(model, images, labels, eps=0.3, generator=torch_rng(0))
    towards = linf_pgd(model, images, labels, eps=0.3, targets=targets, generator=torch_rng(0))
    assert accuracy(model, towards, targets) > accuracy(model, away, targets) + 0.2


def test_early_stop_leaves_broken_images_and_breaks_as_many():
    calls: list[int] = []
    inner = net().eval()

    def model(images: Tensor) -> Tensor:
        calls.append(len(images))
        return inner(images)

    images, _ = batch(100)
    labels = inner(images).argmax(1)
    labels[:10] = (labels[:10] + 1) % 10  # wrong already
    stopped = linf_pgd(model, images, labels, eps=0.03, steps=10, start="zero", early_stop=True)
    spent, calls[:] = sum(calls), []
    whole = linf_pgd(model, images, labels, eps=0.03, steps=10, start="zero")
    assert spent < sum(calls) == 1000
    assert torch.equal(stopped[:10], images[:10])
    right = inner(stopped).argmax(1) == labels
    assert torch.equal(stopped[right], whole[right])  # unbroken images took every step
    assert right.double().mean() <= (inner(whole).argmax(1) == labels).double().mean()


def test_a_seed_gives_the_same_start_whether_or_not_images_drop_out():
    model, (images, labels) = net(), batch(30)
    one, two = (
        linf_pgd(model, images, labels, eps=EPS, steps=2, restarts=3, early_stop=True, generator=torch_rng(5))
        for _ in range(2)
    )
    assert torch.equal(one, two)
    state = torch.get_rng_state()
    linf_pgd(model, images, labels, eps=EPS, generator=torch_rng(0))
    assert torch.equal(state, torch.get_rng_state())


# ---------------------------------------------------------------- the mean of draws


def test_gradient_of_draws_is_that_of_the_log_of_the_mean_probability():
    biases = torch.randn(6, 1, 10, generator=torch_rng(3), dtype=torch.float64)
    inner = net(norm=False).double().eval()
    images, labels = batch(4)
    images = images.double()

    def model(rows: Tensor) -> Tensor:  # the e-th copy of the batch gets the e-th bias, as draws would
        return (inner(rows).unflatten(0, (6, -1)) + biases).flatten(0, 1)

    gradient, logs = input_gradient(model, images, labels, draws=6)
    x = images.clone().requires_grad_()
    mean = torch.stack([(inner(x) + bias).softmax(1) for bias in biases]).mean(0)
    (slow,) = torch.autograd.grad(-mean.log().gather(1, labels[:, None]).sum(), x)
    assert torch.allclose(gradient, slow, atol=1e-12)
    assert torch.allclose(logs.exp(), mean.detach(), atol=1e-12)
    logs_mean = torch.stack([(inner(x) + bias).log_softmax(1) for bias in biases]).mean(0)
    (other,) = torch.autograd.grad(-logs_mean.gather(1, labels[:, None]).sum(), x)
    assert not torch.allclose(gradient, other, atol=1e-3 * float(gradient.abs().max()))


def test_mean_logits_are_probabilities():
    images, _ = batch(7)
    assert torch.allclose(mean_logits(Dithered(net()), images, 5).exp().sum(1), torch.ones(7), atol=1e-5)


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_margin_is_positive_exactly_where_wrong(seed):
    rng = torch_rng(seed)
    logits, labels = torch.randn(9, 4, generator=rng), torch.randint(4, (9,), generator=rng)
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(1) != labels)


def test_a_model_that_leaves_the_graph_has_a_zero_gradient():
    inner, (images, labels) = net(), batch(5)
    gradient, _ = input_gradient(lambda x: inner(x.detach()).detach(), images, labels)
    assert torch.equal(gradient, torch.zeros_like(images))


# ---------------------------------------------------------------- the model stays as it was


def test_batchnorm_modes_and_gradients_are_left_alone():
    model, (images, labels) = net().train(), batch()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linf_pgd(model, images, labels, eps=EPS, generator=torch_rng(0))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert model[2].training
    assert not model[1].training
    assert not model[0].weight.requires_grad
    assert model[4].weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_exception():
    model = net().train()
    images, labels = batch()
    with pytest.raises(ValueError, match="loss must return"):
        linf_pgd(model, images, labels, eps=EPS, loss=lambda z, y: z)
    assert model.training
    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_method_counts_as_its_module_and_a_function_as_nothing():
    model = net().train()
    with evaluating(model.forward):
        assert not model.training
    with evaluating(lambda x: x):
        assert model.training


def test_works_inside_no_grad():
    model, (images, labels) = net(), batch(5)
    with torch.no_grad():
        inside = linf_pgd(model, images, labels, eps=EPS, start="zero")
    assert torch.equal(inside, linf_pgd(model, images, labels, eps=EPS, start="zero"))


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"images": torch.rand(40, 1, 8, 8) * 255}, ValueError, r"images must lie in \[0, 1\]"),
        ({"images": torch.full((40, 1, 8, 8), math.nan)}, ValueError, "images must be finite"),
        ({"images": torch.zeros(40, 64)}, ValueError, r"\[B, C, H, W\]"),
        ({"images": torch.zeros(0, 1, 8, 8)}, ValueError, "not empty"),
        ({"images": torch.zeros(40, 1, 8, 8, dtype=torch.uint8)}, TypeError, "images must be a tensor of floats"),
        ({"labels": torch.zeros(40)}, TypeError, "labels must be a tensor of integers"),
        ({"labels": torch.full((40,), 10)}, ValueError, r"labels must lie in 0\.\.9"),
        ({"labels": torch.full((40,), -1)}, ValueError, "labels must be classes"),
        ({"labels": torch.zeros(39, dtype=torch.long)}, ValueError, r"labels must be of shape \[40\]"),
        ({"targets": torch.full((40,), 11)}, ValueError, r"labels must lie in 0\.\.9"),
        ({"eps": 0.0}, ValueError, "eps must be positive"),
        ({"eps": math.nan}, ValueError, "eps must be positive"),
        ({"steps": -1}, ValueError, "steps must be >= 0"),
        ({"steps": 2.5}, ValueError, r"steps must be a whole number or \[40\]"),
        ({"steps": torch.ones(39).long()}, ValueError, r"steps must be a whole number or \[40\]"),
        ({"steps": torch.arange(40) - 1}, ValueError, "steps must be >= 0, not -1"),
        ({"draws": 0}, ValueError, "draws and max_batch must be >= 1"),
        ({"step_size": 0.0}, ValueError, "step_size must be positive"),
        ({"step_size": torch.arange(40) / 40}, ValueError, "step_size must be positive, not 0"),
        ({"step_size": torch.ones(39)}, ValueError, r"step_size must be a number or \[40\]"),
        ({"loss": "dlr"}, ValueError, "loss must be one of ce, cw"),
        ({"loss": lambda z, y: z.sum()}, ValueError, "loss must return one number a sample"),
        ({"start": "middle"}, ValueError, "start must be"),
        ({"start": torch.zeros(1, 1, 8, 8)}, ValueError, "start must be of the shape"),
        ({"model": lambda x: (net()(x), x)}, TypeError, "model must return logits"),
        ({"model": lambda x: x}, ValueError, r"model must return logits \[40, K\]"),
        ({"model": lambda x: net()(x) * math.nan}, ValueError, "model must have finite logits"),
        ({"model": lambda x: (x - x).sqrt().flatten(1)}, ValueError, "finite input gradients"),
    ],
)
def test_errors_are_one_line_and_name_the_argument(change, error, text):
    images, labels = batch()
    arguments = {"model": net(), "images": images, "labels": labels, "eps": EPS, "generator": torch_rng(0), **change}
    with pytest.raises(error, match=text) as raised:
        linf_pgd(arguments.pop("model"), arguments.pop("images"), arguments.pop("labels"), **arguments)
    assert "\n" not in str(raised.value)


def test_check_images_names_the_argument():
    with pytest.raises(ValueError, match="bank must lie"):
        check_images(torch.full((1, 1, 2, 2), 2.0), "bank")
