import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")
from PIL import Image

from interference_nn.torchvision_images import image_folder, some_images


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.full((40, 60, 3), 80 * label + 10, dtype=np.uint8) + rng.integers(0, 9, (40, 60, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_square_images_in_range_by_class(folder):
    data = image_folder(folder, size=16)
    assert data.classes == ["ant", "bee"]
    images, labels = some_images(data, 4, seed=1)
    assert images.shape == (4, 3, 16, 16)
    assert images.min() >= 0
    assert images.max() <= 1
    assert ((images.mean((1, 2, 3)) > 0.2).long() == labels).all()
    assert torch.equal(images, some_images(data, 4, seed=1)[0])
    assert len(some_images(data, 100)[0]) == 6


def test_augmented_images_differ_from_call_to_call(folder):
    data = image_folder(folder, size=16, augment=True)
    torch.manual_seed(0)
    assert not torch.equal(data[0][0], data[0][0])
    assert data[0][0].shape == (3, 16, 16)


def test_misuse(tmp_path):
    with pytest.raises(ValueError, match="subfolders"):
        image_folder(tmp_path / "none", size=16)
