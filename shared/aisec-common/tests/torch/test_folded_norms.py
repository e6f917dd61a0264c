import pytest
import torch
from aisec_common.torch.folded_norms import FoldedNorms
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

IMAGES = torch.rand(3, 4, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def filled(model):
    """With weights and statistics that are none of them neutral, in eval mode and without gradients."""
    generator = torch.Generator().manual_seed(1)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return model.double().eval().requires_grad_(False)


def passed(model, folded, images=IMAGES):
    """Logits and the images' gradient of one pass."""
    x = images.detach().requires_grad_()
    with folded:
        logits = model(x)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]


def check(model, folds, passes=3):
    """Every pass is PyTorch's own but for rounding, with so many folded convolutions."""
    folded, images = FoldedNorms(), IMAGES
    for at in range(passes):
        images = images + 0.01 * at
        x = images.detach().requires_grad_()
        logits = model(x)
        found = passed(model, folded, images)
        torch.testing.assert_close(found[0], logits.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found[1], torch.autograd.grad(logits.square().sum(), x)[0], rtol=1e-10, atol=1e-10)
    assert len(folded) == folds


class Wired(nn.Module):
    """Parts that its `wiring` joins."""

    def __init__(self, wiring, **parts):
        super().__init__()
        self.wiring = wiring
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.wiring(self, x)


def conv(before=4, after=4, **options):
    return nn.Conv2d(before, after, 3, **{"padding": 1, **options})


def norm():
    return nn.BatchNorm2d(4)


@given(
    groups=st.sampled_from([1, 2, 4]),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 2, "valid"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    mode=st.sampled_from(["zeros", "reflect"]),
    eps=st.sampled_from([1e-5, 0.1]),
    inplace=st.booleans(),
)
def test_any_convolution_is_what_it_was(groups, stride, padding, dilation, bias, mode, eps, inplace):
    options = {"groups": groups, "stride": stride, "padding": padding, "dilation": dilation, "bias": bias}
    first = conv(padding_mode=mode, **options)
    check(filled(nn.Sequential(first, nn.BatchNorm2d(4, eps=eps), nn.ReLU(inplace), conv(), norm())), 2)


def test_a_residual_block_and_a_norm_elsewhere():
    block = Wired(lambda m, x: torch.relu(x + m.norm(m.conv(x))), conv=conv(), norm=norm())
    check(filled(nn.Sequential(norm(), block, nn.ReLU(), norm(), conv())), 1)


def test_one_convolution_twice_before_one_norm():
    check(filled(Wired(lambda m, x: m.norm(m.conv(m.norm(m.conv(x)))), conv=conv(), norm=norm())), 1)


ELSE = {
    "its output is added": lambda m, x: (found := m.conv(x)) + m.norm(found),
    "its output was added": lambda m, x: torch.stack([found := m.conv(x), found]).sum(0) + m.norm(found),
    "its output is looked into": lambda m, x: m.norm(found := m.conv(x)) * found.mean(),
    "two norms": lambda m, x: m.norm(found := m.conv(x)) + m.other(found),
    "a norm here, another there": lambda m, x: m.norm(m.conv(x)) + m.other(m.conv(x)),
    "a norm here, none there": lambda m, x: m.norm(m.conv(x)) + m.conv(x),
    "something between": lambda m, x: m.norm(m.conv(x) * 2),
    "one weight, two biases": lambda m, x: m.norm(m.conv(m.norm(torch.conv2d(x, m.conv.weight, padding=1)))),
    "a weight of its own": lambda m, x: m.norm(torch.conv2d(x, m.conv.weight * 2, padding=1)),
}


@pytest.mark.parametrize("wiring", ELSE.values(), ids=ELSE)
def test_other_wirings_are_left_alone(wiring):
    check(filled(Wired(wiring, conv=conv(), norm=norm(), other=norm())), 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.conv.requires_grad_(),
        lambda m: m.norm.requires_grad_(),
        lambda m: m.norm.train(),
        lambda m: parametrizations.weight_norm(m.conv).requires_grad_(False),
        lambda m: m.conv.register_forward_hook(lambda module, inputs, found: found * 2),
        lambda m: setattr(m, "norm", nn.BatchNorm2d(4, affine=False).double().eval()),
        lambda m: setattr(m, "norm", nn.BatchNorm2d(4, track_running_stats=False).double().eval()),
    ],
    ids=["conv learns", "norm learns", "norm trains", "weight norm", "hook", "not affine", "no statistics"],
)
def test_other_parts_are_left_alone(change):
    model = filled(Wired(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=norm()))
    change(model)
    check(model, 0)


def test_half_precision_is_left_alone():
    model = filled(nn.Sequential(conv(), norm())).float()
    folded = FoldedNorms()
    for _ in range(2):
        with folded, torch.autocast("cpu", torch.bfloat16):
            model(IMAGES.float())
    assert len(folded) == 0


OTHERWISE = {
    "no norm": lambda m, x: m.conv(x) + m.conv(x).mean(),
    "more and the norm": lambda m, x: (found := m.conv(x)) * 2 + m.norm(found),
    "another norm": lambda m, x: m.other(m.conv(x)),
}


@pytest.mark.parametrize("wiring", OTHERWISE.values(), ids=OTHERWISE)
def test_a_path_that_changes_gets_the_plain_convolution(wiring):
    def usual(m, x):
        return m.norm(m.conv(x))

    model, folded = filled(Wired(usual, conv=conv(), norm=norm(), other=norm())), FoldedNorms()
    for path in (usual, usual, wiring, usual, wiring):
        model.wiring = path
        expected = model(IMAGES)
        torch.testing.assert_close(passed(model, folded)[0], expected, rtol=1e-10, atol=1e-10)


def test_a_compiled_model_is_what_it_was():
    model = filled(nn.Sequential(conv(), norm(), nn.ReLU()))
    compiled, folded = torch.compile(model, backend="eager"), FoldedNorms()
    for _ in range(3):
        torch.testing.assert_close(passed(compiled, folded)[0], model(IMAGES), rtol=1e-10, atol=1e-10)
