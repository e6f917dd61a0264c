import json

import pytest
import torch
from small_nets import bank, images, net
from torch import nn

from interference_nn import InterferenceNet, noise_backgrounds
from interference_nn.backbone import Backbone
from interference_nn.network import conv_backbone


@pytest.mark.parametrize("interference", ["superpose", "channel"])
@pytest.mark.parametrize("floats", [False, True])
def test_a_network_comes_back(tmp_path, interference, floats):
    made = net(interference=interference, draws=3, bank=noise_backgrounds(bank()) if floats else bank())
    made.save(tmp_path)
    again = InterferenceNet.load(tmp_path, backbone=conv_backbone(width=4))
    x = images()
    assert torch.equal(again(x, torch.Generator().manual_seed(0)), made(x, torch.Generator().manual_seed(0)))
    assert again.settings == made.settings
    assert torch.equal(again.bank.images, made.bank.images)
    assert not again.training


def test_normalisation_comes_back(tmp_path):
    backbone = Backbone(nn.Flatten(), dim=64, channels=1, mean=0.3, std=0.2)
    made = net(backbone, mode="fixed")
    made.save(tmp_path)
    assert torch.equal(InterferenceNet.load(tmp_path, backbone=nn.Flatten())(images()), made(images()))


def test_the_key_stays_out_of_the_files(tmp_path):
    made = net(mode="keyed", key=b"very secret")
    made.save(tmp_path)
    assert not any(b"very secret" in file.read_bytes() for file in tmp_path.iterdir())
    with pytest.raises(ValueError, match="key is missing"):
        InterferenceNet.load(tmp_path, backbone=conv_backbone(width=4))
    again = InterferenceNet.load(tmp_path, backbone=conv_backbone(width=4), key=b"very secret")
    assert torch.equal(again(images()), made(images()))


def broken(folder, how):
    net().save(folder)
    about = folder / "interference.json"
    weights = folder / "interference.safetensors"
    if how == "weights":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    elif how == "torn":
        about.write_text(about.read_text()[:40])
    elif how == "schema":
        about.write_text(json.dumps({**json.loads(about.read_text()), "schema": "other"}))
    elif how == "missing":
        weights.unlink()
    elif how == "settings":
        content = json.loads(about.read_text())
        about.write_text(json.dumps({**content, "settings": {**content["settings"], "draws": 0}}))


@pytest.mark.parametrize("how", ["weights", "torn", "schema", "missing", "settings"])
def test_broken_files_are_refused(tmp_path, how):
    broken(tmp_path, how)
    with pytest.raises(ValueError, match=tmp_path.name) as caught:
        InterferenceNet.load(tmp_path, backbone=conv_backbone(width=4))
    assert "\n" not in str(caught.value)


def test_a_module_of_ones_own_has_to_be_given_and_fit(tmp_path):
    net().save(tmp_path)
    with pytest.raises(ValueError, match="pass one as backbone="):
        InterferenceNet.load(tmp_path)
    with pytest.raises(ValueError, match="no interference network"):
        InterferenceNet.load(tmp_path, backbone=conv_backbone(width=8))
