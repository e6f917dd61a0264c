"""Unification fusion: the vectors as tokens of one Transformer, flattened to one vector (section 3.7)."""

from __future__ import annotations

from torch import Tensor, nn

from icfnet.attention import TokenMixer
from icfnet.config import ICFNetConfig


class Fusion(nn.Module):
    """T vectors -> one: Transformer over them as tokens (if unification), flatten, Linear-ReLU-Linear-ReLU.

    A missing vector is seen by no other and enters the flattened row as zeros. With one vector there is nothing to mix.

    Args:
        config: `fusion`, `tokens` and sizes.

    >>> import torch
    >>> fusion = Fusion(ICFNetConfig(width=8, heads=2)).eval()
    >>> fused, tokens = fusion(torch.zeros(3, 5, 8), torch.ones(3, 5, dtype=torch.bool))
    >>> fused.shape, tokens.shape
    (torch.Size([3, 8]), torch.Size([3, 5, 8]))
    """

    def __init__(self, config: ICFNetConfig) -> None:
        super().__init__()
        width, count = config.width, len(config.tokens)
        self.mixer = TokenMixer(config) if config.fusion == "unification" and count > 1 else None
        self.project = nn.Sequential(nn.Linear(count * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, vectors: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, C]` vectors and `[B, T]` (True: there) -> fused `[B, C]` and the tokens after mixing `[B, T, C]`."""
        tokens = vectors if self.mixer is None else self.mixer(vectors, present)
        tokens = tokens.masked_fill(~present[:, :, None], 0.0)
        return self.project(tokens.flatten(1)), tokens
