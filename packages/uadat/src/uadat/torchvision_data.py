"""Image data in their published layouts, read by torchvision: CIFAR-10, CIFAR-100, and folders of images by class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from aisec_common.seeding import numpy_rng
from torch import Tensor
from torch.utils.data import Subset
from torchvision import datasets
from torchvision.transforms import v2

from uadat.crops import ImageBatches
from uadat.image_splits import ImageSplits

CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
TESTS = ("test", "val")


def cifar(name: str, folder: str | Path, *, validation: int = 1000, seed: int = 0) -> ImageSplits:
    """CIFAR-10 or CIFAR-100 from the folder that holds its unpacked archive; training images are cropped and flipped.

    torchvision compares the files with the published checksums before it reads them, and downloads nothing here.

    Args:
        name: "cifar10" or "cifar100".
        folder: which holds `cifar-10-batches-py` or `cifar-100-python`.
        validation: images held out of the training part, by which the best epoch is chosen.
        seed: of that choice and of the crops.

    Raises:
        ValueError: if the name is unknown or the files are missing, torn or others.
    """
    if name not in CIFAR:
        raise ValueError(f"name must be one of {', '.join(CIFAR)}, not {name!r}")
    kind = CIFAR[name]
    try:
        train, test = (kind(folder, train=part, download=False) for part in (True, False))
    except (RuntimeError, OSError):
        raise ValueError(
            f"folder {folder} must hold {kind.base_folder} as published (unpack {kind.filename} there)"
        ) from None
    return _split(
        ImageBatches(FromMemory(train.data), torch.tensor(train.targets), augment_seed=seed),
        ImageBatches(FromMemory(train.data), torch.tensor(train.targets)),
        ImageBatches(FromMemory(test.data), torch.tensor(test.targets)),
        classes=len(train.classes),
        validation=validation,
        seed=seed,
    )


def image_folder(folder: str | Path, *, size: int, validation: int = 1000, seed: int = 0) -> ImageSplits:
    """Images in folders by class, `train/CLASS/*` and `test/CLASS/*` (or `val/CLASS/*`), brought to one size.

    Args:
        folder: which holds them.
        size: height and width in pixels: the shorter side is scaled to it, the middle cut out.
        validation: images held out of the training part.
        seed: of that choice and of the crops.

    Raises:
        ValueError: if a folder is missing or holds no image, or the classes of the two parts differ.
    """
    root = Path(folder)
    tests = [root / name for name in TESTS if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        raise ValueError(f"folder {root} must hold train/CLASS/ and test/CLASS/ (or val/CLASS/) with images")
    sized = v2.Compose([v2.RGB(), v2.PILToTensor(), v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    try:
        train, test = (datasets.ImageFolder(str(part), transform=sized) for part in (root / "train", tests[0]))
    except FileNotFoundError as error:
        raise ValueError(f"folder {root}: {' '.join(str(error).split())}") from None
    if train.classes != test.classes:
        raise ValueError(f"folder {root}: train/ and {tests[0].name}/ must hold the same classes")
    return _split(
        ImageBatches(FromFiles(train), torch.tensor(train.targets), augment_seed=seed),
        ImageBatches(FromFiles(train), torch.tensor(train.targets)),
        ImageBatches(FromFiles(test), torch.tensor(test.targets)),
        classes=len(train.classes),
        validation=validation,
        seed=seed,
    )


class FromMemory:
    """Bytes (N, H, W, C) kept in memory; a class, so that loader processes can be sent a copy."""

    def __init__(self, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return self.pixels[torch.as_tensor(indices)]


class FromFiles:
    """Images decoded when asked for, one by one, as files are."""

    def __init__(self, files: datasets.ImageFolder) -> None:
        self.files = files

    def __call__(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self.files[index][0] for index in indices])


def _split(
    train: ImageBatches, plain: ImageBatches, test: ImageBatches, *, classes: int, validation: int, seed: int
) -> ImageSplits:
    """Holds images out of the training part, without augmentation."""
    if not 1 <= validation < len(train):
        raise ValueError(f"validation must be 1 .. {len(train) - 1} of the {len(train)} images, not {validation}")
    order = numpy_rng(seed, "validation").permutation(len(train)).tolist()
    channels = plain[0][0].shape[0]
    return ImageSplits(
        train=Subset(train, order[validation:]),
        validation=Subset(plain, order[:validation]),
        test=test,
        classes=classes,
        channels=channels,
    )
