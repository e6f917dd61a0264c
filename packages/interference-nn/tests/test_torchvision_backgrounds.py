import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from interference_nn.backgrounds import check_bank
from interference_nn.torchvision_backgrounds import DatasetBackgrounds, ImageFolderBackgrounds


def test_a_folder_of_images(tmp_path):
    colours = {"blue": (0, 0, 255), "red": (255, 0, 0)}
    for name, colour in colours.items():
        (tmp_path / name).mkdir()
        for i in range(3):
            pixels = np.zeros((20, 12 + 10 * i, 3), dtype=np.uint8) + np.array(colour, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    bank = ImageFolderBackgrounds(tmp_path, n=5, size=16)
    check_bank(bank)
    assert bank.images.shape == (5, 3, 16, 16)
    assert bank.classes == 2
    for image, label in zip(bank.images, bank.labels.tolist(), strict=True):
        wanted = torch.tensor([[0.0, 0, 1], [1, 0, 0]])[label].reshape(3, 1, 1)
        assert torch.allclose(image, wanted.expand_as(image), atol=1e-6)
    assert torch.equal(bank.images, ImageFolderBackgrounds(tmp_path, n=5, size=16).images)


def test_a_data_set_of_tensors_grey_or_bytes():
    grey = TensorDataset(torch.rand(6, 1, 10, 14), torch.arange(6) % 3)
    bank = DatasetBackgrounds(dataset=grey, classes=3, n=4, size=8)
    assert bank.images.shape == (4, 3, 8, 8)
    assert torch.equal(bank.images[:, 0], bank.images[:, 2])
    check_bank(bank)
    white = TensorDataset(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), torch.tensor([0, 1]))
    assert DatasetBackgrounds(dataset=white, classes=2, size=8).images.unique().tolist() == [1.0]


def test_wrong_sets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no subfolders"):
        ImageFolderBackgrounds(tmp_path)
    with pytest.raises(ValueError, match="holds no subfolders"):
        ImageFolderBackgrounds(tmp_path / "absent")
    with pytest.raises(ValueError, match="is empty"):
        DatasetBackgrounds(dataset=TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0)), classes=2)
    with pytest.raises(ValueError, match="labels of the bank"):
        DatasetBackgrounds(dataset=TensorDataset(torch.rand(3, 3, 8, 8), torch.arange(3)), classes=2, size=8).images
