"""Read or change the activations of named layers while a model runs."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def capture(
    model: nn.Module, layers: str | Iterable[str], *, detach: bool = True, device: str | torch.device | None = None
) -> Iterator[dict[str, Tensor]]:
    """Record the output of each layer of `layers`; a layer that runs again replaces what it left before.

    Of a layer that returns a tuple or list (attention, older transformer blocks) the first element is taken. Nested in
    an `edit`, it sees the edited output; around one, the output before the edit.

    Args:
        model: any module.
        layers: names as in `model.named_modules()`, for instance `"model.layers.3"`.
        detach: cut the tensors from the graph; `False` keeps it, for gradients with respect to activations.
        device: where to keep the tensors; default: where they are.

    Yields:
        A dict from layer name to its latest output, filled by forward passes and readable after the block.

    Raises:
        ValueError: for a layer that the model does not have, with near matches.
        TypeError: during the forward pass, when a layer returns no tensor.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with capture(model, "0") as seen:
    ...     output = model(torch.ones(1, 2))
    >>> torch.equal(seen["0"].relu(), output)
    True
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            tensor = _first(name, output)
            tensor = tensor.detach() if detach else tensor
            seen[name] = tensor if device is None else tensor.to(device)

        return hook

    with _hooked([(layer, keep(name)) for name, layer in _find(model, layers)]):
        yield seen


@contextlib.contextmanager
def edit(model: nn.Module, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Replace the output h of each named layer by `edits[name](h)` while the block runs.

    Of a layer that returns a tuple or list the first element is edited and the rest is passed on.

    Args:
        model: any module.
        edits: from layer names to functions that return a tensor of the same shape.

    Raises:
        ValueError: for a layer that the model does not have, or (in the forward pass) an edit that changes the shape.
        TypeError: in the forward pass, when a layer or an edit returns no tensor.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with edit(model, {"1": torch.zeros_like}):
    ...     model(torch.ones(1, 2)).tolist()
    [[0.0, 0.0, 0.0]]
    """

    def change(name: str, function: Edit) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            before = _first(name, output)
            after = function(before)
            if not isinstance(after, Tensor):
                raise TypeError(f"the edit of layer {name!r} must return a tensor, got {type(after).__name__}")
            if after.shape != before.shape:
                raise ValueError(
                    f"the edit of layer {name!r} must keep the shape {tuple(before.shape)}, got {tuple(after.shape)}"
                )
            return after if isinstance(output, Tensor) else type(output)((after, *output[1:]))

        return hook

    with _hooked([(layer, change(name, edits[name])) for name, layer in _find(model, edits)]):
        yield


@contextlib.contextmanager
def _hooked(hooks: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    with contextlib.ExitStack() as registered:
        for layer, hook in hooks:
            registered.callback(layer.register_forward_hook(hook).remove)
        yield


def _find(model: nn.Module, layers: str | Iterable[str]) -> list[tuple[str, nn.Module]]:
    present = dict(model.named_modules(remove_duplicate=False))
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names:
        raise ValueError("layers is empty: name at least one layer")
    for name in names:
        if name not in present or name == "":
            ends = [known for known in present if known.endswith(f".{name}")]
            near = (ends + difflib.get_close_matches(name, [known for known in present if known], n=3, cutoff=0.5))[:3]
            hint = f"near: {', '.join(map(repr, near))}" if near else "see model.named_modules()"
            raise ValueError(f"the model has no layer {name!r}; {hint}")
    return [(name, present[name]) for name in names]


def _first(name: str, output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(tensor, Tensor):
        raise TypeError(f"layer {name!r} returns {type(output).__name__}, not a tensor; name a layer inside it")
    return tensor
