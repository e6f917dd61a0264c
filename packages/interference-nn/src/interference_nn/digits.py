"""The embedded default data: the real handwritten digits that come with scikit-learn, split anew by each seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from aisec_common.seeding import derived_seed
from torch import Tensor

CLASSES = 10
TEST = 300


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Grey images of 8 x 8 pixels in [0, 1] with their labels 0..9, in two parts with the same shares of labels."""

    train_images: Tensor  # [n, 1, 8, 8]
    train_labels: Tensor  # [n]
    test_images: Tensor  # [m, 1, 8, 8]
    test_labels: Tensor  # [m]


def load_digits(seed: int = 0, *, test: int = TEST) -> Digits:
    """The 1797 digits, 1497 of them for training and 300 for testing unless told otherwise.

    Args:
        seed: decides which digits are held out.
        test: how many, shared among the labels as in the whole.

    Returns:
        Float images in [0, 1] (grey levels 0..16 over 16) and integer labels.

    Raises:
        ValueError: if a part would have fewer images than labels.

    >>> load_digits(0).train_images.shape
    torch.Size([1497, 1, 8, 8])
    """
    from sklearn.model_selection import train_test_split

    images, labels = _all()
    if not CLASSES <= test <= len(labels) - CLASSES:
        raise ValueError(f"test must lie between {CLASSES} and {len(labels) - CLASSES}, not {test}")
    kept, held_out = train_test_split(
        range(len(labels)), test_size=test, stratify=labels.numpy(), random_state=derived_seed(seed, "split") % 2**32
    )
    return Digits(
        train_images=images[kept],
        train_labels=labels[kept],
        test_images=images[held_out],
        test_labels=labels[held_out],
    )


@cache
def _all() -> tuple[Tensor, Tensor]:
    from sklearn import datasets

    bundle = datasets.load_digits()
    images = torch.as_tensor(bundle.images, dtype=torch.float32)[:, None] / 16
    return images, torch.as_tensor(bundle.target, dtype=torch.int64)
