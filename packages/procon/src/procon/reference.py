"""Where the reference z_0 comes from: the model without its adapter, a pre-pass kept on disk, or a frozen copy."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from procon.config import CacheDtype
from procon.direction import RefusalDirections
from procon.projection_cache import ProjectionCache
from procon.projection_capture import ProjectionCapture
from procon.samples import Samples

ROUNDING = 1e-5  # of the size of z_0 in a layer

Inputs = Mapping[str, Any]
Progress = Callable[[int], None]


class Reference(Protocol):
    """Gives z_0 [B, T, L], float32, of a batch; entries of tokens that are not constrained have no meaning."""

    def __call__(self, inputs: Inputs, samples: Samples) -> Tensor: ...


class BaseModel:
    """z_0 by a forward pass without gradients, in eval mode, with any adapter switched off.

    For a model with an adapter this is reference="adapter_off"; for a frozen copy reference="model".

    Args:
        model: a PEFT model, or one that still has the weights of the start.
        directions: r, for the blocks to be held.
        autocast: makes the context in which the model in training computes, so that both compute alike.
    """

    def __init__(
        self,
        model: nn.Module,
        directions: RefusalDirections,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._model = model
        self._capture = ProjectionCapture(model, directions)
        self.directions = directions
        self._autocast = autocast

    def __call__(self, inputs: Inputs, samples: Samples | None = None) -> Tensor:
        with torch.no_grad(), self._autocast(), base_weights(self._model), self._capture:
            self._model(**without_loss(self._model, inputs))
        return self._capture.take()


class CachedProjections:
    """z_0 looked up in what one pre-pass over the training data has kept (reference="cache").

    Args:
        base: computes z_0 in the pre-pass.
        folder: of the caches; this one takes a folder below it, named by `identity`.
        identity: what z_0 depends on beside the sample: weights, directions, precision.
        dtype: of the kept numbers.
        absolute: whether the model has learned positions, so that padding on the left changes z_0.
        writer: number of this process.
    """

    def __init__(
        self, base: BaseModel, folder: Path, identity: str, dtype: CacheDtype, *, absolute: bool, writer: int = 0
    ) -> None:
        name = hashlib.sha256(f"{identity} {dtype}".encode()).hexdigest()[:16]
        self.cache = ProjectionCache(folder / name, dtype, writer=writer)
        self._base = base
        self._absolute = absolute

    def fill(self, batches: Iterable[tuple[Inputs, Samples]], progress: Progress = lambda done: None) -> None:
        """Runs the base model on the batches with samples that are not kept yet."""
        for done, (inputs, samples) in enumerate(batches, start=1):
            keys = list(samples.keys(absolute=self._absolute))
            if any(key not in self.cache for key, _ in keys):
                z_0 = self._base(inputs)[samples.constrained]
                for (key, _), rows in zip(keys, torch.split(z_0, [n for _, n in keys]), strict=True):
                    self.cache.add(key, rows)
            progress(done)
        self.cache.flush()

    def __call__(self, inputs: Inputs, samples: Samples) -> Tensor:
        keys = [key for key, _ in samples.keys(absolute=self._absolute)]
        held = samples.constrained
        layers = len(self._base.directions)
        z_0 = torch.zeros(*held.shape, layers, device=held.device)
        if keys:
            z_0[held] = self.cache.lookup(keys).to(held.device)
        return z_0


def frozen_copy(model: nn.Module) -> nn.Module:
    """The base model of `model` with weights of its own, without adapter, gradients and patches of its forward."""
    frozen: Any = copy.deepcopy(model)
    if hasattr(frozen, "disable_adapter"):
        frozen = frozen.unload()
    frozen.__dict__.pop("forward", None)  # trl's fused head: the copied patch would call the original's backbone
    frozen.requires_grad_(False)
    base: nn.Module = frozen.train(False)
    return base


@contextmanager
def base_weights(model: nn.Module) -> Iterator[None]:
    """Eval mode, adapters off; afterwards every module trains and every parameter wants gradients as before.

    PEFT switches adapters back on by making all of their parameters trainable, also those that someone had frozen.
    """
    training = [module for module in model.modules() if module.training]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    off: Any = getattr(model, "disable_adapter", nullcontext)
    model.train(False)
    try:
        with off():
            yield
    finally:
        for module in training:
            module.training = True
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)


def without_loss(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The inputs of a pass of which only the blocks are wanted: no labels, no cache, logits of one token at most."""
    wanted = {name: value for name, value in inputs.items() if name != "labels"}
    wanted["use_cache"] = False
    get_base: Any = getattr(model, "get_base_model", lambda: model)
    if "logits_to_keep" in inspect.signature(type(get_base()).forward).parameters:
        wanted["logits_to_keep"] = 1
    return wanted


def without_rounding(z: Tensor, z_0: Tensor, held: Tensor) -> Tensor:
    """z_0, and z itself where the two differ by no more than rounding does.

    Samples padded or packed otherwise are computed in another order, so a cached z_0 differs from an equal z by about
    1e-7 of its size. The gradient of |z − z_0| is a sign: without this, such a difference would pull as hard as any.

    Args:
        z: [B, T, L].
        z_0: [B, T, L].
        held: [B, T], boolean: tokens over which the size of z_0 in each layer is taken.
    """
    tokens = held.sum().clamp(min=1)
    size = (torch.where(held[..., None], z_0, 0.0).square().sum((0, 1)) / tokens).sqrt()
    return torch.where((z.detach() - z_0).abs() <= ROUNDING * size, z.detach(), z_0)


def has_learned_positions(model: Any) -> bool:
    """Whether the position of a token is added to its embedding (GPT-2), rather than rotated into attention."""
    return getattr(model.config.get_text_config(), "rope_parameters", None) is None
