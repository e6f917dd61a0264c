"""Images with labels in three parts: what is trained on, what the best epoch is chosen by, what is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from aisec_common.seeding import torch_rng
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate


@dataclass(frozen=True, kw_only=True)
class ImageSplits:
    """A data set in three parts that share no image.

    Attributes:
        train, validation, test: data sets of (image in [0, 1], label).
        classes: number of classes K; labels are 0 .. K - 1.
        channels: of an image.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    classes: int
    channels: int


def loader(
    dataset: Dataset[Any], batch_size: int, *, shuffle_seed: int | None = None, workers: int = 0
) -> DataLoader[Any]:
    """Batches of a data set: in its order, or shuffled by a generator of its own and without a short last batch.

    A last batch of one image has no batch statistics, hence whole batches only while training. A data set may offer
    `collate`, which then makes a batch of what it returned for a list of indices (see `torchvision_data`).

    Args:
        dataset: of (image, label).
        batch_size: images a batch.
        shuffle_seed: seed of the order; None keeps the data set's.
        workers: processes that load.

    Raises:
        ValueError: if batch_size is not positive, or larger than a data set that is shuffled.

    >>> batches = loader(TensorDataset(torch.zeros(5, 1, 2, 2), torch.arange(5)), 2, shuffle_seed=0)
    >>> [len(labels) for _, labels in batches]
    [2, 2]
    """
    size = len(dataset)  # type: ignore[arg-type]
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    shuffled = shuffle_seed is not None
    if shuffled and batch_size > size:
        raise ValueError(f"batch_size {batch_size} is more than the {size} images there are to train on; lower it")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffled,
        drop_last=shuffled,
        num_workers=workers,
        generator=torch_rng(shuffle_seed, "order") if shuffle_seed is not None else None,
        collate_fn=_collate(dataset),
    )


def _collate(dataset: Dataset[Any]) -> Callable[[Any], Any]:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, "collate", default_collate)


def as_tensors(dataset: Dataset[Any], limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The first `limit` images of a data set and their labels, stacked.

    Args:
        dataset: of (image, label).
        limit: how many; all by default.

    Returns:
        Images (n, C, H, W) in [0, 1], labels (n,).

    Raises:
        ValueError: if there is no image, or limit is not positive.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, not {limit}")
    size = min(len(dataset), limit or len(dataset))  # type: ignore[arg-type]
    if size == 0:
        raise ValueError("dataset holds no image")
    if isinstance(dataset, TensorDataset):
        images, labels = dataset.tensors
        return images[:size], labels[:size]
    batches = list(loader(Subset(dataset, range(size)), 256))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
