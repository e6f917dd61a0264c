"""Crops of the photographs that scikit-image and scikit-learn bundle (extra `photographs`), labelled by photograph.

Real images of 224 pixels and more for a real backbone, without a download. The crops of one half of a photograph train,
those of the other half test: no pixel is in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from aisec_common.seeding import torch_rng
from torch import Tensor
from torch.nn.functional import interpolate

OF_SKIMAGE = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
OF_SKLEARN = ("china", "flower")
NAMES = (*OF_SKIMAGE, *OF_SKLEARN)
"""The photographs, in the order of their labels."""

SMALLEST, LARGEST = 0.5, 1.0  # side of a crop over the shorter side of its half


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Square crops in [0, 1] with the number of their photograph."""

    train_images: Tensor  # [n, 3, size, size]
    train_labels: Tensor  # [n]
    test_images: Tensor  # [m, 3, size, size]
    test_labels: Tensor  # [m]
    names: tuple[str, ...]


def load_photographs(seed: int = 0, *, train: int = 40, test: int = 10, size: int = 224) -> Photographs:
    """Crops of nine photographs at random places and of random sizes, some mirrored.

    Args:
        seed: decides places, sizes and mirroring; the halves are always the same.
        train: crops of each photograph from its left half (upper, where it is taller than wide).
        test: crops of each from the other half.
        size: side in pixels to which a crop is resized (bilinear, antialiased).

    Returns:
        Float images and labels 0..8, in the order of the photographs.

    Raises:
        ValueError: if a number is not positive.

    >>> load_photographs(train=2, test=1, size=16).test_images.shape
    torch.Size([9, 3, 16, 16])
    """
    for name, value in (("train", train), ("test", test), ("size", size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    photographs = _photographs()
    parts: dict[str, Tensor] = {}
    for part, count in (("train", train), ("test", test)):
        rng = torch_rng(seed, "crops", part)
        parts[part] = torch.cat(
            [_crops(_half(picture, part == "train"), count, size, rng) for picture in photographs.values()]
        )
    numbers = torch.arange(len(photographs))
    return Photographs(
        train_images=parts["train"],
        train_labels=numbers.repeat_interleave(train),
        test_images=parts["test"],
        test_labels=numbers.repeat_interleave(test),
        names=tuple(photographs),
    )


def _photographs() -> dict[str, Tensor]:
    import skimage.data
    from sklearn.datasets import load_sample_image

    arrays = {name: getattr(skimage.data, name)() for name in OF_SKIMAGE}
    arrays |= {name: load_sample_image(f"{name}.jpg") for name in OF_SKLEARN}
    return {name: torch.tensor(array).permute(2, 0, 1).float() / 255 for name, array in arrays.items()}


def _half(picture: Tensor, first: bool) -> Tensor:
    axis = 2 if picture.shape[2] >= picture.shape[1] else 1
    middle = picture.shape[axis] // 2
    return picture.narrow(axis, 0 if first else middle, middle)


def _crops(picture: Tensor, count: int, size: int, rng: torch.Generator) -> Tensor:
    """Each crop is read at its own place, so this is a loop over crops, once, before anything is trained."""
    drawn = torch.rand(count, 4, generator=rng)
    crops = []
    for share, top, left, mirrored in drawn.tolist():
        side = round((SMALLEST + share * (LARGEST - SMALLEST)) * min(picture.shape[1:]))
        y, x = round(top * (picture.shape[1] - side)), round(left * (picture.shape[2] - side))
        crop = interpolate(picture[None, :, y : y + side, x : x + side], (size, size), mode="bilinear", antialias=True)
        crops.append(crop.flip(3) if mirrored < 0.5 else crop)
    return torch.cat(crops).clamp(0, 1)
