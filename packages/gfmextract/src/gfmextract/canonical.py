"""A hash that tells ego graphs apart and does not see how their nodes are numbered."""

from __future__ import annotations

import torch
from torch import Tensor

from gfmextract.pyg_ego import EgoGraphs, random_walk_pe

ROUNDS, WALK = 16, 8
"""Rounds of refinement and steps of the closed walks: the same for every graph, or a hash would depend on the batch."""
PRIME = 2**20 - 3
"""Walks are counted modulo it: sums of up to 8,000 products of two such numbers are exact in double precision."""
PLACES, ENTRIES = 2**22, 2**15
"""Places of adjacency matrices and entries of features that are worked on at once."""


def canonical_hash(egos: EgoGraphs) -> Tensor:
    """A 128-bit hash of each ego graph, equal for equal graphs however their nodes are numbered.

    Weisfeiler-Lehman refinement over integers, h_v <- mix(h_v, sum_u mix'(h_u)) with sums over incoming and, mixed
    otherwise, outgoing edges. The first labels hold the exact bits of x_v, whether v is the root, and v's closed walks
    with steps weighted by degree. Those see what random-walk positions see, so that an encoder that reads positions
    does not tell apart what the hash takes for one; two graphs that no refinement and no such walk tells apart share a
    hash. All sums are over integers and so exact in every order.

    The positions themselves are a function of the edges and only checked: rounding makes them differ in their last
    bits with the numbering of the nodes.

    Args:
        egos: G ego graphs.

    Returns:
        [G, 2] int64, the same whatever graphs they are hashed with.

    Raises:
        ValueError: for an ego graph whose positions are not those of its edges.

    Source: Shervashidze et al., Weisfeiler-Lehman graph kernels (JMLR 2011); labels and mixing are ours.
    """
    _require_positions(egos)
    sizes, edges = egos.start.diff(), egos.edge_start.diff()
    source, target = egos.edge_index + egos.start[:-1].repeat_interleave(edges)
    owner = torch.arange(len(egos)).repeat_interleave(sizes)
    features = _features(egos.x)
    root = torch.zeros(len(egos.x), dtype=torch.int64)
    root[egos.start[:-1]] = 1
    lanes = []
    for lane in (1, 2):
        label = features[:, lane - 1] + _mixed(root, lane + 10)
        label = _mixed(label + _closed_walks(egos, lane), lane)
        for _ in range(ROUNDS):
            incoming = torch.zeros_like(label).index_add_(0, target, _mixed(label, lane + 20)[source])
            outgoing = torch.zeros_like(label).index_add_(0, source, _mixed(label, lane + 30)[target])
            label = _mixed(_mixed(label, lane + 40) + _mixed(incoming, lane + 50) + outgoing, lane)
        whole = torch.zeros(len(egos), dtype=torch.int64).index_add_(0, owner, _mixed(label, lane + 60))
        lanes.append(_mixed(whole, lane))
    return torch.stack(lanes, 1)


def _features(x: Tensor) -> Tensor:
    """[M, 2] a mix of the exact bits of each row, in parts that fit the processor's cache."""
    columns = torch.arange(x.shape[1])
    place, factors = _mixed(columns, 1), torch.stack([_mixed(columns, salt) | 1 for salt in (2, 3)])
    parts = []
    for part in x.split(max(1, ENTRIES // max(1, x.shape[1]))):  # type: ignore[no-untyped-call]
        bits = (part.double() + 0.0).view(torch.int64)  # + 0.0 makes one zero of two
        mixed = _mixed(bits ^ place, 1)
        parts.append(torch.stack([(mixed * each).sum(1) for each in factors], 1))
    return torch.cat(parts)


def _closed_walks(egos: EgoGraphs, lane: int) -> Tensor:
    """[M] a mix of the weighted numbers, modulo PRIME, of walks of 1..WALK steps from each node back to itself."""
    sizes, counts = egos.start.diff(), egos.edge_start.diff()
    largest = int(sizes.max())
    mixed = torch.zeros(len(egos.x), dtype=torch.int64)
    graphs = torch.arange(len(egos))
    at_once = max(1, PLACES // largest**2)
    for first in range(0, len(egos), at_once):
        part = egos[first : first + at_once]
        owner = torch.arange(len(part)).repeat_interleave(counts[graphs[first : first + at_once]])
        adjacent = torch.zeros(len(part), largest, largest, dtype=torch.float64)
        ends = (owner, part.edge_index[0], part.edge_index[1])
        adjacent.index_put_(ends, torch.ones(len(owner), dtype=torch.float64), accumulate=True)
        weight = (_mixed(adjacent.sum(2).long(), lane + 70) % (PRIME - 1) + 1).double()
        step = adjacent * weight.unsqueeze(2) % PRIME
        power, walks = step, torch.zeros(len(part), largest, dtype=torch.int64)
        for length in range(WALK):
            walks = _mixed(walks + power.diagonal(dim1=1, dim2=2).long(), lane + 80)
            if length + 1 < WALK:
                power = power @ step % PRIME
        inside = torch.arange(largest) < part.start.diff().unsqueeze(1)
        begin = int(egos.start[first])
        mixed[begin : begin + len(part.x)] = walks[inside]
    return mixed


def _require_positions(egos: EgoGraphs) -> None:
    expected = random_walk_pe(egos.edge_index, egos.start, egos.edge_start, egos.pe.shape[1])
    wrong = ((egos.pe - expected).abs() > 1e-4).any(1)
    if wrong.any():
        node = int(wrong.nonzero()[0])
        graph = int(torch.searchsorted(egos.start, torch.tensor(node), right=True)) - 1
        raise ValueError(f"pe of ego graph {graph} is not what its edges give: compute it with random_walk_pe")


def _mixed(value: Tensor, salt: int) -> Tensor:
    """splitmix64 on wrapping 64-bit integers."""
    value = value + ((salt * 0x9E3779B97F4A7C15 + 2**63) % 2**64 - 2**63)  # salts are Python numbers and do not wrap
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        value = (value ^ ((value >> shift) & (2 ** (64 - shift) - 1))) * factor
    return value ^ ((value >> 31) & (2**33 - 1))
