import multiprocessing
import os
import signal
import time

import pytest
import torch
from aisec_common.testing import end_process
from small_nets import images, labels
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from interference_nn.training import Recipe, train


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 5)
    )


def loader(generator=None):
    data = TensorDataset(images(40), labels(40))
    return DataLoader(data, batch_size=10, shuffle=True, generator=generator)


def objective(net):
    def losses(x, y, generator):
        noise = 0.1 * torch.rand(x.shape, generator=generator)
        yield cross_entropy(net(x + noise), y)

    return losses


def trained(net, recipe, data=None, **changes):
    return train(net, data or loader(), objective(net), recipe, stage="all", **changes)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "constant"])
def test_a_resumed_training_ends_as_an_unbroken_one(tmp_path, optimizer, schedule):
    recipe = Recipe(epochs=4, lr=0.05, optimizer=optimizer, schedule=schedule)
    whole, broken, again = model(), model(), model()
    history = trained(whole, recipe)

    def stop(stage, done, total):
        if done == 11:  # in the third epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(broken, recipe, folder=tmp_path, progress=stop)
    steps = []
    resumed = trained(again, recipe, folder=tmp_path, progress=lambda *told: steps.append(told))
    assert steps[0] == ("all", 9, 16)
    assert resumed == history
    assert equal(whole, again)
    once_more = model()
    assert trained(once_more, recipe, folder=tmp_path) == history
    assert equal(whole, once_more)
    assert history[-1].loss < history[0].loss


def test_order_follows_from_the_seed_for_a_loader_with_its_own_generator():
    first, second, other = model(), model(), model()
    recipe = Recipe(epochs=2, lr=0.05)
    trained(first, recipe, loader(torch.Generator().manual_seed(1)))
    trained(second, recipe, loader(torch.Generator().manual_seed(2)))
    trained(other, recipe, seed=1)
    assert equal(first, second)
    assert not equal(first, other)


def test_other_data_or_settings_are_told(tmp_path):
    recipe = Recipe(epochs=1, lr=0.05)
    made = trained(model(), recipe, folder=tmp_path, settings={"eps": 0.1})
    assert trained(model(), recipe, folder=tmp_path, settings={"eps": 0.1}) == made
    with pytest.raises(ValueError, match=r"with other eps\)"):
        trained(model(), recipe, folder=tmp_path, settings={"eps": 0.2})
    batches = [(images(10, seed=i), labels(10)) for i in range(4)]
    others = [(images(10, seed=9), labels(10)), *batches[1:]]
    known = tmp_path / "batches"
    trained(model(), recipe, batches, folder=known)
    for other, words in (
        (others, r"with other images\)"),
        ([(x, y.flip(0)) for x, y in batches], r"with other labels\)"),
        (batches[:3], r"with other batches\)"),
    ):
        with pytest.raises(ValueError, match=words):
            trained(model(), recipe, other, folder=known)


@pytest.mark.parametrize("own", [None, "loader", "sampler"])
def test_looking_at_the_first_batch_leaves_order_and_augmentation_alone(tmp_path, own):
    """A folder must not change a training, nor where the second stage begins its generator."""

    class Flipped(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x.flip(-1) if torch.rand(()) < 0.5 else x, y

    def data():
        flipped = Flipped(images(40), labels(40))
        generator = None if own is None else torch.Generator().manual_seed(7)
        if own == "sampler":
            return DataLoader(flipped, batch_size=10, sampler=RandomSampler(flipped, generator=generator))
        return DataLoader(flipped, batch_size=10, shuffle=True, generator=generator)

    recipe = Recipe(epochs=2, lr=0.05)
    without, kept = model(), model()
    assert trained(without, recipe, data()) == trained(kept, recipe, used := data(), folder=tmp_path)
    assert equal(without, kept)
    assert trained(model(), recipe, used, folder=tmp_path) == trained(model(), recipe, data(), folder=tmp_path)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    net = model()
    torch.set_rng_state(state)
    trained(net, Recipe(epochs=1, lr=0.05))
    assert torch.equal(torch.get_rng_state(), state)


def test_counts_and_modes():
    net = model()
    (epoch,) = trained(net, Recipe(epochs=1, lr=0.05))
    assert (epoch.images, epoch.forward, epoch.backward, epoch.passes_per_image) == (40, 40, 40, 2.0)
    assert not net.training
    assert trained(net, Recipe(epochs=0)) == ()


def test_frozen_parts_stay_in_eval_mode():
    net = model()
    before = net[2].running_mean.clone()
    train(net, loader(), objective(net), Recipe(epochs=1), stage="all", frozen=(net[2],))
    assert torch.equal(net[2].running_mean, before)


def test_wrong_trainings_are_refused(tmp_path):
    trained(model(), Recipe(epochs=1, lr=0.05), folder=tmp_path)
    with pytest.raises(ValueError, match="of a training with other lr"):
        trained(model(), Recipe(epochs=1, lr=0.5), folder=tmp_path)
    with pytest.raises(ValueError, match="with other seed, images, labels"):  # another order
        trained(model(), Recipe(epochs=1, lr=0.05), folder=tmp_path, seed=1)
    (tmp_path / "all.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match="choose another folder") as caught:
        trained(model(), Recipe(epochs=1, lr=0.05), folder=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="loader is empty"):
        train(model(), [], objective(model()), Recipe(epochs=1), stage="all")
    with pytest.raises(ValueError, match="loss is nan"):
        trained(model(), Recipe(epochs=3, lr=1e30))
    for wrong in ({"epochs": -1}, {"epochs": 1, "optimizer": "adam"}, {"epochs": 1, "schedule": "step"}):
        with pytest.raises(ValueError, match="must be"):
            Recipe(**wrong)


def long_training(folder):
    torch.set_num_threads(1)
    trained(model(), Recipe(epochs=60, lr=0.01), folder=folder)


@pytest.mark.slow
def test_killed_and_resumed(tmp_path):
    worker = multiprocessing.get_context("spawn").Process(target=long_training, args=(tmp_path,))
    worker.start()
    deadline = time.monotonic() + 100
    while not (tmp_path / "all.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    recipe = Recipe(epochs=60, lr=0.01)
    whole, resumed = model(), model()
    assert trained(whole, recipe) == trained(resumed, recipe, folder=tmp_path)
    assert equal(whole, resumed)


def one_of_two(rank, port, folder):
    from accelerate import Accelerator

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        net[1].weight.fill_(0.01)
        net[1].bias.zero_()

    def losses(x, y, generator):
        yield cross_entropy(net(x), y)

    data = DataLoader(TensorDataset(images(40), labels(40)), batch_size=10)
    (epoch,) = train(
        net, data, losses, Recipe(epochs=1, lr=0.1), stage="all", accelerator=accelerator, folder=folder / str(rank)
    )
    torch.save({**net.state_dict(), "images": torch.tensor(epoch.images)}, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
    end_process()


@pytest.mark.slow
def test_two_processes_train_as_one_on_their_common_batches(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=one_of_two, args=(rank, port, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(250)  # loading torch twice takes its time on a busy machine
        assert worker.exitcode == 0
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert first["images"] == second["images"] == 20
    assert torch.equal(first["1.weight"], second["1.weight"])
    assert (tmp_path / "0" / "all.pt").exists()
    assert not (tmp_path / "1" / "all.pt").exists()

    alone = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        alone[1].weight.fill_(0.01)
        alone[1].bias.zero_()

    def losses(x, y, generator):
        yield cross_entropy(alone(x), y)

    data = DataLoader(TensorDataset(images(40), labels(40)), batch_size=20)
    train(alone, data, losses, Recipe(epochs=1, lr=0.1), stage="all")
    assert torch.allclose(alone[1].weight, first["1.weight"], atol=1e-6)
