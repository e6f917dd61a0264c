import pytest
import torch
from networks import batch, parameters_gradient, staged
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from uadat import loss as loss_module
from uadat.double_backward import of_images_alone, with_short_double_backward
from uadat.gradient_alignment import input_gradients
from uadat.loss import UADLoss

OPERATIONS = {
    "plain": (nn.Conv2d(4, 6, 3, padding=1), (3, 4, 5, 5)),
    "no bias, stride": (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (3, 4, 6, 5)),
    "stride that leaves pixels out": (nn.Conv2d(4, 6, 3, stride=2, bias=False), (3, 4, 6, 8)),
    "dilated, uneven": (nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=2), (3, 4, 6, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (3, 4, 5, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 5, 5)),
    "padding by name": (nn.Conv2d(4, 6, 3, padding="same"), (3, 4, 5, 5)),
    "batch norm": (nn.BatchNorm2d(4), (5, 4, 3, 2)),
    "batch norm of vectors": (nn.BatchNorm1d(4), (7, 4)),
    "batch norm without statistics": (nn.BatchNorm2d(4, track_running_stats=False, eps=0.1), (5, 4, 3, 2)),
    "batch norm without weights": (nn.BatchNorm2d(4, affine=False), (5, 4, 3, 2)),
}


def second_derivatives(run, layer, shape):
    """Of a function of y and of dx, by x and by the weights; and what the layer holds afterwards."""
    layer.double().train().reset_parameters()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
        for weight in list(layer.parameters())[:1]:
            weight.view(-1)[0] = 0.0
    x = (3 + torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
    y = run(x)
    with of_images_alone():
        (gradient,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
    total = (gradient * torch.randn(shape, generator=generator, dtype=torch.float64)).sin().sum() + y.cos().sum()
    found = torch.autograd.grad(total, [x, *layer.parameters()])
    return [y, gradient, *found, *layer.buffers()]


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_the_second_derivatives_are_those_of_pytorch(name):
    layer, shape = OPERATIONS[name]
    ours = [value.clone() for value in second_derivatives(with_short_double_backward(layer), layer, shape)]
    theirs = second_derivatives(layer, layer, shape)
    assert len(ours) == len(theirs)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["depthwise", "batch norm"])
def test_second_derivatives_by_finite_differences(name):
    layer, shape = OPERATIONS[name]
    layer.double().train()
    run = with_short_double_backward(layer)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)

    def gradient(x, weight):
        kept, layer.weight.data = layer.weight.data, weight.data
        with of_images_alone():
            (found,) = torch.autograd.grad(run(x).sin().sum(), x, create_graph=True)
        layer.weight.data = kept
        return found

    assert torch.autograd.gradcheck(lambda x: gradient(x, layer.weight), x)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_loss_and_its_gradient_are_those_of_pytorchs_double_backward(monkeypatch, norm):
    net, (images, labels) = staged(activation=nn.Softplus, norm=norm).double().train(), batch(20)
    objective = UADLoss(0.1, "stage1", iga=1.0, warmup=0.0, steps=3)
    views = objective.prepare(net, images.double(), labels, generator=torch.Generator().manual_seed(0))

    def gradient():
        state = {name: value.clone() for name, value in net.state_dict().items()}
        found = objective.on(net, views)
        moved = {name: value.clone() for name, value in net.state_dict().items()}
        gradient = parameters_gradient(net, found.total)
        net.load_state_dict(state)
        return found, gradient, moved

    ours, of_ours, moved = gradient()
    monkeypatch.setattr(loss_module, "with_short_double_backward", lambda forward: forward)
    theirs, of_theirs, expected = gradient()
    assert ours.parts["iga"] > 0
    assert ours.parts == pytest.approx(theirs.parts)
    torch.testing.assert_close(of_ours, of_theirs)
    for name, value in expected.items():
        torch.testing.assert_close(moved[name], value)


def test_without_a_graph_weights_get_their_gradients():
    net, (images, labels) = staged(norm="batch").train(), batch()
    found, expected = (
        parameters_gradient(net, F.cross_entropy(run(images), labels)) for run in (with_short_double_backward(net), net)
    )
    torch.testing.assert_close(found, expected)


def test_frozen_weights_get_none():
    net, (images, labels) = staged(activation=nn.Softplus, norm="batch").train(), batch()
    net.stage1.requires_grad_(False)
    images.requires_grad_()
    gradient = input_gradients(with_short_double_backward(net)(images), labels, images)
    gradient.square().sum().backward()
    assert all(weight.grad is None for weight in net.stage1.parameters())
    assert net.stage2[0].weight.grad.any()


def test_autocast_and_mixed_precision_run_as_pytorch_has_them():
    net, (images, labels) = staged(activation=nn.Softplus, norm="batch").train(), batch()
    images.requires_grad_()
    found = []
    for run in (with_short_double_backward(net), net):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = run(images)
        found.append(parameters_gradient(net, input_gradients(logits, labels, images).square().sum()))
    assert torch.equal(*found)


def test_a_checkpoint_of_activations_runs_as_pytorch_has_it():
    net, (images, labels) = staged(activation=nn.Softplus, norm="batch").train(), batch()
    images.requires_grad_()
    first, second = net.stage1, net.stage2

    def checkpointed(x):
        return net.head(checkpoint(second, first(x), use_reentrant=False).mean((2, 3)))

    found, expected = (
        parameters_gradient(net, input_gradients(run(images), labels, images).square().sum())
        for run in (with_short_double_backward(checkpointed), net)
    )
    torch.testing.assert_close(found, expected)


def test_a_graph_of_the_weights_gradients_is_refused():
    net, (images, labels) = staged(activation=nn.Softplus, norm="batch").train(), batch()
    loss = UADLoss(0.1, "stage1", warmup=0.0, steps=1)(net, images, labels)
    with pytest.raises(RuntimeError, match="only input gradients"):
        torch.autograd.grad(loss.total, list(net.parameters()), create_graph=True)


def test_there_is_no_third_derivative():
    net, (images, labels) = staged(activation=nn.Softplus, norm="batch").train(), batch()
    images.requires_grad_()
    gradient = input_gradients(with_short_double_backward(net)(images), labels, images)
    with pytest.raises(RuntimeError, match="only input gradients"):
        torch.autograd.grad(gradient.square().sum(), images, create_graph=True)
