"""Where the samples of a batch lie, and which of their tokens are held in place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from procon.config import ConstrainedTokens

IGNORED = -100  # label of a token without loss


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The tokens of a batch [B, T] by sample; a row is one sample, padded on either side, or several packed ones."""

    input_ids: Tensor
    valid: Tensor
    """[B, T], boolean: no padding."""
    starts: Tensor
    """[B, T], boolean: the first token of a sample."""
    constrained: Tensor
    """[B, T], boolean: the tokens in the projection term."""

    @classmethod
    def of(cls, inputs: Mapping[str, Any], tokens: ConstrainedTokens) -> Samples:
        """Reads them off a batch: `input_ids`, `labels`, and `attention_mask` (padded) or `position_ids` (packed).

        The first token of a sample is predicted from nothing, so it is no response token whatever its label says
        (packing drops that label, padding keeps it).

        Args:
            inputs: what the collator made, [B, T] each.
            tokens: "response": label other than -100. "prompt_last": the last token before a response. Or "both".

        Raises:
            ValueError: if there are no labels.
        """
        if "labels" not in inputs:
            raise ValueError("the batch has no labels: use trl's own collator, or one that makes labels")
        ids, labels = inputs["input_ids"], inputs["labels"]
        attention, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        valid = torch.ones_like(ids, dtype=torch.bool) if attention is None else attention.bool()
        starts = valid & ~_before(valid)
        if attention is None and positions is not None:
            starts = torch.eq(positions, 0)
        response = (labels != IGNORED) & valid & ~starts
        last = _after(response) & ~response & valid
        constrained = {"response": response, "prompt_last": last, "both": response | last}[tokens]
        return cls(input_ids=ids, valid=valid, starts=starts, constrained=constrained)

    @property
    def segments(self) -> Tensor:
        """[B, T], integer: the number of each token's sample in its row."""
        return (self.starts.cumsum(1) - 1).clamp(min=0)

    @property
    def predicting(self) -> Tensor:
        """[B, T], boolean: the tokens that predict the constrained ones."""
        return _after(self.constrained)

    def counts(self) -> tuple[Tensor, Tensor]:
        """How many tokens are held in place, and how many samples have such tokens."""
        row = torch.arange(len(self.starts), device=self.starts.device)[:, None] * self.starts.shape[1]
        of_sample = torch.zeros(self.starts.numel(), dtype=torch.bool, device=self.starts.device)
        of_sample[(row + self.segments)[self.constrained]] = True
        return self.constrained.sum(), of_sample.sum()

    def keys(self, *, absolute: bool) -> Iterator[tuple[bytes, int]]:
        """For each sample with tokens held in place, in the order of `constrained`: its key and their number.

        The key is a hash of the sample's ids and of which tokens are held, not of padding or neighbours.

        Args:
            absolute: add where the sample begins, for models with learned positions: padding on the left moves it.
        """
        ids, held, valid = (t.cpu() for t in (self.input_ids, self.constrained, self.valid))
        position = torch.arange(ids.shape[1])
        for row, begins in enumerate(self.starts.cpu()):
            starts = [*position[begins].tolist(), ids.shape[1]]
            for start, stop in pairwise(starts):
                inside = valid[row, start:stop]
                mask = held[row, start:stop][inside]
                if number := int(mask.sum()):
                    digest = hashlib.blake2b(ids[row, start:stop][inside].long().numpy().tobytes(), digest_size=16)
                    digest.update(mask.numpy().tobytes())
                    if absolute:
                        digest.update(str(start).encode())
                    yield digest.digest(), number


def _before(mask: Tensor) -> Tensor:
    """mask[:, t - 1], False at t = 0."""
    return torch.nn.functional.pad(mask[:, :-1], (1, 0))


def _after(mask: Tensor) -> Tensor:
    """mask[:, t + 1], False at the end."""
    return torch.nn.functional.pad(mask[:, 1:], (0, 1))
