"""Read or change the activations of named layers while a model runs."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]
INPUT = ":input"
"""At the end of a layer's name: its first argument instead of its output."""


@contextlib.contextmanager
def capture(
    model: nn.Module, layers: str | Iterable[str], *, detach: bool = True, device: str | torch.device | None = None
) -> Iterator[dict[str, Tensor]]:
    """Record the output of each layer of `layers`; a layer that runs again replaces what it left before.

    Of a layer that returns a tuple or list (attention, older transformer blocks) the first element is taken. Nested in
    an `edit`, it sees the edited output; around one, the output before the edit.

    Args:
        model: any module.
        layers: names as in `model.named_modules()`, for instance `"model.layers.3"`; with `:input` at the end, the
            first argument of the layer's call instead of its output.
        detach: cut the tensors from the graph; `False` keeps it, for gradients with respect to activations.
        device: where to keep the tensors; default: where they are.

    Yields:
        A dict from the names as given to the latest tensor, filled by forward passes and readable after the block.

    Raises:
        ValueError: for a layer that the model does not have, with near matches.
        TypeError: during the forward pass, when a layer returns (or gets) no tensor.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with capture(model, "0") as seen:
    ...     output = model(torch.ones(1, 2))
    >>> torch.equal(seen["0"].relu(), output)
    True
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Edit:
        def see(tensor: Tensor) -> Tensor:
            kept = tensor.detach() if detach else tensor
            seen[name] = kept if device is None else kept.to(device)
            return tensor

        return see

    with _hooked(model, layers, keep):
        yield seen


@contextlib.contextmanager
def edit(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Replace the output h of each named layer by `edits[name](h)` while the block runs.

    Of a layer that returns a tuple or list the first element is edited and the rest is passed on.

    Args:
        model: any module.
        edits: from layer names to functions that return a tensor of the same shape; a name that ends in `:input` edits
            the first argument of the layer's call.

    Raises:
        ValueError: for a layer that the model does not have, or (in the forward pass) an edit that changes the shape.
        TypeError: in the forward pass, when a layer or an edit returns no tensor.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with edit(model, {"1": torch.zeros_like}):
    ...     model(torch.ones(1, 2)).tolist()
    [[0.0, 0.0, 0.0]]
    """

    def change(name: str) -> Edit:
        function = edits[name]

        def checked(before: Tensor) -> Tensor:
            after = function(before)
            if not isinstance(after, Tensor):
                raise TypeError(f"the edit of layer {name!r} must return a tensor, got {type(after).__name__}")
            if after.shape != before.shape:
                raise ValueError(
                    f"the edit of layer {name!r} must keep the shape {tuple(before.shape)}, got {tuple(after.shape)}"
                )
            return after

        return checked

    with _hooked(model, edits, change):
        yield


@contextlib.contextmanager
def _hooked(model: nn.Module, layers: str | Iterable[str], make: Callable[[str], Edit]) -> Iterator[None]:
    """Passes the tensor of each layer through `make(name)`; the model goes on with what comes back."""
    with contextlib.ExitStack() as registered:
        for name, layer in _find(model, layers):
            if name.endswith(INPUT):
                handle = layer.register_forward_pre_hook(_at_input(name, make(name)), with_kwargs=True)
            else:
                handle = layer.register_forward_hook(_at_output(name, make(name)))
            registered.callback(handle.remove)
        yield


def _at_output(name: str, function: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        before = _first(name, output)
        after = function(before)
        if after is before:
            return None
        return after if isinstance(output, Tensor) else type(output)((after, *output[1:]))

    return hook


def _at_input(name: str, function: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        key = next(iter(named), "")
        before = arguments[0] if arguments else named.get(key)
        if not isinstance(before, Tensor):
            raise TypeError(f"layer {name!r} gets {type(before).__name__} first, not a tensor; name another layer")
        after = function(before)
        if after is before:
            return None
        if arguments:
            return (after, *arguments[1:]), named
        return arguments, {**named, key: after}

    return hook


def _find(model: nn.Module, layers: str | Iterable[str]) -> list[tuple[str, nn.Module]]:
    present = dict(model.named_modules(remove_duplicate=False))
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names:
        raise ValueError("layers is empty: name at least one layer")
    for given in names:
        name = given.removesuffix(INPUT)
        if name not in present or name == "":
            ends = [known for known in present if known.endswith(f".{name}")]
            near = (ends + difflib.get_close_matches(name, [known for known in present if known], n=3, cutoff=0.5))[:3]
            hint = f"near: {', '.join(map(repr, near))}" if near else "see model.named_modules()"
            raise ValueError(f"the model has no layer {name!r}; {hint}")
    return [(name, present[name.removesuffix(INPUT)]) for name in names]


def _first(name: str, output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(tensor, Tensor):
        raise TypeError(f"layer {name!r} returns {type(output).__name__}, not a tensor; name a layer inside it")
    return tensor
