"""Which backgrounds interfere with which image: freely drawn, fixed, or by a key and the image itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interference_nn.interference import QUADRANTS


@dataclass(frozen=True, kw_only=True)
class Draws:
    """M draws for each image of a batch.

    Attributes:
        backgrounds: numbers j in the bank.
        places: quadrants 0..3, for the mosaic.

    >>> fixed_draws(2, 3, 8).backgrounds.tolist()
    [[0, 1, 2], [0, 1, 2]]
    """

    backgrounds: Tensor
    places: Tensor


def random_draws(
    batch: int, draws: int, bank: int, *, replacement: bool = True, generator: torch.Generator | None = None
) -> Draws:
    """Uniform draws from a bank of J, with or without replacement.

    Args:
        batch: B.
        draws: M.
        bank: J.
        replacement: whether one image may get a background twice.
        generator: torch's default one if None.

    Returns:
        The draws, where the generator is: the same on every device.

    >>> drawn = random_draws(1, 8, 8, replacement=False, generator=torch.Generator().manual_seed(0))
    >>> sorted(drawn.backgrounds[0].tolist())
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    device = "cpu" if generator is None else generator.device
    if replacement:
        both = torch.randint(bank * QUADRANTS, (batch, draws), generator=generator, device=device)
        return Draws(backgrounds=both // QUADRANTS, places=both % QUADRANTS)
    order = torch.rand(batch, bank, generator=generator, device=device).argsort(1)
    places = torch.randint(QUADRANTS, (batch, draws), generator=generator, device=device)
    return Draws(backgrounds=order[:, :draws], places=places)


def fixed_draws(batch: int, draws: int, bank: int) -> Draws:
    """The first M backgrounds for every image, the quadrants in turn."""
    if draws > bank:
        raise ValueError(f"draws must be at most the {bank} backgrounds of the bank in mode 'fixed', not {draws}")
    each = torch.arange(draws).expand(batch, draws)
    return Draws(backgrounds=each, places=each % QUADRANTS)


def keyed_draws(images: Tensor, key: bytes, draws: int, bank: int, *, replacement: bool = True) -> Draws:
    """Draws from a pseudo-random function of key and image: the same whenever the same image comes.

        SHAKE-256(key length, key, image as float32) as 64-bit words, modulo 4 J

    Args:
        images: the inputs, every bit of which counts.
        key: the secret.
        draws: M.
        bank: J.
        replacement: whether one image may get a background twice.

    Returns:
        The draws, on the CPU.

    >>> x = torch.rand(2, 1, 4, 4)
    >>> torch.equal(keyed_draws(x, b"k", 8, 64).backgrounds[1:], keyed_draws(x[1:], b"k", 8, 64).backgrounds)
    True
    """
    rows = images.detach().to("cpu", torch.float32).contiguous().numpy()
    count = draws if replacement else bank + draws
    prefix = len(key).to_bytes(8, "little") + key
    # a cryptographic hash takes one message at a time
    digests = b"".join(hashlib.shake_256(prefix + row.tobytes()).digest(8 * count) for row in rows)
    words = np.frombuffer(digests, dtype="<u8").reshape(len(rows), count)
    if replacement:
        both = torch.from_numpy((words % (bank * QUADRANTS)).astype(np.int64))
        return Draws(backgrounds=both // QUADRANTS, places=both % QUADRANTS)
    order = np.argsort(words[:, :bank], axis=1)[:, :draws]
    places = (words[:, bank:] % QUADRANTS).astype(np.int64)
    return Draws(backgrounds=torch.from_numpy(order), places=torch.from_numpy(places))
