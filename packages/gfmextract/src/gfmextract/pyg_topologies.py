"""Graphs that differ in nothing but their shape: what a foundation model of topology is asked about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from aisec_common.seeding import derived_seed, torch_rng
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import barabasi_albert_graph, erdos_renyi_graph, to_undirected

from gfmextract.pyg_ego import EgoGraphs

KINDS = ("tree", "erdos_renyi", "barabasi_albert", "watts_strogatz")


def topologies(
    seed: int, *, each: int, nodes: int = 30, kinds: tuple[str, ...] = KINDS, positions: int = 8
) -> tuple[EgoGraphs, Tensor]:
    """Random graphs of four kinds, about equally many of each, with a constant as their only feature.

    Random recursive trees; Erdos-Renyi with 4 expected neighbours; Barabasi-Albert with 2 edges a new node;
    Watts-Strogatz, a ring of 4 neighbours with a tenth of the edges rewired. The root is drawn at random.

    Args:
        seed: of all that is drawn.
        each: graphs of a kind.
        nodes: of each graph.
        kinds: of `KINDS`.
        positions: length of the random-walk positions.

    Returns:
        The graphs and [G] their kinds as places in `KINDS`, in random order.

    Raises:
        ValueError: for an unknown kind, no graph, or fewer than 6 nodes.

    >>> graphs, kinds = topologies(0, each=2)
    >>> len(graphs), kinds.bincount().tolist()
    (8, [2, 2, 2, 2])

    Source: Erdos-Renyi and Barabasi-Albert graphs are those of torch_geometric; the selection is ours.
    """
    if each < 1 or nodes < 6:
        raise ValueError(f"each must be at least 1 and nodes at least 6, got {each} and {nodes}")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds must be of {', '.join(KINDS)}, not {unknown[0]!r}")
    rng = torch_rng(seed, "topologies")
    labels = torch.tensor([KINDS.index(kind) for kind in kinds]).repeat_interleave(each)
    labels = labels[torch.randperm(len(labels), generator=rng)]
    with _seeded(derived_seed(seed, "generators")):
        graphs = [_one(KINDS[label], nodes, rng) for label in labels.tolist()]
    return EgoGraphs.of(graphs, positions=positions), labels


def _one(kind: str, nodes: int, rng: torch.Generator) -> Data:
    if kind == "tree":
        edges = _tree(nodes, rng)
    elif kind == "erdos_renyi":
        edges = erdos_renyi_graph(nodes, 4 / (nodes - 1))
    elif kind == "barabasi_albert":
        edges = barabasi_albert_graph(nodes, 2)
    else:
        edges = _watts_strogatz(nodes, rng)
    root = int(torch.randint(nodes, (1,), generator=rng))
    return Data(x=torch.ones(nodes, 1), edge_index=edges, root_n_index=root)


def _tree(nodes: int, rng: torch.Generator) -> Tensor:
    child = torch.arange(1, nodes)
    parent = (torch.rand(nodes - 1, generator=rng) * child).long()
    edges: Tensor = to_undirected(torch.stack([parent, child]), num_nodes=nodes)
    return edges


def _watts_strogatz(nodes: int, rng: torch.Generator, chance: float = 0.1) -> Tensor:
    source = torch.arange(nodes).repeat(2)
    target = (source + torch.tensor([1, 2]).repeat_interleave(nodes)) % nodes
    moved = torch.rand(len(source), generator=rng) < chance
    elsewhere = (source + torch.randint(1, nodes, source.shape, generator=rng)) % nodes  # never a loop
    edges: Tensor = to_undirected(torch.stack([source, torch.where(moved, elsewhere, target)]), num_nodes=nodes)
    return edges


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generators of torch_geometric draw from the global ones, which are as before afterwards."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
        finally:
            np.random.set_state(state)
