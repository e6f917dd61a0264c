"""Crops of nine photographs that scikit-image and scikit-learn bundle, real colour images for a pretrained model."""

from __future__ import annotations

import torch
from aisec_common.data.skimage_photographs import NAMES, load_photographs
from torch.utils.data import TensorDataset

from uadat.image_splits import ImageSplits


def photographs(seed: int, *, size: int = 128, train: int = 40, validation: int = 90, test: int = 20) -> ImageSplits:
    """Random crops, some mirrored, labelled by their photograph.

    Training and validation crops come from one half of a photograph, test crops from the other: these share no pixel.
    Validation crops overlap training crops, so they tell epochs apart, but flatter.

    Args:
        seed: of the crops; the halves are always the same.
        size: side in pixels to which a crop is brought.
        train, test: crops of each photograph.
        validation: crops in all, as many of each photograph (or one more).

    Returns:
        Parts of images (n, 3, size, size) and labels 0 .. 8, photographs in turn in validation and test.

    Raises:
        ValueError: if a number is not positive.

    >>> parts = photographs(0, size=16, train=2, validation=10, test=1)
    >>> len(parts.train), len(parts.validation), len(parts.test)
    (18, 10, 9)
    """
    for name, value in (("train", train), ("validation", validation)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1 crop, not {value}")
    count = len(NAMES)
    crops = load_photographs(seed, train=train + -(-validation // count), test=test, size=size)
    by_photograph = torch.arange(len(crops.train_labels)).view(count, -1)
    held_out = by_photograph[:, train:].T.flatten()[:validation]
    chosen = by_photograph[:, :train].flatten()
    in_turn = torch.arange(len(crops.test_labels)).view(count, -1).T.flatten()
    return ImageSplits(
        train=TensorDataset(crops.train_images[chosen], crops.train_labels[chosen]),
        validation=TensorDataset(crops.train_images[held_out], crops.train_labels[held_out]),
        test=TensorDataset(crops.test_images[in_turn], crops.test_labels[in_turn]),
        classes=count,
        channels=3,
    )
