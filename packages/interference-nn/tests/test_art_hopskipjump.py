import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("art")

from interference_nn.art_hopskipjump import art_installed, hopskipjump


@pytest.fixture
def linear():
    """Class 1 where the mean of 16 pixels exceeds .5: the l_inf distance of an image to the boundary is |mean - .5|."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([torch.zeros(16), torch.ones(16) / 16]))
        model[1].bias.copy_(torch.tensor([0.0, -0.5]))
    return model


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(0)
    means = torch.tensor([0.47, 0.44, 0.3, 0.55])
    spread = torch.rand(4, 1, 4, 4, generator=rng) * 0.2
    return spread - spread.mean((1, 2, 3), keepdim=True) + means[:, None, None, None]


LABELS = torch.tensor([0, 0, 0, 1])


def test_finds_what_lies_within_reach_and_nothing_else(linear, images):
    found = hopskipjump(3000)(linear, images, LABELS, 0.1, torch.Generator().manual_seed(0))
    assert (found - images).abs().max() <= 0.1 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert (linear(found).argmax(1) != LABELS).tolist() == [True, True, False, True]


def test_the_queries_are_counted(linear, images):
    asked = []

    def counting(batch):
        asked.append(len(batch))
        return linear(batch)

    hopskipjump(500)(counting, images[:1], LABELS[:1], 0.1, torch.Generator().manual_seed(0))
    assert 500 <= sum(asked) < 500 + 256  # the last batch may go over


def test_the_generator_decides_and_the_global_one_is_left_alone(linear, images):
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    attack = hopskipjump(300)
    one, two, other = (attack(linear, images, LABELS, 0.1, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert np.random.get_state()[1].tolist() == before


def test_a_random_model_ends_too(images):
    rng = torch.Generator().manual_seed(0)

    def coin(batch):
        return torch.rand(len(batch), 2, generator=rng)

    found = hopskipjump(400)(coin, images, LABELS, 0.05, torch.Generator().manual_seed(0))
    assert (found - images).abs().max() <= 0.05 + 1e-6


def test_a_model_of_one_answer_keeps_its_images(images):
    found = hopskipjump(200)(
        lambda batch: torch.tensor([[1.0, 0.0]]).repeat(len(batch), 1),
        images[:3],
        LABELS[:3],
        0.1,
        torch.Generator().manual_seed(0),
    )
    assert torch.equal(found, images[:3])


def test_misuse():
    with pytest.raises(ValueError, match="queries"):
        hopskipjump(10)


def test_absence_is_told(monkeypatch):
    assert art_installed()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not art_installed()
