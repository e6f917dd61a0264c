import pytest
import torch
from small_nets import Pair, images
from torch import nn

from interference_nn.backbone import Backbone, backbone_of, split_head
from interference_nn.network import conv_backbone


def test_normalises_and_resizes_inside():
    backbone = Backbone(nn.Flatten(), dim=3 * 16, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), size=4)
    x = images(2, channels=3, size=8)
    small = nn.functional.interpolate(x, (4, 4), mode="bilinear", antialias=True)
    wanted = (small - torch.tensor([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1)) / torch.tensor([1.0, 2, 4]).reshape(1, 3, 1, 1)
    assert torch.allclose(backbone(x), wanted.flatten(1), atol=1e-6)


def test_a_widened_backbone_ignores_the_new_channels_at_first():
    torch.manual_seed(0)
    narrow = backbone_of(conv_backbone(), channels=1, image_size=(8, 8)).eval()
    wide = backbone_of(narrow).eval()
    wide.widen()
    x = images()
    assert torch.allclose(wide(torch.cat([x, images(seed=1)], dim=1)), narrow(x), atol=1e-6)
    with pytest.raises(ValueError, match="convolution"):
        Backbone(nn.Flatten(), dim=4).widen()


def test_a_module_is_copied_and_measured():
    own = conv_backbone(width=4)
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    made = backbone_of(own, channels=1, image_size=(8, 8))
    assert made.dim == conv_backbone(width=4)(images()).shape[1]
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())
    assert own.training
    assert next(made.parameters()) is not next(own.parameters())


def test_split_head_takes_the_last_linear_layer():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Dropout(), nn.Linear(3, 2, bias=False)))
    head = model[2][1].weight.clone()
    features, (weight, bias), dim = split_head(model)
    assert torch.equal(weight, head)
    assert bias.tolist() == [0.0, 0.0]
    assert dim == 3
    assert features(torch.zeros(5, 4)).shape == (5, 3)
    with pytest.raises(ValueError, match="linear classifier"):
        split_head(nn.Flatten())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: backbone_of(Pair(), channels=1, image_size=(8, 8)), "backbone must return a tensor.*tuple"),
        (lambda: backbone_of(nn.Identity(), channels=1, image_size=(8, 8)), "pool and flatten"),
        (lambda: backbone_of(3), "name or a module"),
        (lambda: backbone_of("keras:resnet50"), "prefix"),
        (lambda: backbone_of(nn.Flatten(), weights="IMAGENET1K_V2"), "weights"),
        (lambda: Backbone(nn.Flatten(), dim=4, mean=(0.0, 1.0)), "mean"),
        (lambda: Backbone(nn.Flatten(), dim=4, std=0.0), "std"),
    ],
)
def test_wrong_backbones_are_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("gone", name="timm")

    monkeypatch.setattr("interference_nn.backbone.import_module", absent)
    with pytest.raises(ValueError, match=r"backbone needs timm; install it by `pip .*-interference-nn\[timm\]`"):
        backbone_of("timm:resnet18")
