"""A model taken apart at its block list: what each block is given, single blocks, and everything around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Wrap = Callable[[Tensor], Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of one block but for its hidden states, which come first or as `hidden_states=`.

    Attributes:
        args: positional ones after the hidden states.
        kwargs: the others.
        keyword: whether the hidden states are passed by keyword.
        tokens: rows x tokens of the batch.

    >>> Call(args=(), kwargs={"mask": None}, keyword=False, tokens=3).with_hidden(torch.ones(1, 3, 1))[1]
    {'mask': None}
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    keyword: bool
    tokens: int

    def with_hidden(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of the call with these hidden states."""
        if self.keyword:
            return self.args, {**self.kwargs, "hidden_states": hidden}
        return (hidden, *self.args), dict(self.kwargs)


class BlockList:
    """The blocks of a model, and the model around them.

    The model's own forward runs with stand-ins for its blocks, so masks, position embeddings, final norm, tied or
    soft-capped heads are the model's own and nothing is rebuilt by hand. The block list is back in its place
    afterwards, also after an exception.

    Args:
        model: any module.
        name: of its block list.

    Raises:
        ValueError: if the model's part of that name is no module list.

    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> blocks = BlockList(tiny_lm(9, layers=2, width=8), "model.layers")
    >>> inputs = {"input_ids": torch.ones(1, 4).long(), "use_cache": False}
    >>> with torch.no_grad():
    ...     blocks.check(inputs), blocks.arguments(inputs)[0].shape
    ((9, 32), torch.Size([1, 4, 8]))
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        parent, _, self._attribute = name.rpartition(".")
        self._parent = model.get_submodule(parent)
        entries = model.get_submodule(name)
        if not isinstance(entries, nn.ModuleList):
            raise ValueError(f"blocks: {name!r} of the model is not an nn.ModuleList")
        self.entries = entries
        self._wrap: Wrap = _plain

    def check(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Runs the model once whole and once in parts; must come first, under `evaluation`.

        Returns:
            Size of the vocabulary, and bytes of one token's hidden state.

        Raises:
            ValueError: if the parts are not the whole: blocks that change their input in place or exchange more
                than hidden states, a key-value cache, a head that reads other blocks than the last.
        """
        calls: list[Call] = []
        outputs: list[Any] = []

        def run(i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, call = _split(args, kwargs)
            version = hidden._version
            output = self.entries[i](*args, **kwargs)
            if hidden._version != version:
                raise ValueError(
                    f"model: {self.name}.{i} changes its input in place, which stored inputs do not survive"
                )
            calls.append(call)
            outputs.append(output)
            return output

        whole = logits_of(self._forward(inputs, run))
        if len(calls) != len(self.entries):
            raise ValueError(f"model: one forward ran {len(calls)} of the {len(self.entries)} blocks of {self.name}")
        self._wrap = _form(outputs[-1])
        hidden, separate = self.arguments(inputs)
        if not all(_equal((a.args, a.kwargs), (b.args, b.kwargs)) for a, b in zip(calls, separate, strict=True)):
            raise ValueError(
                f"model: what blocks of {self.name} are given depends on earlier ones by more than hidden states"
            )
        if not torch.allclose(
            whole, self.head(inputs, self.hidden_of(outputs[-1])), rtol=1e-3, atol=1e-3, equal_nan=True
        ):
            raise ValueError(f"model: its logits depend on more than the last block of {self.name}")
        return whole.shape[-1], hidden.shape[-1] * hidden.element_size()

    def arguments(self, inputs: Mapping[str, Any]) -> tuple[Tensor, list[Call]]:
        """The first block's hidden states [rows, tokens, width] and each block's other arguments; runs no block."""
        first: list[Tensor] = []
        calls: list[Call] = []

        def record(_: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, call = _split(args, kwargs)
            first.append(hidden)
            calls.append(call)
            return self._wrap(hidden)

        self._forward(inputs, record)
        return first[0], calls

    def head(self, inputs: Mapping[str, Any], hidden: Tensor) -> Tensor:
        """Logits of the model if its last block returns `hidden`; runs no block."""
        return logits_of(self._forward(inputs, lambda *_: self._wrap(hidden)))

    def hidden_of(self, output: Any) -> Tensor:
        """The hidden states in what a block returned."""
        return _first(output)

    def _forward(self, inputs: Mapping[str, Any], run: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]) -> Any:
        with self._replaced([_StandIn(block, i, run) for i, block in enumerate(self.entries)]):
            return self.model(**inputs)

    @contextmanager
    def _replaced(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        try:
            setattr(self._parent, self._attribute, nn.ModuleList(blocks))
            yield
        finally:
            setattr(self._parent, self._attribute, self.entries)


class _StandIn(nn.Module):
    """Calls `run(index, args, kwargs)` in place of a block; other attributes (`attention_type`, …) are the block's."""

    def __init__(
        self, block: nn.Module, index: int, run: Callable[[int, tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        super().__init__()
        self.__dict__.update(block=block, index=index, run=run)  # not a submodule of the stand-in

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.index, args, kwargs)


def logits_of(output: Any) -> Tensor:
    """The logits in what a model's forward returned: `.logits`, the tensor itself or the first entry of a tuple.

    >>> logits_of((torch.zeros(1, 2, 3), None)).shape
    torch.Size([1, 2, 3])
    """
    logits = _first(getattr(output, "logits", output))
    if logits.ndim != 3:
        raise ValueError(f"model: logits must be [rows, tokens, vocabulary], got {list(logits.shape)}")
    return logits


def _first(output: Any) -> Tensor:
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor):
        raise ValueError(f"model: a block or the model returned {type(output).__name__}; expected a tensor or a tuple")
    return first


def _plain(hidden: Tensor) -> Any:
    return hidden


def _form(output: Any) -> Wrap:
    """How to return hidden states the way a block does: as they are, or first in a tuple with the real one's rest."""
    if isinstance(output, Tensor):
        return _plain
    rest = tuple(output[1:])
    return lambda hidden: (hidden, *rest)


def _split(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Call]:
    """A block's hidden states and its other arguments."""
    keyword = not args
    hidden = kwargs.get("hidden_states") if keyword else args[0]
    if not isinstance(hidden, Tensor) or hidden.ndim < 2:
        raise ValueError("model: its blocks must be given hidden states first or as hidden_states=")
    rest = {name: value for name, value in kwargs.items() if not (keyword and name == "hidden_states")}
    for value in (*args[1:], *rest.values()):
        if hasattr(value, "get_seq_length"):
            raise ValueError("batches: the model fills a key-value cache; put use_cache=False into the inputs")
    return hidden, Call(args=args[1:], kwargs=rest, keyword=keyword, tokens=hidden.shape[0] * hidden.shape[1])


def _equal(a: Any, b: Any) -> bool:
    """Whether two nested arguments hold equal tensors."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return isinstance(b, (tuple, list)) and len(a) == len(b) and all(map(_equal, a, b))
    return not isinstance(b, Tensor)
