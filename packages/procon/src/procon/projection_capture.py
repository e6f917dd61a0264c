"""Projections of block outputs onto the refusal directions, taken while a model runs."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from aisec_common.torch.blocks import find_blocks
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from procon.direction import RefusalDirections
from procon.projection import project


class ProjectionCapture:
    """Records z^(l) = r^(l)ᵀ x^(l) of every token, x^(l) the output of block l, inside `with capture:`.

    The projection is made inside the hook, so that only [B, T] numbers per layer outlive a block, never its hidden
    states. Of several forward passes in one `with` the first counts that carries gradients (without gradients: the
    first): later ones, such as trl's second forward for its metrics or the recomputation of activation checkpointing,
    cannot replace it by values that nothing can be trained through. Outside `with` the model has no hooks.

    Args:
        model: a decoder, with or without adapters; its blocks are looked up once.
        directions: one per block to be recorded.

    Raises:
        ValueError: for a layer that the model does not have; in the forward pass, for another hidden size.

    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> directions = RefusalDirections(vectors=torch.eye(2, 16), layers=(0, 1), model_name="tiny", model_hash="")
    >>> model = tiny_lm(9, width=16)
    >>> capture = ProjectionCapture(model, directions)
    >>> with torch.no_grad(), capture:
    ...     output = model(torch.tensor([[1, 2, 3]]))
    >>> capture.take().shape
    torch.Size([1, 3, 2])

    Source: arXiv 2509.06795, section 4.
    """

    def __init__(self, model: nn.Module, directions: RefusalDirections) -> None:
        name, blocks = find_blocks(model)
        if missing := [layer for layer in directions.layers if layer >= len(blocks)]:
            raise ValueError(f"directions: the model has no block {missing[0]}, {name} has {len(blocks)}")
        self.layers = directions.layers
        self._model = model
        self._blocks = [blocks[layer] for layer in directions.layers]
        self._vectors = directions.vectors.detach()
        self._handles: list[RemovableHandle] = []
        self._seen: list[Tensor | None] = []
        self._trains = False

    def __enter__(self) -> ProjectionCapture:
        if self._handles:
            raise RuntimeError("this capture is already armed; leave its `with` first")
        self._seen = [None] * len(self._blocks)
        self._trains = torch.is_grad_enabled() and any(p.requires_grad for p in self._model.parameters())
        self._vectors = self._vectors.to(next(self._blocks[0].parameters(), self._vectors).device)
        self._handles = [block.register_forward_hook(self._hook(i)) for i, block in enumerate(self._blocks)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> Tensor:
        """The projections [B, T, L] of the pass that counts, float32, in the order of `layers`; forgets them.

        Raises:
            RuntimeError: if a block has not run since the last `take`; if the model is in training and the projections
                carry no gradient, so that the term could not be trained.
        """
        seen = [z for z in self._seen if z is not None]
        if not self._seen or len(seen) < len(self._blocks):
            raise RuntimeError("no projections: run the model inside `with capture:` before each take()")
        self._seen = []
        # blocks below the first trainable parameter have no gradient and rightly so; one above it has lost it
        if self._trains and not max(zip(self.layers, seen, strict=True), key=lambda pair: pair[0])[1].requires_grad:
            raise RuntimeError(
                "the projections carry no gradient, so the term would be untrainable: run the forward pass with "
                "gradients, and activation checkpointing with use_reentrant=False"
            )
        return torch.stack([z.to(seen[-1].device) for z in seen], dim=-1)

    def _hook(self, i: int) -> Any:
        def hook(block: nn.Module, arguments: Any, output: Any) -> None:
            earlier = self._seen[i]
            if earlier is not None and (earlier.requires_grad or not torch.is_grad_enabled()):
                return
            hidden = hidden_of(output)
            if earlier is None or hidden.requires_grad:
                self._seen[i] = project(hidden, self._vectors[i].to(hidden.device))

        return hook


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returned: the tensor itself, or the first entry of a tuple.

    Raises:
        TypeError: if there is no tensor.

    >>> hidden_of((torch.zeros(2), None)).shape
    torch.Size([2])
    """
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor):
        raise TypeError(f"a block returned {type(output).__name__}; expected a tensor or a tuple that begins with one")
    return first
