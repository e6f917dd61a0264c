import pytest
import torch
from small_nets import Pair, images, labels
from torch import nn

from interference_nn.baselines import METHODS, NoiseAverage, fit_baseline
from interference_nn.net import CHUNK
from interference_nn.training import Recipe

BATCHES = [(images(20, seed=i), labels(20)) for i in range(3)]
PASSES = {"plain": 2, "mixup": 2, "at": 16, "fast": 4, "free": 8}


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_at_its_price_and_by_its_seed(method):
    first, second = model(), model()
    recipe = Recipe(epochs=6, lr=0.01, optimizer="adamw")
    history = fit_baseline(first, BATCHES, method, recipe, eps=0.1)
    assert {epoch.passes_per_image for epoch in history} == {PASSES[method]}
    assert history[-1].loss < history[0].loss
    assert history == fit_baseline(second, BATCHES, method, recipe, eps=0.1)
    assert not first.training


def test_a_folder_of_another_training_is_refused_by_name(tmp_path):
    recipe = Recipe(epochs=1, lr=0.01)

    def again(method, **changes):
        return fit_baseline(model(), BATCHES, method, recipe, folder=tmp_path, **changes)

    made = {method: again(method, eps=0.1) for method in METHODS}
    for method, changes, words in (
        ("at", {"eps": 0.2}, "eps"),
        ("at", {"eps": 0.1, "steps": 3}, "steps"),
        ("fast", {"eps": 0.2}, "eps"),
        ("free", {"eps": 0.1, "replays": 2}, "replays"),
        ("mixup", {"label_smoothing": 0.0}, "label_smoothing"),
    ):
        with pytest.raises(ValueError, match=rf"with other {words}\); choose another folder"):
            again(method, **changes)
    assert again("plain", eps=0.2, steps=3) == made["plain"]  # it attacks nothing
    assert again("at", eps=0.1, replays=9) == made["at"]


class Recorder(nn.Module):
    """Linear, so that the worst perturbation is known; keeps what it sees in training."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 2)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("method", ["at", "fast", "free"])
def test_adversarial_methods_train_on_images_in_the_ball(method):
    made = Recorder()
    x, y = images(20), labels(20, 2)
    fit_baseline(made, [(x, y)], method, Recipe(epochs=1, lr=1e-9, schedule="constant"), eps=0.1, replays=6)
    last = made.seen[-1]
    assert (last - x).abs().max() <= 0.1 + 1e-6
    assert last.min() >= 0
    assert last.max() <= 1
    weight = made.layer.weight
    gain = (weight[1] - weight[0]).reshape(1, 1, 8, 8) * torch.where(y == 0, 1, -1).reshape(-1, 1, 1, 1)
    worst = (x + 0.1 * gain.sign()).clamp(0, 1)
    # one step of fast AT is longer than eps but not than the ball is wide: a pixel that starts far off stays inside
    share = 0.6 if method == "fast" else 0.99
    assert torch.isclose(last, worst, atol=1e-5).float().mean() >= share


def test_mixup_mixes_images_and_labels():
    made = Recorder()
    x, y = torch.zeros(20, 1, 8, 8), labels(20, 2)
    x[y == 1] = 1.0
    (epoch,) = fit_baseline(
        made, [(x, y)], "mixup", Recipe(epochs=1, lr=1e-9, schedule="constant"), label_smoothing=0.0
    )
    mixed = made.seen[0]
    levels = mixed.flatten(1).mean(1)
    assert ((levels > 0.01) & (levels < 0.99)).any()
    log_p = made.layer(mixed.flatten(1)).log_softmax(1)
    # a class is a grey level here, so that the level of the mixture is its share of class 1
    wanted = -(levels * log_p[:, 1] + (1 - levels) * log_p[:, 0]).mean()
    assert epoch.loss == pytest.approx(wanted.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit_baseline(model(), BATCHES, "trades", Recipe(epochs=1)), "method must be one of"),
        (lambda: fit_baseline(model(), BATCHES, "at", Recipe(epochs=1)), "eps must be positive"),
        (lambda: fit_baseline(model(), BATCHES, "free", Recipe(epochs=1), eps=0.1, replays=0), "replays"),
        (lambda: fit_baseline(model(), [(images() + 1, labels())], "plain", Recipe(epochs=1)), "images must lie"),
        (lambda: fit_baseline(model(), [(images(), labels() + 1)], "plain", Recipe(epochs=1)), "labels must lie"),
        (lambda: fit_baseline(nn.Sequential(nn.Linear(8, 8), Pair()), BATCHES, "plain", Recipe(epochs=1)), "tuple"),
        (lambda: NoiseAverage(model(), sigma=-0.1), "sigma"),
        (lambda: NoiseAverage(model(), sigma=0.1, draws=0), "draws"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()


def test_the_noise_average_against_a_loop(monkeypatch):
    classifier = model().eval()
    made = NoiseAverage(classifier, sigma=0.2, draws=3)
    x = images()
    noise = torch.randn(18, 1, 8, 8, generator=torch.Generator().manual_seed(0)).reshape(6, 3, 1, 8, 8)
    each = [classifier((x + 0.2 * noise[:, m]).clamp(0, 1)).softmax(1) for m in range(3)]
    assert torch.allclose(made(x, torch.Generator().manual_seed(0)).exp(), sum(each) / 3, atol=1e-6)
    assert torch.allclose(NoiseAverage(classifier, sigma=0.0)(x), made.without_interference(x), atol=1e-6)
    assert made.random
    assert not torch.allclose(made(x), made(x), atol=1e-4)
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(made.once(x, rng), NoiseAverage(classifier, sigma=0.2, draws=1)(x, rng.manual_seed(0)))
    monkeypatch.setitem(CHUNK, "cpu", 1)
    assert made(x).exp().sum(1).allclose(torch.ones(6), atol=1e-5)
