"""A model that counts what is asked of it: rows of its forward and backward passes."""

from __future__ import annotations

from typing import Any

from aisec_common.torch.linf_pgd import Model
from torch import Tensor, nn


class CountedModel(nn.Module):
    """Passes calls on to `model` and counts images forward, and gradients that come back.

    Its methods that map images to logits (`once` of a random model) count as well; all else is the model's own.

    Args:
        model: a module or any callable from images to logits.
        random: whether predictions of one image differ from call to call; attacks read it.

    >>> import torch
    >>> counted = CountedModel(nn.Flatten(), random=False)
    >>> x = torch.zeros(3, 1, 1, 2, requires_grad=True)
    >>> counted(x).sum().backward()
    >>> counted.forwards, counted.backwards
    (3, 3)
    """

    def __init__(self, model: Model, *, random: bool) -> None:
        super().__init__()
        self.model = model
        self.random = random
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self._count(logits := self.model(images), len(images))
        return logits

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(self.__dict__.get("model") or self._modules["model"], name)
        if not hasattr(found, "__self__"):
            return found

        def method(*arguments: Any, **named: Any) -> Any:
            output = found(*arguments, **named)
            asked = bool(arguments) and isinstance(arguments[0], Tensor) and arguments[0].ndim == 4
            if asked and isinstance(output, Tensor) and output.ndim == 2:
                self._count(output, len(output))
            return output

        return method

    def _count(self, logits: Tensor, rows: int) -> None:
        self.forwards += rows
        if isinstance(logits, Tensor) and logits.requires_grad:
            Tensor.register_hook(logits, lambda _: self._back(rows))  # type: ignore[no-untyped-call]

    def _back(self, rows: int) -> None:
        self.backwards += rows
