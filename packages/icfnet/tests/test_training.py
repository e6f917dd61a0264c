import pytest
import torch
from safetensors.torch import load_file
from small_cohort import small_cohort, small_inputs, small_network

from icfnet.bins import TimeBins
from icfnet.training import CHECKPOINT, Schedule, train


class Killed(Exception):
    pass


def parts():
    cohort = small_cohort()
    inputs, _ = small_inputs(cohort)
    label = torch.from_numpy(TimeBins.fit(cohort.time, cohort.event).label(cohort.time))
    return inputs, label, torch.from_numpy(cohort.event)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_killed_run_ends_in_the_same_weights(tmp_path, optimizer):
    schedule = Schedule(epochs=3, batch_size=8, learning_rate=1e-2, optimizer=optimizer, max_patches=4)
    through = small_network()
    losses = train(through, *parts(), schedule)

    def kill(what, done, total):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        train(small_network(), *parts(), schedule, out=tmp_path, recipe="r", show=kill)
    shown = []
    resumed = small_network(seed=5)
    again = train(resumed, *parts(), schedule, out=tmp_path, recipe="r", show=lambda *told: shown.append(told))
    assert shown == [("epochs", 3, 3)]
    assert again == losses
    for name, weight in through.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    finished = small_network(seed=6)
    assert train(finished, *parts(), schedule, out=tmp_path, recipe="r") == losses
    assert not finished.training
    assert load_file(tmp_path / CHECKPOINT).keys()


def test_another_recipe_is_refused(tmp_path):
    train(small_network(), *parts(), Schedule(epochs=1), out=tmp_path, recipe="a")
    with pytest.raises(ValueError, match=r"out: .* another cohort or setting"):
        train(small_network(), *parts(), Schedule(epochs=1), out=tmp_path, recipe="b")


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    train(small_network(), *parts(), Schedule(epochs=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_loss_falls():
    losses = train(small_network(), *parts(), Schedule(epochs=8, batch_size=8, learning_rate=3e-3))
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"max_patches": 0}, "max_patches"),
    ],
)
def test_wrong_schedules(changes, words):
    with pytest.raises(ValueError, match=words):
        Schedule(**changes)
