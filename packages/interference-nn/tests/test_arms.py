import pytest
import torch

from interference_nn.arms import ARMS, DRAWS, Bench
from interference_nn.baselines import NoiseAverage
from interference_nn.net import InterferenceNet


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """One epoch of every arm, kept among the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AISEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Bench(0, epochs=1)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_classifier_in_eval_mode(bench, arm):
    model = bench.model(arm)
    images = bench.digits.test_images[:5]
    assert not model.training
    assert model(images).shape == (5, 10)
    assert bool(getattr(model, "random", False)) == (arm in ("interference", "noise", "noise_average", "adversarial"))


def test_counted_passes(bench):
    """Expected 5 of the specification: forward and backward passes a training image, never time."""
    own = {arm: bench.passes(arm) - bench.passes("plain") for arm in ARMS if arm != "plain"}
    assert bench.passes("plain") == 2
    assert own["interference"] == 3  # the heads' epoch has no backward pass through the backbone
    assert own["pgd_at"] == 16
    assert own["pgd_at"] / (own["interference"] - 1) == 8
    assert own["mixup"] == 2
    assert own["noise_average"] == 0
    at_25 = (25 * 2 + 25 * 16) / (25 * 2 + 1 + 25 * 2)
    assert at_25 > 4


def test_the_controls_differ_in_the_key_part_alone(bench):
    net, noise, bare = (bench.model(arm) for arm in ("interference", "noise", "no_blend"))
    assert isinstance(net, InterferenceNet)
    assert torch.equal(net.bank_images, bench.bank.images)
    assert abs(noise.bank_images.mean() - net.bank_images.mean()) < 0.02
    assert abs(noise.bank_images.std() / net.bank_images.std() - 1) < 0.2
    assert torch.equal(noise.bank_labels, net.bank_labels)
    assert (net.settings.draws, bare.settings.alpha) == (DRAWS, 0.0)
    images = bench.digits.test_images[:5]
    assert torch.allclose(bare(images), bare.without_interference(images), atol=1e-6)
    average = bench.model("noise_average")
    assert isinstance(average, NoiseAverage)
    assert average.sigma == pytest.approx(0.5 * float(net.bank_images.std()))


def test_the_seed_decides_and_the_cache_is_read(bench, tmp_path, monkeypatch):
    again = Bench(0, epochs=1)
    assert torch.equal(again.plain.head.weight, bench.plain.head.weight)
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path))
    anew = Bench(0, epochs=1)
    assert torch.equal(anew.plain.head.weight, bench.plain.head.weight)
    assert anew.passes("plain") == bench.passes("plain")
    assert not torch.equal(Bench(1, epochs=1).plain.head.weight, bench.plain.head.weight)
