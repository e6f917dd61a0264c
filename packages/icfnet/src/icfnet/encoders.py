"""From raw modalities to tokens of width C: patches, gene groups, sentences, structured facts (section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class PatchEncoder(nn.Sequential):
    """Patch features -> tokens: ReLU(W x), with dropout.

    Args:
        features: D of a patch.
        width: C.
        dropout: after the ReLU.

    >>> PatchEncoder(8, 4, dropout=0.25)(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, features: int, width: int, *, dropout: float) -> None:
        super().__init__(nn.Linear(features, width), nn.ReLU(), nn.Dropout(dropout))


class GeneEncoder(nn.Module):
    """One self-normalising network a gene group: three blocks Linear, ELU, AlphaDropout.

    Args:
        groups: group name -> number of columns g_j.
        width: C.
        dropout: of each block.

    >>> GeneEncoder({"Oncogenes": 7, "Kinases": 3}, 4, dropout=0.0)([torch.zeros(2, 7), torch.zeros(2, 3)]).shape
    torch.Size([2, 2, 4])
    """

    def __init__(self, groups: Mapping[str, int], width: int, *, dropout: float) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(
                *_block(columns, width, dropout), *_block(width, width, dropout), *_block(width, width, dropout)
            )
            for columns in groups.values()
        )

    def forward(self, groups: list[Tensor]) -> Tensor:
        """`[B, g_j]` for each group, in the order of `groups` -> `[B, groups, C]`."""
        return torch.stack([net(columns) for net, columns in zip(self.networks, groups, strict=True)], dim=1)


class TextEncoder(nn.Module):
    """CLIP-Adapter on frozen sentence embeddings: e' = a A(e) + (1 - a) e, then ReLU(W e').

    A is two layers without bias through a quarter of the width, a is learnt and starts at 0.2.

    Args:
        features: width of the embeddings, 768 for CLIP ViT-L/14.
        width: C.

    >>> encoder = TextEncoder(8, 4)
    >>> encoder(torch.zeros(2, 2, 8)).shape, round(encoder.share.item(), 3)
    (torch.Size([2, 2, 4]), 0.2)
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        hidden = max(1, features // 4)
        self.adapter = nn.Sequential(
            nn.Linear(features, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, features, bias=False), nn.ReLU()
        )
        self.share = nn.Parameter(torch.tensor(0.2))
        self.project = nn.Sequential(nn.Linear(features, width), nn.ReLU())

    def forward(self, embeddings: Tensor) -> Tensor:
        """`[B, sentences, features]` -> `[B, sentences, C]`; one encoder for all sentences."""
        adapted = self.share * self.adapter(embeddings) + (1 - self.share) * embeddings
        out: Tensor = self.project(adapted)
        return out


class StructuredEncoder(nn.Sequential):
    """Structured facts -> one token: Linear to 64, ELU, AlphaDropout(.2), Linear, ELU.

    Args:
        features: how many facts.
        width: C.

    >>> StructuredEncoder(5, 4)(torch.zeros(2, 5)).shape
    torch.Size([2, 4])
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__(nn.Linear(features, 64), nn.ELU(), nn.AlphaDropout(0.2), nn.Linear(64, width), nn.ELU())


def _block(features: int, width: int, dropout: float) -> tuple[nn.Module, ...]:
    return nn.Linear(features, width), nn.ELU(), nn.AlphaDropout(dropout)
