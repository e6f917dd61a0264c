"""One pass of a classifier, cut in two at a named layer: f(x) = head(stem(x))."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]
INPUT = "input"
"""The layer before the first: Z = x."""


def split_pass(forward: Forward, module: nn.Module, layer: str, images: Tensor, at_layer: Forward) -> Tensor:
    """head(at_layer(stem(x))) in one pass; `at_layer` may return more rows than it gets (draws of the features).

    Args:
        forward: runs `module`, or a wrapper of it (DistributedDataParallel, perturbed weights).
        module: the classifier whose layer is meant.
        layer: a name of `module.named_modules()`, or `"input"` for the images themselves.
        images: [B, C, H, W].
        at_layer: from the features Z [B, C, ...] to those that the head gets [R, C, ...].

    Returns:
        Logits [R, K].

    Raises:
        ValueError: for an unknown layer (with the names there are), one whose output is no feature map [B, C, ...], one
            that runs more than once a pass, or one that other paths lead around (a skip connection).

    >>> net = nn.Sequential(nn.Identity(), nn.Flatten())
    >>> import torch
    >>> split_pass(net, net, "0", torch.ones(1, 1, 1, 2), lambda z: torch.cat([z, 2 * z])).tolist()
    [[1.0, 1.0], [2.0, 2.0]]
    """
    if layer == INPUT:
        return forward(at_layer(images))
    sizes: list[int] = []

    def hook(_: nn.Module, __: tuple[Tensor, ...], features: Tensor) -> Tensor:
        if not isinstance(features, Tensor) or features.ndim < 3:
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"layer {layer!r} must return feature maps [B, C, H, W], not {shape}; name an earlier one")
        if sizes:
            raise ValueError(f"layer {layer!r} runs more than once in a pass; name one that runs once")
        changed = at_layer(features)
        sizes.append(len(changed))
        return changed

    handle = named_layer(module, layer).register_forward_hook(hook)
    try:
        logits = forward(images)
    except RuntimeError as error:
        if sizes and sizes[0] != len(images) and "size of tensor" in str(error):
            raise _led_around(layer) from error
        raise
    finally:
        handle.remove()
    if not isinstance(logits, Tensor):
        raise TypeError(f"model must return logits [B, K], not {type(logits).__name__}; wrap it to return that tensor")
    if not sizes:
        raise ValueError(f"layer {layer!r} does not run when the model is called; name one that does")
    if len(logits) != sizes[0]:
        raise _led_around(layer)
    return logits


def head_pass(forward: Forward, module: nn.Module, layer: str, images: Tensor, features: Tensor) -> Tensor:
    """head(features) alone, as a batch of its own.

    A module runs whole, so the stem runs too, on `images`: in eval mode and without a graph, so that neither its
    statistics nor its gradients know of it; one image is enough.

    Args:
        forward: as in `split_pass`.
        module: as in `split_pass`; the head runs in the modes it is in.
        layer: as in `split_pass`.
        images: [1, C, H, W], any that the stem takes.
        features: what the head gets, [R, C, ...].

    Returns:
        Logits [R, K].

    Raises:
        ValueError: as `split_pass`.

    >>> net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    >>> head_pass(net, net, "0", torch.full((1, 1, 1, 2), 9.0), torch.ones(2, 1, 1, 2)).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    >>> net[0].running_mean.item()
    0.0
    """
    graded, modes = torch.is_grad_enabled(), [(part, part.training) for part in module.modules()]

    def wake() -> None:
        torch.set_grad_enabled(graded)
        for part, mode in modes:
            part.training = mode

    def at_layer(_: Tensor) -> Tensor:
        wake()
        return features

    try:
        if layer != INPUT:
            torch.set_grad_enabled(False)
            module.eval()
        return split_pass(forward, module, layer, images, at_layer)
    finally:
        wake()


def named_layer(module: nn.Module, layer: str) -> nn.Module:
    """The submodule of that name.

    Raises:
        ValueError: if there is none, with the names there are.
    """
    try:
        return module.get_submodule(layer)
    except AttributeError:
        present = [name for name, _ in module.named_modules() if name]
        near = [name for name in difflib.get_close_matches(layer, present, n=3) if "." in name]
        names = [*near, *(name for name, _ in module.named_children())]
        raise ValueError(f"layer {layer!r} is not in the model; it has {', '.join(names)} (or take 'input')") from None


def _led_around(layer: str) -> ValueError:
    return ValueError(f"layer {layer!r} does not cut the model in two (a skip connection); name the end of a stage")
