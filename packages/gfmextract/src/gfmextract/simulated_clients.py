"""Streams of queries as benign and as extracting clients send them, to try a monitor on."""

from __future__ import annotations

import numpy as np
import torch
from aisec_common.seeding import numpy_rng
from torch import Tensor


def benign_queries(cells: Tensor, *, clients: int, queries: int, focus: float = 0.3, seed: int = 0) -> list[Tensor]:
    """Simulated clients with interests: each draws shares of the cells from a Dirichlet law and nodes within them.

    Args:
        cells: [n] cell of each node, see `QueryMonitor.assigned`.
        clients: number of streams.
        queries: length of each; nodes come back, as popular things do.
        focus: concentration of the Dirichlet law; the smaller, the fewer cells a client cares for. What a monitor
            reaches depends on it: beside clients with wide interests (1 and above) a crawler hardly stands out.
        seed: of all draws.

    Returns:
        For each client [queries] nodes.

    >>> [len(stream) for stream in benign_queries(torch.arange(30) % 3, clients=2, queries=5)]
    [5, 5]

    Source: ours.
    """
    kinds, inside = np.unique(cells.numpy(), return_inverse=True)
    members = [np.flatnonzero(inside == kind) for kind in range(len(kinds))]
    streams = []
    for client in range(clients):
        rng = numpy_rng(seed, "benign", client)
        drawn = rng.choice(len(kinds), queries, p=rng.dirichlet(np.full(len(kinds), focus)))
        streams.append(torch.tensor([int(rng.choice(members[kind])) for kind in drawn]))
    return streams


def crawling_queries(nodes: int, *, clients: int, queries: int, seed: int = 0) -> list[Tensor]:
    """Simulated extractors: each asks about different nodes, all equally likely, none twice.

    Raises:
        ValueError: for more queries than nodes.
    """
    if queries > nodes:
        raise ValueError(f"queries must be at most the {nodes} nodes, got {queries}")
    return [
        torch.from_numpy(numpy_rng(seed, "crawling", client).permutation(nodes)[:queries]) for client in range(clients)
    ]
