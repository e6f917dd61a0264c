import pytest
import torch
import torchvision
from small_nets import images

from interference_nn.backbone import backbone_of
from interference_nn.torchvision_backbone import MEAN, STD


def normalised(x):
    return (x - torch.tensor(MEAN).reshape(1, 3, 1, 1)) / torch.tensor(STD).reshape(1, 3, 1, 1)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_features_and_head_are_those_of_the_classifier(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=7).eval()
    x = images(2, channels=3, size=32)
    backbone = backbone_of(model).eval()
    weight, bias = backbone.pretrained
    assert torch.allclose(backbone(x) @ weight.T + bias, model(normalised(x)), atol=1e-4)


def test_loads_by_name():
    backbone = backbone_of("resnet18")
    assert backbone.source == "torchvision:resnet18"
    assert backbone.dim == 512


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("resnet19", None, "near: resnet"),
        ("resnet18", "IMAGENET1K_V9", "weights of resnet18 must be one of"),
    ],
)
def test_wrong_names_are_refused(name, weights, words):
    with pytest.raises(ValueError, match=words):
        backbone_of(name, weights=weights)
