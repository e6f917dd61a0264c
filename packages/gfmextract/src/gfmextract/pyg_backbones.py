"""Encoders of ego graphs that an attacker may train: one stem and one readout around six kinds of layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import GPSConv, SAGEConv, global_mean_pool
from torch_geometric.nn.models import GAT, GCN, GIN, MLP, GraphSAGE

from gfmextract.config import BACKBONES, BackboneName

POSITION_WIDTH = 8
POSITION_EPS = 1e-2
"""Added to the variance of positions. Only an isolated root's walk is back after one step; where training saw none,
that position has no variance, and the usual 1e-5 would make this node's vector some 40 times as long as any other."""


class Backbone(nn.Module):
    """Stem, layers and readout of an encoder, z = W [mean_v h_v ; h_root] + b.

    The stem puts Linear(x) beside Linear(BatchNorm(pe)); the layers are those of `make_backbone`.

    Args:
        layers: from nodes [M, hidden], edges [2, E] and the batch of each node to nodes [M, hidden].
        in_dim: F, width of node features.
        out_dim: d, width of the vectors.
        hidden: width in between.
        positions: P, width of random-walk positions; 0 for none.
    """

    def __init__(self, layers: nn.Module, in_dim: int, out_dim: int, *, hidden: int, positions: int) -> None:
        super().__init__()
        beside = POSITION_WIDTH if positions else 0
        self.features = nn.Linear(in_dim, hidden - beside)
        self.positions = None
        if positions:
            norm = nn.BatchNorm1d(positions, eps=POSITION_EPS)
            self.positions = nn.Sequential(norm, nn.Linear(positions, beside))
        self.layers = layers
        self.readout = nn.Linear(2 * hidden, out_dim)

    def encode_graph(self, batch: Batch) -> Tensor:
        """[G, d] vectors of the ego graphs of a batch."""
        h = self.features(batch.x)
        if self.positions is not None:
            h = torch.cat([h, self.positions(batch.pe)], 1)
        h = self.layers(h, batch.edge_index, batch.batch)
        pooled = global_mean_pool(h, batch.batch, batch.num_graphs)
        vectors: Tensor = self.readout(torch.cat([pooled, h[batch.root_n_index]], 1))
        return vectors


class _Layer(GPSConv):  # type: ignore[misc]
    """A GPS layer that is told where nodes stand in the padded batch, which `GPSConv` finds out in every layer anew."""

    def forward(self, x: Tensor, edge_index: Tensor, place: Tensor, empty: Tensor) -> Tensor:
        """From nodes [M, hidden] to such; `place` [M] of each among those of `empty` [G, N], which marks padding."""
        local: Tensor = self.norm1(self.conv(x, edge_index) + x)
        padded = x.new_zeros(empty.numel(), x.shape[1]).index_copy(0, place, x).view(*empty.shape, -1)
        attended, _ = self.attn(padded, padded, padded, key_padding_mask=empty, need_weights=False)
        far: Tensor = self.norm2(attended.reshape(-1, x.shape[1]).index_select(0, place) + x)
        both = local + far
        made: Tensor = self.norm3(both + self.mlp(both))
        return made


class _Transformer(nn.Module):
    """GPS layers: local SAGE convolutions beside attention over the ego graph."""

    def __init__(self, hidden: int, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(hidden, SAGEConv(hidden, hidden), heads=heads) for _ in range(layers))

    def forward(self, h: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        sizes = torch.bincount(batch)
        largest = int(sizes.max())
        place = torch.arange(len(batch), device=batch.device) + batch * largest - (sizes.cumsum(0) - sizes)[batch]
        empty = torch.arange(largest, device=batch.device) >= sizes.unsqueeze(1)
        for layer in self.layers:
            h = layer(h, edge_index, place, empty)
        return h


class _Messages(nn.Module):
    """One of PyG's message-passing models with a skip around it; it has no use for the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, h: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        made: Tensor = h + self.model(h, edge_index)
        return made


class _Nodes(nn.Module):
    """The same layers on every node, blind to edges, with a skip around them."""

    def __init__(self, hidden: int, layers: int) -> None:
        super().__init__()
        self.model = MLP([hidden] * (layers + 1), plain_last=False)

    def forward(self, h: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        made: Tensor = h + self.model(h)
        return made


def make_backbone(
    name: BackboneName,
    in_dim: int,
    out_dim: int,
    *,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    positions: int = POSITION_WIDTH,
) -> Backbone:
    """An encoder with fresh weights from torch's global generator; fix it with `torch.random.fork_rng` and a seed.

    Args:
        name: gps (as GraphCLIP's), sage, gcn, gat, gin, or mlp, which sees edges through positions only.
        in_dim: F, width of node features.
        out_dim: d, width of the vectors.
        layers: how many.
        hidden: width, a multiple of `heads` and above 8.
        heads: of attention (gps, gat).
        positions: P, width of random-walk positions; 0 for none.

    Raises:
        ValueError: for an unknown name or a width that does not fit.

    >>> make_backbone("sage", 16, 4, hidden=16).readout
    Linear(in_features=32, out_features=4, bias=True)

    Source: GraphCLIP (arXiv 2410.10329) for stem, GPS layers and readout; the other backbones are ours.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {name!r}")
    if hidden <= POSITION_WIDTH or hidden % heads:
        raise ValueError(f"hidden must be above {POSITION_WIDTH} and a multiple of {heads} heads, got {hidden}")
    made: nn.Module
    if name == "gps":
        made = _Transformer(hidden, layers, heads)
    elif name == "mlp":
        made = _Nodes(hidden, layers)
    else:
        kind = {"sage": GraphSAGE, "gcn": GCN, "gat": GAT, "gin": GIN}[name]
        options = {"heads": heads} if name == "gat" else {}
        made = _Messages(kind(hidden, hidden, layers, norm="batch_norm", **options))
    return Backbone(made, in_dim, out_dim, hidden=hidden, positions=positions)
