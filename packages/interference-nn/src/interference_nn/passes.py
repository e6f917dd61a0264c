"""Forward and backward passes, counted where they happen: the cost of a training that does not depend on the clock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Passes:
    """Images that went through a module so far.

    Attributes:
        forward: forward passes.
        backward: backward passes, to its weights or its input.
    """

    forward: int = 0
    backward: int = 0


@contextlib.contextmanager
def counted(module: nn.Module) -> Iterator[Passes]:
    """Counts the images that pass a module, forward and backward, while the block runs.

    M draws of one image count M. A pass whose output needs no gradient (a frozen backbone, or no_grad) has no backward.

    >>> import torch
    >>> layer = nn.Linear(2, 1)
    >>> with counted(layer) as passes:
    ...     layer(torch.zeros(3, 2)).sum().backward()
    >>> passes
    Passes(forward=3, backward=3)
    """
    passes = Passes()

    def seen(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows = len(inputs[0])
        passes.forward += rows

        def went_back(_: Tensor) -> None:
            passes.backward += rows

        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(went_back)  # type: ignore[no-untyped-call]

    handle = module.register_forward_hook(seen)
    try:
        yield passes
    finally:
        handle.remove()
