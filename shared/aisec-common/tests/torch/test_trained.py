import multiprocessing
import time

import pytest
import torch
from aisec_common.torch.trained import trained, trained_file
from torch import nn


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path))
    return tmp_path


def linear():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    return model


def fill(model, value):
    return lambda: nn.init.constant_(model.weight, value)


def test_a_recipe_is_trained_once():
    first, second = linear(), linear()
    assert not trained(first, "line", {"seed": 1}, fill(first, 3.0))
    assert trained(second, "line", {"seed": 1}, lambda: pytest.fail("trained again"))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_another_recipe_or_name_is_another_model():
    for name, recipe in (("line", {"seed": 1}), ("line", {"seed": 2}), ("curve", {"seed": 1})):
        model = linear()
        assert not trained(model, name, recipe, fill(model, recipe["seed"]))


def test_a_training_that_fails_keeps_nothing(cache):
    def fail():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        trained(linear(), "line", {}, fail)
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("content", [b"", b"torn"])
def test_a_torn_file_is_trained_anew(content):
    model = linear()
    trained(model, "line", {}, fill(model, 1.0))
    trained_file("line", {}).write_bytes(content)
    again = linear()
    assert not trained(again, "line", {}, fill(again, 2.0))
    assert trained(linear(), "line", {}, lambda: pytest.fail("trained again"))


def test_tied_weights_are_kept():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    trained(model, "tied", {}, fill(model[0], 5.0))
    again = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    again[1].weight = again[0].weight
    assert trained(again, "tied", {}, lambda: None)
    assert (again[1].weight == 5).all()


def train_slowly(results):
    model = linear()

    def train():
        time.sleep(1)
        nn.init.normal_(model.weight)  # of this process alone

    results.put((trained(model, "line", {}, train), model.weight.tolist()))


@pytest.mark.slow
def test_of_two_processes_one_trains_and_the_other_waits():
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=train_slowly, args=(results,)) for _ in range(2)]
    for process in processes:
        process.start()
    (_, first), (_, second) = told = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(loaded for loaded, _ in told) == [False, True]
    assert first == second
