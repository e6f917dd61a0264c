import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from uadat.image_splits import as_tensors
from uadat.run import Run, build_model, load_data, stage_end

RUN = Run(
    dataset="digits",
    size=64,
    validation=50,
    model="small-resnet",
    classes=10,
    channels=1,
    eps=0.15,
    loss="uad",
    seed=3,
)


def test_a_saved_run_gives_model_and_data_again(tmp_path):
    RUN.save(tmp_path)
    RUN.save(tmp_path)  # the same run goes on
    run = Run.load(tmp_path)
    assert run == RUN
    model = build_model("small-resnet", 10, 1, seed=8).eval()
    save_file(model.state_dict(), tmp_path / "best.safetensors")
    images = as_tensors(run.data(None).test, 5)[0]
    assert torch.equal(run.trained(tmp_path, "best")(images), model(images))
    assert len(run.data(None).validation) == 50


def test_foreign_and_torn_files_are_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"run\.json"):
        Run.load(tmp_path)
    RUN.save(tmp_path)
    with pytest.raises(ValueError, match=r"best\.safetensors"):
        RUN.trained(tmp_path, "best")
    (tmp_path / "best.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"best\.safetensors") as caught:
        RUN.trained(tmp_path, "best")
    assert "\n" not in str(caught.value)
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**content, "eps": 0.2, "seed": 4}))
    with pytest.raises(ValueError, match="another eps and seed"):
        RUN.save(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json"):
        Run.load(tmp_path)


@pytest.mark.parametrize("name", ["small-resnet", "timm:resnet10t"])
def test_models_come_from_a_seed_alone(name):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two, other = (build_model(name, 4, 3, seed=seed).eval() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one(torch.rand(1, 3, 16, 16)).shape == (1, 4)
    weights = [nn.utils.parameters_to_vector(model.parameters()) for model in (one, two, other)]
    assert torch.equal(*weights[:2])
    assert not torch.equal(*weights[1:])


@pytest.mark.parametrize(("name", "size"), [("resnet18", 11_173_962), ("wrn-34-10", 46_160_474)])
def test_models_of_the_literature_have_their_size(name, size):
    with torch.device("meta"):
        model = build_model(name, 10, 3, seed=0)
    assert sum(weight.numel() for weight in model.parameters()) == size


def test_a_pretrained_model_is_new_in_its_last_layer_alone_and_its_run_needs_no_checkpoint(
    tmp_path, monkeypatch, random_lite0
):
    one, two = (build_model("efficientnet-lite0", 4, 3, seed=seed).state_dict() for seed in (0, 1))
    assert {name for name in one if not torch.equal(one[name], two[name])} == {"classifier.weight", "classifier.bias"}
    save_file(one, tmp_path / "best.safetensors")
    monkeypatch.setattr("uadat.timm_classifier.efficientnet_lite0", lambda: pytest.fail("read the checkpoint"))
    run = dataclasses.replace(RUN, dataset="photographs", model="efficientnet-lite0", classes=4, channels=3)
    loaded = run.trained(tmp_path, "best")
    assert all(torch.equal(tensor, one[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("name", "layer"),
    [("small-resnet", "stage2"), ("timm:resnet10t", "layer2"), ("timm:tf_efficientnet_lite0", "blocks.2")],
)
def test_features_are_perturbed_at_the_end_of_a_stage_of_the_model(name, layer):
    model = build_model(name, 4, 3, seed=0)
    assert stage_end(name, model) == layer
    assert layer in dict(model.named_modules())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: build_model("efficientnet-lite0", 10, 1, seed=0), "takes colour images"),
        (lambda: build_model("resnet19", 10, 1, seed=0), "model must be"),
        (lambda: load_data("cifar10", None, size=64), "data"),
    ],
)
def test_misuse(call, words):
    with pytest.raises(ValueError, match=words):
        call()
