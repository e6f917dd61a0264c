"""Residual orthogonal decomposition: what the patches say beyond their co-attended bags (section 3.6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens, 0 where there is none: `[B, N, C]` and `[B, N]` -> `[B, C]`.

    >>> masked_mean(torch.tensor([[[1.0], [9.0]]]), torch.tensor([[True, False]]))
    tensor([[1.]])
    """
    weight = mask.to(tokens.dtype)[:, :, None]
    return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)


def orthogonality_loss(residual: Tensor, co_attended: Sequence[Tensor]) -> Tensor:
    """L_orth = sum over the co-attended vectors of |cos(h, o)|, for each patient.

    Args:
        residual: `[B, C]` o.
        co_attended: h_pg and h_pt, `[B, C]` each; a vector of zeros adds nothing.

    Returns:
        `[B]`.

    >>> orthogonality_loss(torch.tensor([[0.0, 2.0]]), [torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, -1.0]])])
    tensor([1.])
    """
    zero = residual.new_zeros(len(residual))
    return torch.stack([zero, *(cosine_similarity(h, residual, dim=-1).abs() for h in co_attended)]).sum(0)


class ResidualDecomposition(nn.Module):
    """r = Dropout(ReLU(W mean_n H_p)), o = r - h_pg - h_pt, h_p = Dropout(ReLU(W'(r + o))).

    Args:
        width: C.
        dropout: of both layers.
        residual: False leaves o out: h_p = Dropout(ReLU(W' r)), the arm without decomposition.

    >>> rod = ResidualDecomposition(4, dropout=0.0)
    >>> pooled, residual = rod(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), [torch.zeros(2, 4)])
    >>> pooled.shape, residual.shape
    (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    def __init__(self, width: int, *, dropout: float, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.pooled = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout))
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, patches: Tensor, mask: Tensor, co_attended: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """`[B, N, C]` patches, `[B, N]` (True: real), vectors `[B, C]` -> h_p and o, `[B, C]` each."""
        r: Tensor = self.pooled(masked_mean(patches, mask))
        if not self.residual:
            return self.project(r), torch.zeros_like(r)
        o = torch.stack([r, *(-h for h in co_attended)]).sum(0)
        return self.project(r + o), o
