"""The embedded data: the 1797 handwritten digits that come with scikit-learn, 8 x 8 pixels."""

from __future__ import annotations

import numpy as np
import torch
from aisec_common.seeding import derived_seed
from torch.utils.data import TensorDataset

from uadat.image_splits import ImageSplits

EPS = 0.15
"""Of the study: the size of the l_inf ball for these images, as a share of the range of a pixel."""
CLASSES = 10


def digits(seed: int, *, train: int = 500, validation: int = 100, test: int = 600) -> ImageSplits:
    """The digits in three parts, stratified by class; pixels 0 .. 16 become [0, 1].

    The sizes are ours: 500 to train on keep a model at seconds, 600 to test on give the paired comparisons their power.

    Args:
        seed: of the split.
        train, validation, test: number of images in each part.

    Returns:
        Parts of images (n, 1, 8, 8) and labels (n,).

    Raises:
        ValueError: if the parts want more images than there are, or one is smaller than the number of classes.

    >>> parts = digits(0)
    >>> len(parts.train), len(parts.validation), len(parts.test)
    (500, 100, 600)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    sizes = {"train": train, "validation": validation, "test": test}
    for name, size in sizes.items():
        if size < CLASSES:
            raise ValueError(f"{name} must be at least {CLASSES} images, one a class, not {size}")
    if sum(sizes.values()) > len(labels) - CLASSES:
        raise ValueError(f"train, validation and test must be at most {len(labels) - CLASSES} images together")
    pixels = torch.from_numpy((images / 16).astype(np.float32)).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    rest = np.arange(len(labels))
    parts = {}
    for name, size in sizes.items():
        chosen, rest = train_test_split(
            rest, train_size=size, stratify=labels[rest], random_state=derived_seed(seed, "split", name) % 2**32
        )
        parts[name] = TensorDataset(pixels[chosen], targets[chosen])
    return ImageSplits(**parts, classes=CLASSES, channels=1)
