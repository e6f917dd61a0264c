import pytest
import torch
from sklearn.linear_model import LogisticRegression

from interference_nn import Backgrounds, ProceduralBackgrounds, noise_backgrounds
from interference_nn.backgrounds import check_bank, target_like


def test_procedural_backgrounds_are_seeded_bytes_in_range():
    bank = ProceduralBackgrounds(n=32, classes=8, size=16)
    assert bank.images.shape == (32, 3, 16, 16)
    assert bank.images.min() >= 0
    assert bank.images.max() <= 1
    assert torch.equal((bank.images * 255).round() / 255, bank.images)
    assert torch.equal(bank.images, ProceduralBackgrounds(n=32, classes=8, size=16).images)
    assert not torch.equal(bank.images, ProceduralBackgrounds(n=32, classes=8, size=16, seed=1).images)
    assert len({tuple(image.flatten().tolist()) for image in bank.images}) == 32
    check_bank(bank)


def test_a_grating_keeps_its_orientation_under_fourier():
    bank = ProceduralBackgrounds(n=64, classes=4, size=32, channels=1)  # four classes: gratings only
    spectrum = torch.fft.fft2(bank.images[:, 0] - bank.images[:, 0].mean((1, 2), keepdim=True)).abs()
    at = spectrum[:, :, :16].flatten(1).argmax(1)
    y, x = at // 16, at % 16
    y = torch.where(y >= 16, y - 32, y)
    found = torch.atan2(y.double(), x.double()) % torch.pi
    wanted = torch.pi * bank.labels / 4
    off = (found - wanted + torch.pi / 2) % torch.pi - torch.pi / 2
    assert (off.abs() < torch.pi / 8 + 0.25).float().mean() > 0.9  # a quarter of a class, and the grid of frequencies


def test_the_labels_can_be_learned_from_the_images():
    bank = ProceduralBackgrounds(n=1200, classes=8, size=16, channels=1)
    power = torch.fft.fft2(bank.images[:, 0] - bank.images[:, 0].mean((1, 2), keepdim=True)).abs().log1p().flatten(1)
    model = LogisticRegression(max_iter=300).fit(power[:1000], bank.labels[:1000])
    assert model.score(power[1000:], bank.labels[1000:]) > 0.5  # chance is 1/8


def test_noise_backgrounds_keep_statistics_and_labels_only():
    bank = ProceduralBackgrounds(n=64, classes=8, size=16)
    noise = noise_backgrounds(bank)
    assert torch.equal(noise.labels, bank.labels)
    assert (noise.images.mean((0, 2, 3)) - bank.images.mean((0, 2, 3))).abs().max() < 0.03
    assert (noise.images.std() / bank.images.std() - 1).abs() < 0.15
    centred = noise.images - noise.images.mean()
    assert (centred[..., 1:] * centred[..., :-1]).mean().abs() < 0.1 * centred.var()
    assert torch.equal(noise.images, noise_backgrounds(bank).images)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "words"),
    [
        (torch.zeros(0, 3, 4, 4), torch.zeros(0).long(), 2, "bank is empty"),
        (torch.full((2, 3, 4, 4), 2.0), torch.arange(2), 2, "images of the bank must lie in"),
        (torch.full((2, 3, 4, 4), torch.nan), torch.arange(2), 2, "NaN"),
        (torch.zeros(2, 3, 4, 4), torch.arange(3), 3, "shape"),
        (torch.zeros(2, 3, 4, 4), torch.arange(2), 1, "labels of the bank"),
        (torch.zeros(2, 3, 4, 4), torch.tensor([-1, 0]), 2, "labels of the bank"),
    ],
)
def test_wrong_banks_are_refused(images, labels, classes, words):
    with pytest.raises(ValueError, match=words):
        Backgrounds(images=images, labels=labels, classes=classes)


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="integers"):
        Backgrounds(images=torch.zeros(2, 3, 4, 4), labels=torch.zeros(2), classes=2)
    with pytest.raises(TypeError, match="floats"):
        Backgrounds(images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels=torch.arange(2), classes=2)
    with pytest.raises(ValueError, match="n of the bank"):
        ProceduralBackgrounds(n=3, classes=8)
    with pytest.raises(ValueError, match="size"):
        ProceduralBackgrounds(size=0)


def test_backgrounds_that_look_like_targets_are_told():
    bank = ProceduralBackgrounds(n=8, classes=4, size=8)
    bright = bank.images.mean((1, 2, 3))
    middle = bright.median()

    def classifier(images):
        score = 1000 * (images.mean((1, 2, 3)) - middle - 1e-3)
        return torch.stack([score, torch.zeros_like(score), torch.zeros_like(score)], dim=1).clamp(min=0)

    with pytest.warns(UserWarning, match="look like target classes"):
        found = target_like(bank, classifier, batch=3)
    assert found.tolist() == ((bright > middle + 0.005).nonzero()[:, 0]).tolist()
