import pytest
import torch
from networks import batch, staged
from torch import nn

from uadat.split import head_pass, split_pass


def test_the_two_halves_are_the_whole():
    net, (images, _) = staged(), batch()
    seen = []
    logits = split_pass(net, net, "stage1", images, lambda z: seen.append(z) or torch.cat([z, z * 2]))
    assert torch.equal(seen[0], net.stage1(images))
    torch.testing.assert_close(logits[: len(images)], net(images))
    torch.testing.assert_close(logits[len(images) :], net.head(net.stage2(2 * seen[0]).mean((2, 3))))
    assert not net.stage1._forward_hooks


def test_the_head_runs_alone():
    net, (images, _) = staged().train(), batch()
    with torch.no_grad():
        features = net.stage1(images)
    features.requires_grad_()
    before = [buffer.clone() for buffer in net.stage1.buffers()]
    net.zero_grad()
    logits = head_pass(net, net, "stage1", images[:1], features)
    torch.testing.assert_close(logits, net.head(net.stage2(features).mean((2, 3))))
    logits.sum().backward()
    assert features.grad.any()
    assert net.head.weight.grad.any()
    assert all(parameter.grad is None for parameter in net.stage1.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, net.stage1.buffers(), strict=True))
    assert all(part.training for part in net.modules())
    assert torch.is_grad_enabled()


def test_a_head_that_fails_leaves_the_model_as_it_was():
    net, (images, _) = staged().train(), batch()
    with pytest.raises(ValueError, match="'nowhere' is not in the model"):
        head_pass(net, net, "nowhere", images[:1], images)
    assert all(part.training for part in net.modules())
    assert torch.is_grad_enabled()


def test_the_input_is_a_layer():
    net, (images, _) = staged(), batch()
    torch.testing.assert_close(split_pass(net, net, "input", images, lambda z: 1 - z), net(1 - images))


def test_unknown_layer_lists_the_names():
    net, (images, _) = staged(), batch()
    with pytest.raises(ValueError, match="'layer2' is not in the model; it has stage1, stage2, head"):
        split_pass(net, net, "layer2", images, lambda z: z)


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(1, 1, 1)
        self.unused = nn.Conv2d(1, 1, 1)
        self.head = nn.Linear(36, 4)

    def forward(self, x):
        return self.head((x + self.inner(x)).flatten(1))


class Twice(Skip):
    def forward(self, x):
        return self.head(self.inner(self.inner(x)).flatten(1))


class Beside(Skip):
    def forward(self, x):
        self.inner(x)
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("net", "layer", "message"),
    [
        (Skip(), "inner", "does not cut the model in two"),
        (Beside(), "inner", "does not cut the model in two"),
        (Skip(), "unused", "does not run"),
        (Twice(), "inner", "runs more than once"),
        (Skip(), "head", "must return feature maps"),
    ],
)
def test_layers_that_do_not_cut(net, layer, message):
    images, _ = batch()
    with pytest.raises(ValueError, match=message):
        split_pass(net, net, layer, images, lambda z: torch.cat([z, z]))
    assert not any(part._forward_hooks for part in net.modules())


def test_other_errors_pass():
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(5, 2))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        split_pass(net, net, "0", torch.rand(2, 1, 2, 2), lambda z: z)
