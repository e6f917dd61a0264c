import torch
from aisec_common.torch.hooks import capture
from torch import nn

from uadat.network import small_resnet


def test_five_convolutions_in_named_stages():
    net = small_resnet(10, seed=0)
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 5
    assert [module.num_features for module in net.modules() if isinstance(module, nn.BatchNorm2d)] == [
        16,
        16,
        32,
        32,
        32,
    ]
    with capture(net, ["stage1", "stage2", "stage3"]) as seen:
        logits = net(torch.rand(3, 1, 8, 8))
    assert logits.shape == (3, 10)
    assert [tuple(seen[name].shape) for name in seen] == [(3, 16, 8, 8), (3, 32, 4, 4), (3, 32, 4, 4)]


def test_the_shortcut_carries_the_features():
    stage = small_resnet(10, seed=0).stage3.eval()
    nn.init.zeros_(stage.conv.weight)
    features = torch.rand(2, 32, 4, 4)
    assert torch.equal(stage(features), features)


def test_weights_come_from_the_seed_and_no_global_generator_moves():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (small_resnet(10, channels=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(one(images), two(images))
    assert not torch.equal(one(images), other(images))
