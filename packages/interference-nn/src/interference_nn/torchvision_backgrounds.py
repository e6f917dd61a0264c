"""Background banks from image folders and data sets, read through torchvision."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from aisec_common.seeding import torch_rng
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from interference_nn.backgrounds import LEVELS


class LabelledImages(Sized, Protocol):
    """A data set of (image, label) by position; images as PIL's, or tensors of bytes or of floats in [0, 1]."""

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetBackgrounds:
    """A seeded choice of images from a data set, resized once: shorter side to `size`, centre cropped.

    Args:
        dataset: of (image, label); labels 0..L-1, for instance a scene or texture set.
        classes: L.
        n: J; the whole set if it is smaller.
        size: H = W, in pixels.
        seed: of the choice.

    Raises:
        ValueError: if the data set is empty, or a label is out of range (when the images are first read).
    """

    dataset: LabelledImages
    classes: int
    n: int = 256
    size: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.dataset):
            raise ValueError("dataset of the bank is empty; give at least one background")
        if min(self.n, self.size, self.classes) < 1:
            raise ValueError(f"n, size, classes of the bank must be at least 1, not {self.n, self.size, self.classes}")

    @cached_property
    def _read(self) -> tuple[Tensor, Tensor]:
        resize = v2.Compose([v2.ToImage(), v2.RGB(), v2.ToDtype(torch.float32, scale=True), _Square(self.size)])
        chosen = torch.randperm(len(self.dataset), generator=torch_rng(self.seed, "backgrounds"))[: self.n]
        pairs = [self.dataset[i] for i in chosen.tolist()]
        images = torch.stack([torch.as_tensor(resize(image)) for image, _ in pairs])
        labels = torch.tensor([int(label) for _, label in pairs])
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise ValueError(f"labels of the bank must lie in 0..{self.classes - 1}; raise classes or relabel")
        return (images.clamp(0, 1) * LEVELS).round() / LEVELS, labels

    @property
    def images(self) -> Tensor:
        """b_j, read at the first call."""
        return self._read[0]

    @property
    def labels(self) -> Tensor:
        """l_j."""
        return self._read[1]


class _Square(v2.Transform):  # type: ignore[misc]
    """Shorter side to `size`, then the middle."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.steps = v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self.steps(inpt)


def ImageFolderBackgrounds(folder: Path | str, *, n: int = 256, size: int = 224, seed: int = 0) -> DatasetBackgrounds:
    """The bank of a folder with one subfolder of images a class.

    Args:
        folder: as `torchvision.datasets.ImageFolder` reads it.
        n: J; all images if there are fewer.
        size: H = W.
        seed: of the choice.

    Returns:
        A bank whose labels follow the subfolders in alphabetical order.

    Raises:
        ValueError: if there is no such folder, or no image in it.
    """
    try:
        dataset = ImageFolder(str(folder))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"folder {folder} holds no subfolders of images ({str(error).splitlines()[0]})") from None
    return DatasetBackgrounds(dataset=dataset, classes=len(dataset.classes), n=n, size=size, seed=seed)
