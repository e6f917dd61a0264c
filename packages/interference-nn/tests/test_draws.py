import pytest
import torch
from scipy.stats import chisquare

from interference_nn.draws import fixed_draws, keyed_draws, random_draws


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("replacement", [True, False])
def test_random_draws_are_uniform_and_follow_the_generator(replacement):
    drawn = random_draws(4000, 4, 8, replacement=replacement, generator=rng())
    assert chisquare(drawn.backgrounds.flatten().bincount(minlength=8)).pvalue > 0.001
    assert chisquare(drawn.places.flatten().bincount(minlength=4)).pvalue > 0.001
    again = random_draws(4000, 4, 8, replacement=replacement, generator=rng())
    assert torch.equal(drawn.backgrounds, again.backgrounds)
    other = random_draws(4000, 4, 8, replacement=replacement, generator=rng(1))
    assert not torch.equal(drawn.backgrounds, other.backgrounds)
    repeats = torch.tensor([len(set(row)) < 4 for row in drawn.backgrounds.tolist()])
    assert repeats.any() == replacement


def test_without_a_generator_the_default_one_is_used():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = random_draws(8, 4, 16).backgrounds
        second = random_draws(8, 4, 16).backgrounds
        torch.manual_seed(5)
        assert torch.equal(first, random_draws(8, 4, 16).backgrounds)
    assert not torch.equal(first, second)


def test_fixed_draws_are_the_first():
    assert fixed_draws(2, 5, 5).backgrounds.tolist() == [[0, 1, 2, 3, 4]] * 2
    with pytest.raises(ValueError, match="draws"):
        fixed_draws(1, 6, 5)


@pytest.mark.parametrize("replacement", [True, False])
def test_keyed_draws_are_a_function_of_key_and_image(replacement):
    images = torch.rand(2000, 1, 4, 4, generator=rng())
    drawn = keyed_draws(images, b"key", 4, 8, replacement=replacement)
    order = torch.randperm(len(images), generator=rng())
    shuffled = keyed_draws(images[order], b"key", 4, 8, replacement=replacement)
    assert torch.equal(shuffled.backgrounds, drawn.backgrounds[order])
    assert torch.equal(shuffled.places, drawn.places[order])
    assert chisquare(drawn.backgrounds.flatten().bincount(minlength=8)).pvalue > 0.001
    assert chisquare(drawn.places.flatten().bincount(minlength=4)).pvalue > 0.001
    changed = images.clone()
    changed[:, 0, 0, 0] = torch.nextafter(changed[:, 0, 0, 0], torch.tensor(2.0))
    for other in (keyed_draws(images, b"kez", 4, 8), keyed_draws(changed, b"key", 4, 8)):
        assert (other.backgrounds == drawn.backgrounds).float().mean() < 0.2  # 1/8 by chance
    if not replacement:
        assert all(len(set(row)) == 4 for row in drawn.backgrounds.tolist())
