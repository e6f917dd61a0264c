from pathlib import Path

import pytest

from uadat.config import EvaluateConfig, TrainConfig

OUT = Path("out")


def test_what_is_not_given_follows_the_data_set():
    digits, cifar = TrainConfig(out=OUT), TrainConfig(out=OUT, dataset="cifar10", data=OUT)
    assert (digits.radius, digits.model_name, digits.layer_name) == (0.15, "small-resnet", "stage2")
    assert (cifar.radius, cifar.model_name, cifar.layer_name) == (8 / 255, "resnet18", "layer2")
    assert TrainConfig(out=OUT, layer="input", eps="1/10").layer_name == "input"


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"epochs": 0}, {"lr": 0.0}, {"samples": -1}, {"eps": "9"}])
def test_sizes_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
        TrainConfig(out=OUT, **wrong)


def test_evaluation():
    assert EvaluateConfig(run=OUT, eps=("1/10", "0.2")).radii == (0.1, 0.2)
    with pytest.raises(ValueError, match="images must"):
        EvaluateConfig(run=OUT, images=0)
