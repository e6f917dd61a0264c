"""Background banks B = {(b_j, l_j)}: images to interfere with, and what they show."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from aisec_common.seeding import torch_rng
from aisec_common.torch.linf_pgd import check_images, evaluating
from torch import Tensor

LEVELS = 255  # backgrounds are kept on the levels of bytes, as those of image files are


class BackgroundBank(Protocol):
    """What an interference network draws from.

    Attributes:
        images: b_j, [J, C, H, W] in [0, 1].
        labels: l_j, [J] integers in 0..L-1.
        classes: L.
    """

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def classes(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Backgrounds:
    """A bank of given images.

    Raises:
        ValueError: if it is empty, out of [0, 1], or a label is not in 0..classes-1.
        TypeError: if images are no floats or labels no integers.

    >>> Backgrounds(images=torch.rand(4, 3, 8, 8), labels=torch.arange(4), classes=3)
    Traceback (most recent call last):
    ValueError: labels of the bank must lie in 0..2, not in 0..3; raise classes or relabel
    """

    images: Tensor
    labels: Tensor
    classes: int

    def __post_init__(self) -> None:
        check_bank(self)


def check_bank(bank: BackgroundBank) -> None:
    """Refuses a bank that is empty, out of range or wrongly labelled; see `Backgrounds`.

    >>> check_bank(ProceduralBackgrounds(n=8, classes=4, size=8))
    """
    images, labels, classes = bank.images, bank.labels, bank.classes
    if isinstance(images, Tensor) and images.ndim == 4 and not len(images):
        raise ValueError("bank is empty; give at least one background")
    check_images(images, "images of the bank")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError("labels of the bank must be a tensor of integers; use labels.long()")
    if labels.shape != (len(images),):
        raise ValueError(f"labels of the bank must have shape [{len(images)}], not {list(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels of the bank must lie in 0..{classes - 1}, not in {low}..{high}; raise classes or relabel"
        )


@dataclass(frozen=True, kw_only=True)
class ProceduralBackgrounds:
    """Seeded textures, image j of class j mod L.

    Class l is a family and an orientation: of every four classes two are sinusoidal gratings, one a checkerboard and
    one noise whose amplitude falls with frequency (even rounds) or a linear gradient (odd rounds), all turned by
    pi l / L (noise is stretched along that direction). Frequency, phase, contrast and colours vary within a class.
    With four classes or fewer all are gratings (ours).

    Args:
        n: J.
        classes: L.
        size: H = W, in pixels.
        seed: of all draws.
        channels: C.

    Raises:
        ValueError: if n < classes (a class would be empty) or a number is not positive.

    Source: the paper (abstract) names "additional background images and their labels" only; the kinds are ours.

    >>> bank = ProceduralBackgrounds(n=16, classes=8, size=8)
    >>> bank.images.shape, bank.labels[:9].tolist()
    (torch.Size([16, 3, 8, 8]), [0, 1, 2, 3, 4, 5, 6, 7, 0])
    """

    n: int = 256
    classes: int = 8
    size: int = 224
    seed: int = 0
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("n", "classes", "size", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of the bank must be at least 1, not {getattr(self, name)}")
        if self.n < self.classes:
            raise ValueError(f"n of the bank must be at least its {self.classes} classes, not {self.n}")

    @cached_property
    def labels(self) -> Tensor:
        """l_j = j mod L."""
        return torch.arange(self.n) % self.classes

    @cached_property
    def images(self) -> Tensor:
        """b_j, made at the first call."""
        rng = torch_rng(self.seed, "backgrounds")
        angle = torch.pi * (self.labels + 0.5 * (torch.rand(self.n, generator=rng) - 0.5)) / self.classes
        # in periods per image; at most one in four pixels, so that stripes stay stripes
        waves = 1.0 + torch.rand(self.n, generator=rng) * (min(self.size / 4, 12.0) - 1.0)
        phase = 2 * torch.pi * torch.rand(2, self.n, 1, 1, generator=rng)
        place = torch.linspace(-0.5, 0.5, self.size)
        y, x = torch.meshgrid(place, place, indexing="ij")
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        along, across = x * cos + y * sin, y * cos - x * sin
        pace = 2 * torch.pi * waves[:, None, None]
        grating = (pace * along + phase[0]).sin()
        checkers = torch.sign(grating) * torch.sign((pace * across + phase[1]).sin())
        gradient = along / along.abs().amax((1, 2), keepdim=True)
        kinds = torch.stack([grating, checkers, _stretched_noise(angle, self.size, rng), gradient])
        patterns = kinds[self._kind(), torch.arange(self.n)]  # [J, H, W] in [-1, 1]
        colours = torch.rand(self.n, 2, self.channels, 1, 1, generator=rng)
        share = (1 + patterns[:, None]) / 2
        images = colours[:, 0] * share + colours[:, 1] * (1 - share)
        return (images.clamp(0, 1) * LEVELS).round() / LEVELS

    def _kind(self) -> Tensor:
        if self.classes <= 4:
            return torch.zeros(self.n, dtype=torch.long)
        last = torch.where(self.labels // 4 % 2 == 0, 2, 3)
        return torch.where(self.labels % 4 < 2, 0, torch.where(self.labels % 4 == 2, 1, last))


def _stretched_noise(angle: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Gaussian noise of amplitude 1 / |k|, eight times as smooth along one direction, in [-1, 1]: [J, H, W]."""
    white = torch.fft.fft2(torch.randn(len(angle), size, size, generator=rng))
    frequency = torch.fft.fftfreq(size) * size
    ky, kx = torch.meshgrid(frequency, frequency, indexing="ij")
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    length = ((8 * (kx * cos + ky * sin)) ** 2 + (ky * cos - kx * sin) ** 2).sqrt()
    noise: Tensor = torch.fft.ifft2(white / length.clamp(min=1)).real
    noise -= noise.mean((1, 2), keepdim=True)
    largest: Tensor = noise.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
    return noise / largest


def noise_backgrounds(like: BackgroundBank, seed: int = 0) -> Backgrounds:
    """The control: a bank of white Gaussian noise with the mean and variance of `like` in each channel.

        b_j = clip(mean + std * N(0, 1), 0, 1), l_j as in `like` (the images do not show it)

    Args:
        like: the bank to imitate, in size, statistics and labels.
        seed: of the noise.

    Returns:
        A bank with as many images. Clipping lowers the variance a little.

    >>> bank = ProceduralBackgrounds(n=64, classes=8, size=16)
    >>> noise = noise_backgrounds(bank)
    >>> bool((noise.images.std() / bank.images.std() - 1).abs() < 0.2)
    True
    """
    std, mean = torch.std_mean(like.images, dim=(0, 2, 3), keepdim=True)
    noise = torch.randn(like.images.shape, generator=torch_rng(seed, "noise backgrounds")).to(like.images)
    return Backgrounds(images=(mean + std * noise).clamp(0, 1), labels=like.labels, classes=like.classes)


def target_like(
    bank: BackgroundBank, classifier: Callable[[Tensor], Tensor], *, confidence: float = 0.9, batch: int = 32
) -> Tensor:
    """Backgrounds that a classifier takes for one of its own classes; warns if there are any.

    A bank that overlaps the target classes (scenes with objects in them) corrupts labels: the network is told to name
    the image and sees two. Give the undefended classifier, made for the target classes.

    Args:
        bank: any bank.
        classifier: from images in [0, 1] to logits [B, K].
        confidence: highest softmax probability from which on a background counts.
        batch: images at once.

    Returns:
        The numbers j of such backgrounds.

    >>> bank = ProceduralBackgrounds(n=8, classes=8, size=8)
    >>> target_like(bank, lambda x: torch.zeros(len(x), 3)).tolist()
    []
    """
    with evaluating(classifier), torch.no_grad():
        parts = [classifier(part).softmax(1).amax(1) for part in torch.split(bank.images, batch)]
    found = (torch.cat(parts) >= confidence).nonzero()[:, 0]
    if len(found):
        warnings.warn(
            f"bank: {len(found)} of {len(bank.images)} backgrounds look like target classes (confidence >= "
            f"{confidence:g}); drop them or choose other backgrounds",
            stacklevel=2,
        )
    return found
