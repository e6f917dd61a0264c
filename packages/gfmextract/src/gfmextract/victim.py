"""What a graph-embedding service holds: one encoder for graphs, one for texts, into the same space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from gfmextract.pyg_ego import EgoBatch, EgoGraphs


class GraphEncoder(Protocol):
    """Anything that turns a batch of ego graphs into vectors: a victim, or what an attacker trained."""

    def encode_graph(self, batch: EgoBatch) -> Tensor:
        """[G, d] vectors of the G ego graphs of `batch` (`x`, `pe`, `edge_index`, `batch`, `ptr`, `root_n_index`)."""


class Victim(GraphEncoder, Protocol):
    """A graph encoder and a text encoder into one space.

    A node's zero-shot class is the class whose prompt lies nearest: argmax_c cos(encode_graph(g_v), encode_text(p_c)).
    Nothing else of a victim is ever touched: no weights, no gradients.

    Source: arXiv 2511.11912, section on the threat model (black box).
    """

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """[n, d] vectors of n texts."""


@contextmanager
def evaluating(encoder: object) -> Iterator[None]:
    """Puts an encoder that is a module into eval mode for a while: a BatchNorm in training mixes co-batched graphs."""
    modes = [(part, part.training) for part in encoder.modules()] if isinstance(encoder, nn.Module) else []
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def encode_egos(encoder: GraphEncoder, egos: EgoGraphs, batch_size: int = 256) -> Tensor:
    """The vectors of many ego graphs, batch after batch, in eval mode and without gradients.

    Args:
        encoder: asked through `encode_graph` only.
        egos: G of them.
        batch_size: at most so many at once; the vectors do not depend on it, up to rounding.

    Returns:
        [G, d] on the CPU, an ordinary tensor that later training may use as target.

    Raises:
        ValueError: for a batch size below 1, or an encoder that does not answer with one finite vector a graph.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parts = []
    with evaluating(encoder), torch.inference_mode():
        for first in range(0, len(egos), batch_size):
            part = egos[first : first + batch_size]
            answer = encoder.encode_graph(part.batch())
            if answer.ndim != 2 or len(answer) != len(part):
                raise ValueError(f"encoder must answer [{len(part)}, d] to that many graphs, got {list(answer.shape)}")
            if not torch.isfinite(answer).all():
                row = first + int((~torch.isfinite(answer)).any(1).nonzero()[0])
                raise ValueError(f"encoder answered NaN or infinity to ego graph {row}: check its weights and its x")
            parts.append(answer.cpu())
    return torch.cat(parts)  # outside of inference mode, where the result becomes an ordinary tensor
