import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from uadat.image_splits import as_tensors, loader
from uadat.torchvision_data import cifar, image_folder

RNG = np.random.default_rng(0)
PIXELS = {
    name: RNG.integers(0, 256, (10, 3072), dtype=np.uint8)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
}


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """CIFAR-10's layout with ten images a file; the checksums of the real files are not asked for."""
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, pixels in PIXELS.items():
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{n}" for n in range(10)]}))
    return tmp_path


def test_cifar_in_its_published_layout(cifar_folder):
    splits = cifar("cifar10", cifar_folder, validation=12, seed=1)
    assert (splits.classes, splits.channels) == (10, 3)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [38, 12, 10]
    images, labels = as_tensors(splits.test)
    assert torch.equal((images * 255).round().byte().flatten(1), torch.from_numpy(PIXELS["test_batch"]))
    assert labels.tolist() == list(range(10))
    held_out = {tuple(image.flatten().tolist()) for image in as_tensors(splits.validation)[0]}
    assert len(held_out) == 12
    assert not set(splits.train.indices) & set(splits.validation.indices)


def test_training_images_are_cropped_anew_every_epoch(cifar_folder):
    splits = cifar("cifar10", cifar_folder, validation=12)
    batches = loader(splits.train, 19, shuffle_seed=0)
    one, two = ([images for images, _ in batches] for _ in range(2))
    assert one[0].shape == (19, 3, 32, 32)
    assert not torch.equal(one[0], two[0])


def test_batches_can_come_from_other_processes(cifar_folder):
    splits = cifar("cifar10", cifar_folder, validation=12)
    here, there = (
        torch.cat([images for images, _ in loader(splits.train, 19, shuffle_seed=0, workers=workers)])
        for workers in (0, 1)
    )
    assert torch.equal(here, there)


def _write(folder, *classes, count=3, size=(12, 10)):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, (40 * number, 20 * index, 200)).save(folder / name / f"{index}.png")


def test_folders_of_images(tmp_path):
    _write(tmp_path / "train", "ant", "bee")
    _write(tmp_path / "val", "ant", "bee", count=1)
    splits = image_folder(tmp_path, size=8, validation=2)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [4, 2, 2]
    images, labels = as_tensors(splits.test)
    assert images.shape == (2, 3, 8, 8)
    assert labels.tolist() == [0, 1]
    assert (images[1, :, 4, 4] * 255).round().tolist() == [40, 0, 200]
    assert len(next(iter(loader(splits.train, 4, shuffle_seed=0)))[1]) == 4


def test_misuse(tmp_path):
    with pytest.raises(ValueError, match="must hold train/CLASS"):
        image_folder(tmp_path, size=8)
    _write(tmp_path / "train", "ant", "bee")
    _write(tmp_path / "test", "ant")
    with pytest.raises(ValueError, match="same classes"):
        image_folder(tmp_path, size=8)
    _write(tmp_path / "test", "bee")
    with pytest.raises(ValueError, match="validation must be"):
        image_folder(tmp_path, size=8, validation=6)
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match="cow"):
        image_folder(tmp_path, size=8, validation=2)
    with pytest.raises(ValueError, match="cifar-10-batches-py"):
        cifar("cifar10", tmp_path)
    with pytest.raises(ValueError, match="cifar10, cifar100"):
        cifar("svhn", tmp_path)
