"""Counting what a training or an attack asks of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Passes:
    """Rows of logits that were computed, and that a gradient went back through; a draw of features counts as a row."""

    forward: int = 0
    backward: int = 0


@contextmanager
def counted(model: nn.Module) -> Iterator[Passes]:
    """Counts the passes of `model` while the block runs.

    A double backward goes through the logits twice and counts twice.

    >>> import torch
    >>> net = nn.Linear(2, 2)
    >>> with counted(net) as passes:
    ...     net(torch.ones(3, 2)).sum().backward()
    >>> passes
    Passes(forward=3, backward=3)
    """
    passes = Passes()

    def back(gradient: Tensor) -> None:
        passes.backward += len(gradient)

    def hook(_: nn.Module, __: Any, logits: Tensor) -> None:
        passes.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(back)  # type: ignore[no-untyped-call]

    handle = model.register_forward_hook(hook)
    try:
        yield passes
    finally:
        handle.remove()
