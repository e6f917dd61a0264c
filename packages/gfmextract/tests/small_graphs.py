"""Graphs small enough to look at."""

import torch

from gfmextract.text_graph import TextGraph


def made_graph(nodes, density, seed):
    """A random graph with features that tell its nodes apart; at least one edge."""
    rng = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(nodes, nodes, generator=rng) < density / 2).nonzero().T
    edges = torch.cat([drawn, torch.tensor([[0], [1]])], 1)
    return TextGraph(
        name="made",
        x=torch.randn(nodes, 4, generator=rng),
        edge_index=edges,
        texts=[f"text {i}" for i in range(nodes)],
        y=torch.arange(nodes) % 2,
        classes=("one", "two"),
    )
