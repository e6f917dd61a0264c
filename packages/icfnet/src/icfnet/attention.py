"""Aggregators: a small Transformer over a bag's tokens, then gated attention pooling (section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icfnet.config import ICFNetConfig


class TokenMixer(nn.Module):
    """A Transformer encoder in which masked tokens are seen by nobody.

    Args:
        config: width, heads, feed-forward width, layers, dropout.
        isolated: each token attends to itself alone.

    >>> mixer = TokenMixer(ICFNetConfig(width=8, heads=2)).eval()
    >>> mixer(torch.zeros(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, config: ICFNetConfig, *, isolated: bool = False) -> None:
        super().__init__()
        self.isolated = isolated
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.hidden, config.dropout, activation="relu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`[B, T, C]` tokens and `[B, T]` (True: real) -> `[B, T, C]`; what stands at masked tokens has no meaning."""
        if self.isolated:  # then nobody looks at padding anyway
            apart = ~torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
            out: Tensor = self.encoder(tokens, mask=apart)
        else:
            out = self.encoder(tokens, src_key_padding_mask=~_never_empty(mask))
        return out


class GatedAttentionPooling(nn.Module):
    """A bag's weighted mean, weights softmax over tokens of w^T(tanh(V h) * sigmoid(U h)) (Ilse et al., 2018).

    Args:
        width: C.

    >>> pool = GatedAttentionPooling(4)
    >>> tokens, mask = torch.randn(2, 3, 4), torch.tensor([[True, False, False], [True, True, True]])
    >>> bool(torch.allclose(pool(tokens, mask)[0], tokens[0, 0]))
    True
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tanh, self.sigmoid, self.score = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`[B, T, C]` tokens and `[B, T]` (True: real) -> `[B, C]`."""
        score = self.score(torch.tanh(self.tanh(tokens)) * torch.sigmoid(self.sigmoid(tokens)))
        weight = score.masked_fill(~_never_empty(mask)[:, :, None], -torch.inf).softmax(1)
        pooled: Tensor = (weight * tokens).sum(1)
        return pooled


class Aggregator(nn.Module):
    """A bag -> one vector: Transformer (if `mixing`), gated attention pooling, Linear, ReLU, dropout.

    Args:
        config: sizes.
        mixing: whether tokens see each other before they are pooled; patches do not.
        isolated: see `TokenMixer`.

    >>> bag, mask = torch.zeros(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    >>> Aggregator(ICFNetConfig(width=8, heads=2))(bag, mask).shape
    torch.Size([1, 8])
    """

    def __init__(self, config: ICFNetConfig, *, mixing: bool = True, isolated: bool = False) -> None:
        super().__init__()
        self.mixer = TokenMixer(config, isolated=isolated) if mixing else None
        self.pool = GatedAttentionPooling(config.width)
        self.project = nn.Sequential(nn.Linear(config.width, config.width), nn.ReLU(), nn.Dropout(config.dropout))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """`[B, T, C]` tokens and `[B, T]` (True: real) -> `[B, C]`."""
        mixed = tokens if self.mixer is None else self.mixer(tokens, mask)
        out: Tensor = self.project(self.pool(mixed, mask))
        return out


class SoftmaxCoAttention(nn.Module):
    """Co-attention with learnt queries and keys: softmax over patches of q(Y) k(X)^T / sqrt(C), the MCAT form.

    Args:
        width: C.

    >>> attend = SoftmaxCoAttention(4)
    >>> x, y = torch.zeros(1, 5, 4), torch.zeros(1, 2, 4)
    >>> attend(x, y, torch.ones(1, 5, dtype=torch.bool)).shape
    torch.Size([1, 2, 4])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, x_mask: Tensor) -> Tensor:
        """`[B, N, C]` patches, `[B, M, C]` tokens, `[B, N]` (True: real) -> `[B, M, C]`."""
        out: Tensor = self.attention(y, x, x, key_padding_mask=~_never_empty(x_mask), need_weights=False)[0]
        return out


def _never_empty(mask: Tensor) -> Tensor:
    """The mask, all True where a row is all False: a softmax over nothing is NaN, and such a row is dropped later."""
    return mask | ~mask.any(-1, keepdim=True)
