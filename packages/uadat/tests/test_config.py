from pathlib import Path

import pytest

from uadat.config import EvaluateConfig, TrainConfig

OUT = Path("out")


def test_what_is_not_given_follows_the_data_set():
    digits, cifar = TrainConfig(out=OUT), TrainConfig(out=OUT, dataset="cifar10", data=OUT)
    photographs = TrainConfig(out=OUT, dataset="photographs")
    assert (digits.radius, digits.model_name) == (0.15, "small-resnet")
    assert (cifar.radius, cifar.model_name, cifar.side) == (8 / 255, "resnet18", 64)
    assert (photographs.radius, photographs.model_name, photographs.side) == (4 / 255, "efficientnet-lite0", 128)
    assert TrainConfig(out=OUT, dataset="photographs", size=96).side == 96
    assert (digits.rate, cifar.rate, photographs.rate) == (0.1, 0.1, 0.03)
    assert TrainConfig(out=OUT, dataset="photographs", lr=0.2).rate == 0.2


@pytest.mark.parametrize("wrong", [{"dataset": "folder"}, {"dataset": "photographs", "data": OUT}, {"data": OUT}])
def test_a_folder_belongs_to_the_data_that_come_with_no_library(wrong):
    with pytest.raises(ValueError, match="data must name a folder for every dataset but digits and photographs"):
        TrainConfig(out=OUT, **wrong)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"epochs": 0}, {"lr": 0.0}, {"samples": -1}, {"eps": "9"}])
def test_sizes_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
        TrainConfig(out=OUT, **wrong)


def test_evaluation():
    assert EvaluateConfig(run=OUT, eps=("1/10", "0.2")).radii == (0.1, 0.2)
    with pytest.raises(ValueError, match="images must"):
        EvaluateConfig(run=OUT, images=0)
