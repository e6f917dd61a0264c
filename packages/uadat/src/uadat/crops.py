"""Random crops and flips of whole batches, the usual augmentation of small colour images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from aisec_common.seeding import torch_rng
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

PADDING = 4


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Pads with black, cuts each image out again at a place of its own, mirrors every other one by chance.

    Args:
        images: (B, C, H, W), any dtype.
        generator: on the CPU.
        padding: pixels a side.

    Returns:
        (B, C, H, W) of the same dtype.

    >>> crop_and_flip(torch.ones(3, 1, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([3, 1, 8, 8])
    """
    count, _, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator)
    mirrored = torch.rand((count, 1), generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = left + torch.where(mirrored, torch.arange(width).flip(0), torch.arange(width))
    cut = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2).contiguous()


class ImageBatches(Dataset[tuple[Tensor, Tensor]]):
    """Images read as bytes and labels, a batch at a time; augmented where a seed is given.

    The crops of a batch depend on the seed and on the indices asked for, hence on nothing that a worker or a resumed
    run would have to carry on; a shuffled order gives new ones in every epoch.

    Args:
        read: indices -> bytes (n, C, H, W).
        labels: (N,) of all images.
        augment_seed: of crops and flips; None leaves the images as they are.
    """

    def __init__(self, read: Callable[[Sequence[int]], Tensor], labels: Tensor, augment_seed: int | None = None):
        self.read, self.labels, self.augment_seed = read, labels, augment_seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The batch of these indices, images (n, C, H, W) in [0, 1]."""
        images = self.read(indices)
        if self.augment_seed is not None:
            images = crop_and_flip(images, torch_rng(self.augment_seed, "crops", *indices))
        return images.float() / 255, self.labels[torch.as_tensor(indices)]

    @staticmethod
    def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """`__getitems__` gives whole batches already."""
        return batch
