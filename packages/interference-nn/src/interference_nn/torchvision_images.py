"""Labelled images of a user's folder, read through torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
from aisec_common.seeding import torch_rng
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

LARGER = 256 / 224  # ImageNet's evaluation: the shorter side to 256, then the middle 224


def image_folder(folder: Path | str, *, size: int, augment: bool = False) -> ImageFolder:
    """A folder with one subfolder of images a class, as square images in [0, 1].

    Args:
        folder: as `torchvision.datasets.ImageFolder` reads it.
        size: side in pixels.
        augment: random crops and mirroring, for training; else the middle.

    Returns:
        A data set of (image [3, size, size], label); `.classes` are the names of the subfolders.

    Raises:
        ValueError: if there is no such folder, or no image in it.
    """
    crops = (
        [v2.RandomResizedCrop(size, scale=(0.35, 1.0), antialias=True), v2.RandomHorizontalFlip()]
        if augment
        else [v2.Resize(round(size * LARGER), antialias=True), v2.CenterCrop(size)]
    )
    steps = v2.Compose([v2.ToImage(), v2.RGB(), *crops, v2.ToDtype(torch.float32, scale=True), _clamped])
    try:
        return ImageFolder(str(folder), transform=steps)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"folder {folder} holds no subfolders of images ({str(error).splitlines()[0]})") from None


def some_images(dataset: ImageFolder, count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random choice of images and their labels, in memory.

    Args:
        dataset: see `image_folder`.
        count: how many; all if there are fewer.
        seed: of the choice.

    Returns:
        [n, 3, size, size] and [n].
    """
    chosen = torch.randperm(len(dataset), generator=torch_rng(seed, "images"))[:count]
    batches = list(DataLoader(Subset(dataset, chosen.tolist()), batch_size=64))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def _clamped(image: Tensor) -> Tensor:
    return image.clamp(0, 1)  # antialiasing rounds a little beyond
