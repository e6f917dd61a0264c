import pytest
import torch
from aisec_common.torch.hooks import capture
from torch import nn

from uadat import gradient_alignment
from uadat.wide_resnet import PreActivation, WideResNet


def test_wrn_34_10_has_the_published_size():
    with torch.device("meta"):
        model = WideResNet(10)
    assert sum(p.numel() for p in model.parameters()) == 46_160_474
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()) == 31


def test_stages_halve_the_resolution():
    model = WideResNet(5, depth=10, width=1).eval()
    with capture(model, ["layer1", "layer2", "layer3"]) as seen:
        assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert [seen[name].shape[2] for name in seen] == [32, 16, 8]


def test_a_block_without_weights_passes_its_input_on():
    block = PreActivation(4, 4, 1).eval()
    nn.init.zeros_(block.conv2.weight)
    features = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(features), features)


def test_its_kinks_are_seen_and_hold_no_weights(monkeypatch):
    model, said = WideResNet(5, depth=10, width=1), []
    monkeypatch.setattr(gradient_alignment, "_warn", lambda: said.append(True))
    gradient_alignment.warn_of_kinks(model)
    assert said == [True]
    assert not any("relu" in name for name in model.state_dict())


def test_a_depth_that_cannot_be():
    with pytest.raises(ValueError, match="depth"):
        WideResNet(10, depth=12)
