import copy

import pytest
import timm
import torch
from aisec_common.data import is_fetched

from uadat import UADLoss
from uadat.config import LITE
from uadat.photographs import photographs
from uadat.run import stage_end
from uadat.timm_classifier import layer_of_stride, pretrained_lite0, timm_classifier


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


@pytest.mark.parametrize(
    ("name", "layer"),
    [("convnext_atto", "stages.1"), ("regnety_002", "s2"), ("vit_tiny_patch16_224", None)],
)
def test_the_layer_an_eighth_as_wide_as_the_image(name, layer):
    assert layer_of_stride(timm_classifier(name, 2), 8) == layer


def test_channels_that_come_last_are_no_features_to_perturb():
    model = timm_classifier("resnet10t", 2)
    model.output_fmt = "NHWC"  # as in Swin
    assert layer_of_stride(model, 8) is None


def test_pretrained_weights_stay_and_mean_and_spread_are_their_own(random_lite0):
    model = pretrained_lite0(9).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(
        model.forward_features((images - 0.5) / 0.5), random_lite0.eval().forward_features((images - 0.5) / 0.5)
    )
    assert torch.equal(model(images), model.forward_head(model.forward_features((images - 0.5) / 0.5)))
    assert model(images).shape == (2, 9)


@pytest.mark.checkpoint
@pytest.mark.skipif(not is_fetched(LITE), reason=f"run `aisec data fetch {LITE}`")
def test_imagenet_weights_tell_photographs_apart_and_take_steps_of_the_whole_loss():
    parts = photographs(0, size=96, train=4, validation=9, test=4)
    (images, labels), (held_out, truth) = parts.train.tensors, parts.test.tensors
    model = pretrained_lite0(parts.classes).eval()
    with torch.no_grad():
        known, asked = (
            model.forward_head(model.forward_features(2 * x - 1), pre_logits=True) for x in (images, held_out)
        )
    means = torch.stack([known[labels == label].mean(0) for label in range(parts.classes)])
    right = torch.cdist(asked, means).argmin(1) == truth
    assert right.float().mean() > 0.6  # chance is a ninth

    loss = UADLoss(4 / 255, stage_end(LITE, model), steps=1, warmup=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = model.blocks[0][0].conv_dw.weight.clone()
    for step in range(2):
        found = loss(model.train(), images[step::2], labels[step::2], generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        assert all(0 <= found.parts[name] < 10 for name in ("ce", "align", "stat", "iga", "total"))
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert not torch.equal(before, model.blocks[0][0].conv_dw.weight)
