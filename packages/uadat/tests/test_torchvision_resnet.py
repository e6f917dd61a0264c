import torch
from aisec_common.torch.hooks import capture

from uadat.torchvision_resnet import SmallImageResNet18


def test_the_stem_keeps_the_resolution_and_the_stages_their_names():
    model = SmallImageResNet18(7, channels=1).eval()
    with capture(model, ["conv1", "layer2", "layer4"]) as seen:
        assert model(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    assert [tuple(seen[name].shape[1:]) for name in ("conv1", "layer2", "layer4")] == [
        (64, 32, 32),
        (128, 16, 16),
        (512, 4, 4),
    ]
    assert sum(p.numel() for p in SmallImageResNet18(10).parameters()) == 11_173_962  # as in the literature


def test_pixels_are_normalised_inside():
    model = SmallImageResNet18(3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0)).eval()
    plain = SmallImageResNet18(3, mean=(0.0,), std=(1.0,)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k not in ("mean", "std")}, strict=False)
    images = torch.rand(2, 3, 32, 32)
    by_hand = (images - model.mean) / model.std
    assert torch.allclose(model(images), plain(by_hand), atol=1e-6)
