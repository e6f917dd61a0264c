import pytest
import torch
from small_nets import images
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from interference_nn import InterferenceNet, ProceduralBackgrounds
from interference_nn.backbone import backbone_of


def vit():
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    return ViTForImageClassification(config).eval()


def resnet():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5, layer_type="basic")
    return ResNetForImageClassification(config).eval()


@pytest.mark.parametrize("make", [vit, resnet])
def test_features_and_head_are_those_of_the_classifier(make):
    torch.manual_seed(0)
    model = make()
    x = images(2, channels=3, size=16)
    backbone = backbone_of(model).eval()
    weight, bias = backbone.pretrained
    with torch.no_grad():
        wanted = model(pixel_values=(x - 0.5) / 0.5).logits
        assert torch.allclose(backbone(x) @ weight.T + bias, wanted, atol=1e-5)


def test_a_folder_and_a_saved_net(tmp_path):
    torch.manual_seed(0)
    model = vit()
    model.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 0.5, 0.25]).save_pretrained(tmp_path / "vit")
    bank = ProceduralBackgrounds(n=4, classes=2, size=16)
    net = InterferenceNet.from_backbone(f"hf:{tmp_path / 'vit'}", classes=5, bank=bank, alpha=0.0, draws=1).eval()
    x = images(2, channels=3, size=16)
    mean, std = torch.tensor([[0.1, 0.2, 0.3], [1.0, 0.5, 0.25]]).reshape(2, 1, 3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(net(x), model(pixel_values=(x - mean) / std).logits.log_softmax(1), atol=1e-5)
    net.save(tmp_path / "net")
    assert torch.equal(InterferenceNet.load(tmp_path / "net")(x), net(x))


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded as an image classifier") as caught:
        backbone_of(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="weights"):
        backbone_of("hf:some/where", weights="pretrained")
