import copy

import pytest
import timm
import torch

from uadat.timm_classifier import timm_classifier


def test_mean_and_spread_are_applied_inside_and_names_stay():
    model = timm_classifier("resnet10t", 4).eval()
    plain = timm.create_model("resnet10t", num_classes=4).eval()
    assert dict(model.named_modules()).keys() == dict(plain.named_modules()).keys()
    plain.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 32, 32)
    config = plain.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = plain((images - mean) / std)
    assert torch.equal(model(images), expected)
    assert torch.equal(copy.deepcopy(model)(images), expected)


def test_grey_images():
    assert timm_classifier("resnet10t", 4, channels=1)(torch.rand(2, 1, 32, 32)).shape == (2, 4)


def test_an_unknown_name_is_told_with_near_ones():
    with pytest.raises(ValueError, match=r"resnet_18.*near: .*resnet"):
        timm_classifier("resnet_18", 4)
