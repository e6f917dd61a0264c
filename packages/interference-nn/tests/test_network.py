import torch
from torch import nn

from interference_nn.network import Classifier, conv_backbone


def test_five_convolutions_each_with_batch_norm():
    backbone = conv_backbone(channels=3, width=8)
    kinds = [type(module) for module in backbone.modules()]
    assert kinds.count(nn.Conv2d) == kinds.count(nn.BatchNorm2d) == kinds.count(nn.ReLU) == 5
    assert backbone(torch.rand(2, 3, 8, 8)).shape == (2, 32)


def test_larger_images_give_as_many_features():
    backbone = conv_backbone(width=4).eval()
    images = torch.rand(2, 1, 16, 16)
    before = nn.Sequential(*list(backbone)[:5])(images)
    assert before.shape[2:] == (4, 4)
    wanted = before.reshape(2, 4, 2, 2, 2, 2).mean((3, 5)).flatten(1)
    assert torch.allclose(backbone(images), wanted, atol=1e-6)


def test_the_classifier_is_a_linear_head_on_the_features():
    net = Classifier(conv_backbone(width=4), 16, 3).eval()
    images = torch.rand(2, 1, 8, 8)
    wanted = net.backbone(images) @ net.head.weight.T + net.head.bias
    assert torch.allclose(net(images), wanted, atol=1e-6)
