"""Running a transformers model on texts, and reading the activations of the tokens that count."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from aisec_common.torch.hooks import Edit, capture, edit
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tracerouter.sites import Key

Encoder = Callable[[Sequence[str]], Mapping[str, Any]]


class Reader:
    """Activations of texts; a `tracerouter.discovery.Read` whose batches are lists of texts.

    Texts are encoded as `tokenizer(text)` does and padded on the right, so that absolute positions are those of the
    text alone. A beginning-of-sequence token at the start does not count: it reads nothing but itself, so that it is
    the same in every text, and in many models its activations are larger than all others by orders of magnitude.

    Args:
        model: a transformers model, or any module that takes `input_ids` and `attention_mask`.
        tokenizer: its tokenizer.
        names: layer names by (layer, site), of `find_sites`.
        encode: from texts to the model's inputs, in place of the tokenizer.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, names: Mapping[Key, str], encode: Encoder | None = None
    ) -> None:
        self.model, self.tokenizer, self.names = model, tokenizer, names
        self.encode = encode or self._encoded

    @property
    def body(self) -> nn.Module:
        """What runs all blocks: the model less its head, whose logits over a large vocabulary nobody reads here."""
        body: nn.Module = self.model.base_model if isinstance(self.model, PreTrainedModel) else self.model
        return body

    def inputs(self, texts: Sequence[str]) -> dict[str, Any]:
        """What the model is called with, on its device."""
        device = next(self.model.parameters()).device
        encoded = self.encode(texts)
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in encoded.items()}

    def counted(self, inputs: Mapping[str, Any]) -> Tensor:
        """[B, T] true at the tokens that count."""
        mask: Tensor = inputs["attention_mask"].bool()
        ids, start = inputs.get("input_ids"), getattr(self.tokenizer, "bos_token_id", None)
        if ids is None or start is None:
            return mask
        first: Tensor = (ids == start) & (mask.cumsum(1) == 1)
        return mask & ~first

    def __call__(
        self, batch: Sequence[str], keys: Collection[Key], edits: Mapping[Key, Edit] | None = None
    ) -> dict[Key, Tensor]:
        """See `tracerouter.discovery.Read`."""
        inputs = self.inputs(batch)
        mask = self.counted(inputs)
        changes = {self.names[key]: change for key, change in (edits or {}).items()}
        changed = edit(self.model, changes) if changes else contextlib.nullcontext()
        with torch.no_grad(), changed, capture(self.model, [self.names[key] for key in keys]) as seen:
            self.body(**inputs, use_cache=False)
        return {key: seen[self.names[key]][mask.to(seen[self.names[key]].device)] for key in keys}

    def _encoded(self, texts: Sequence[str]) -> dict[str, Tensor]:
        ids = [torch.tensor(self.tokenizer(text)["input_ids"], dtype=torch.long) for text in texts]
        if not all(len(row) for row in ids):
            raise ValueError("texts hold one without any token: leave it out")
        mask = [torch.ones_like(row) for row in ids]
        return {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": pad_sequence(mask, batch_first=True),
        }
