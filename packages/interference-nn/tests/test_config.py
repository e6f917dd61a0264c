from pathlib import Path

import pytest

from interference_nn.config import CompareConfig, FitConfig, LadderConfig

HERE = Path()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FitConfig(backbone="resnet18", data=HERE, out=HERE, bank=0), "--bank"),
        (lambda: FitConfig(backbone="resnet18", data=HERE, out=HERE, finetune_epochs=-1), "--finetune-epochs"),
        (lambda: LadderConfig(data=HERE, out=HERE), "--net"),
        (lambda: LadderConfig(data=HERE, out=HERE, net=HERE, weights="x"), "--weights"),
        (lambda: LadderConfig(data=HERE, out=HERE, net=HERE, mode="keyed"), "--key"),
        (lambda: LadderConfig(data=HERE, out=HERE, net=HERE, control=True), "--control needs --backbone"),
        (lambda: LadderConfig(data=HERE, out=HERE, net=HERE, eps=()), "--eps"),
        (lambda: LadderConfig(data=HERE, out=HERE, net=HERE, eps=("8/255", "0")), "--eps"),
        (lambda: LadderConfig(data=HERE, out=HERE, net=HERE, eps=("4",)), "such as 8/255, not 4"),
        (lambda: FitConfig(backbone="resnet18", data=HERE, out=HERE, eps="1"), "such as 8/255, not 1"),
        (lambda: LadderConfig(data=HERE, out=HERE, net=HERE, images=0), "--images"),
        (lambda: CompareConfig(out=HERE, images=0), "--images"),
    ],
)
def test_misuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_both_a_network_and_its_undefended_backbone_may_be_given():
    config = LadderConfig(data=HERE, out=HERE, net=HERE, backbone="resnet18", weights="IMAGENET1K_V1")
    assert config.radii == (4 / 255, 16 / 255)
    assert FitConfig(backbone="resnet18", data=HERE, out=HERE, eps="0.0157").radius == 0.0157
