import pytest
import timm
import torch
from aisec_common.data import is_fetched
from aisec_common.torch.timm_efficientnet_lite0 import efficientnet_lite0
from safetensors.torch import save_file
from small_nets import images

from interference_nn import InterferenceNet, ProceduralBackgrounds
from interference_nn.backbone import LITE, backbone_of

NAME = "test_resnet"  # timm's own tiny model for tests


def test_features_and_head_are_those_of_the_classifier():
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=7).eval()
    x = images(2, channels=3, size=64)
    backbone = backbone_of(model).eval()
    about = model.pretrained_cfg
    mean, std = (torch.tensor(about[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    weight, bias = backbone.pretrained
    assert torch.allclose(backbone(x) @ weight.T + bias, model((x - mean) / std), atol=1e-4)
    bank = ProceduralBackgrounds(n=4, classes=2, size=64)
    net = InterferenceNet.from_backbone(model, classes=7, bank=bank, alpha=0.0, draws=2).eval()
    assert torch.allclose(net(x), model((x - mean) / std).log_softmax(1), atol=1e-4)
    assert model.get_classifier().out_features == 7  # untouched


def test_loads_by_name_and_from_a_file(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model(NAME)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    backbone = backbone_of(f"timm:{NAME}", weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(backbone.pretrained[0], model.get_classifier().weight)
    assert backbone.source == f"timm:{NAME}"


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("timm:resnet1800", None, "timm has no model 'resnet1800'; near: "),
        (f"timm:{NAME}", "nosuch.safetensors", "weights must be"),
        (LITE, "pretrained", "weights"),
    ],
)
def test_wrong_names_are_refused(name, weights, words):
    with pytest.raises(ValueError, match=words):
        backbone_of(name, weights=weights)


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_file({"conv": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="do not fit") as caught:
        backbone_of(f"timm:{NAME}", weights=str(tmp_path / "weights.safetensors"))
    assert "\n" not in str(caught.value)


@pytest.mark.checkpoint
@pytest.mark.skipif(not is_fetched(LITE), reason=f"run `aisec data fetch {LITE}`")
def test_without_backgrounds_the_checkpoint_says_what_it_says_alone(tmp_path):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    bank = ProceduralBackgrounds(n=4, classes=2, size=64)
    net = InterferenceNet.from_backbone(LITE, classes=1000, bank=bank, alpha=0.0, draws=1).eval()
    alone = efficientnet_lite0().eval()
    mean, std = (torch.tensor(alone.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(net(x), alone((x - mean) / std).log_softmax(1), rtol=1e-4, atol=1e-4)
        net.save(tmp_path)
        assert torch.equal(InterferenceNet.load(tmp_path)(x), net(x))
