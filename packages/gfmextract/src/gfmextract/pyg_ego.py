"""Ego graphs of many nodes at once, in one pass over the rows of the graph, without pyg-lib or torch-sparse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from gfmextract.text_graph import TextGraph

ROOTS, PLACES = 4096, 2**22
"""At most so many roots at once, and so many (root, node) places in the table that finds members."""
FREE = torch.iinfo(torch.int64).max
EgoBatch: TypeAlias = Batch
"""What encoders read: many ego graphs as one disconnected graph, see `EgoGraphs.batch`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EgoGraphs:
    """The neighbourhoods of G roots: what a client submits to an embedding service, and what an encoder reads.

    Args:
        x: [M, F] features of all their nodes, one neighbourhood after the other, the root first.
        pe: [M, P] random-walk positions, see `random_walk_pe`.
        nodes: [M] ids of the nodes in the graph they come from.
        start: [G + 1] where each neighbourhood begins.
        edge_index: [2, E] edges, numbered within their own neighbourhood.
        edge_start: [G + 1] where the edges of each begin.
    """

    x: Tensor
    pe: Tensor
    nodes: Tensor
    start: Tensor
    edge_index: Tensor
    edge_start: Tensor

    def __len__(self) -> int:
        return len(self.start) - 1

    def __iter__(self) -> Iterator[Data]:
        """One `Data` after the other, for whoever wants them so."""
        yield from (self[torch.tensor([i])].data() for i in range(len(self)))

    def __getitem__(self, chosen: Tensor | slice) -> EgoGraphs:
        """Some of them, in the order of the indices [K]."""
        rows = torch.arange(len(self))[chosen]
        nodes, start = _ranges(self.start, rows)
        edges, edge_start = _ranges(self.edge_start, rows)
        return replace(
            self,
            x=self.x[nodes],
            pe=self.pe[nodes],
            nodes=self.nodes[nodes],
            start=start,
            edge_index=self.edge_index[:, edges],
            edge_start=edge_start,
        )

    @property
    def roots(self) -> Tensor:
        """[G] ids of the roots."""
        return self.nodes[self.start[:-1]]

    def batch(self) -> EgoBatch:
        """All of them as one disconnected graph, with `batch`, `ptr` and `root_n_index` counted over the whole."""
        sizes, edges = self.start.diff(), self.edge_start.diff()
        return Batch(
            x=self.x,
            pe=self.pe,
            edge_index=self.edge_index + self.start[:-1].repeat_interleave(edges),
            node_id=self.nodes,
            batch=torch.arange(len(self)).repeat_interleave(sizes),
            ptr=self.start,
            root_n_index=self.start[:-1],
        )

    @classmethod
    def of_batch(cls, batch: EgoBatch) -> EgoGraphs:
        """Those that `batch` put into one graph."""
        owner = batch.batch[batch.edge_index[0]]  # in ascending order, as `batch` leaves them
        return cls(
            x=batch.x,
            pe=batch.pe,
            nodes=batch.node_id,
            start=batch.ptr,
            edge_index=batch.edge_index - batch.ptr[owner],
            edge_start=_starts(torch.bincount(owner, minlength=len(batch.ptr) - 1)),
        )

    def data(self) -> Data:
        """The only neighbourhood as a plain `Data`.

        Raises:
            ValueError: when there is not exactly one.
        """
        if len(self) != 1:
            raise ValueError(f"there are {len(self)} ego graphs, not one: take one first, or use batch()")
        return Data(x=self.x, pe=self.pe, edge_index=self.edge_index, node_id=self.nodes, root_n_index=0)

    @classmethod
    def of(cls, graphs: Sequence[Data], *, positions: int = 8) -> EgoGraphs:
        """From `Data` objects with `x`, `edge_index` and, if it is not the first node, `root_n_index`.

        Raises:
            ValueError: for no graph, a graph without nodes, or features of unequal width; the message names it.
        """
        if not graphs:
            raise ValueError("graphs is empty: submit at least one ego graph")
        width = graphs[0].x.shape[1]
        parts, edges = [], []
        for i, graph in enumerate(graphs):
            if not len(graph.x) or graph.x.shape[1] != width:
                raise ValueError(f"x of graph {i} must be [nodes, {width}], got {list(graph.x.shape)}")
            root = int(graph.root_n_index) if "root_n_index" in graph else 0
            order = torch.cat([torch.tensor([root]), torch.arange(root), torch.arange(root + 1, len(graph.x))])
            parts.append((graph.x[order], graph.node_id[order] if "node_id" in graph else order))
            edges.append(order.argsort()[graph.edge_index])
        start = _starts(torch.tensor([len(x) for x, _ in parts]))
        edge_start = _starts(torch.tensor([each.shape[1] for each in edges]))
        joint = torch.cat(edges, 1)
        return cls(
            x=torch.cat([x for x, _ in parts]),
            pe=random_walk_pe(joint, start, edge_start, positions),
            nodes=torch.cat([nodes for _, nodes in parts]),
            start=start,
            edge_index=joint,
            edge_start=edge_start,
        )

    @classmethod
    def joined(cls, parts: Sequence[EgoGraphs]) -> EgoGraphs:
        """Those of several graphs, one part after the other; node ids stay those of their own graph.

        Raises:
            ValueError: for no part, or features or positions of unequal width; the message names it.
        """
        if not parts:
            raise ValueError("parts is empty: join at least one")
        widths = [(each.x.shape[1], each.pe.shape[1]) for each in parts]
        for i, width in enumerate(widths):
            if width != widths[0]:
                raise ValueError(f"parts: x and pe have width {width} in part {i} and {widths[0]} in part 0")
        return cls(
            x=torch.cat([each.x for each in parts]),
            pe=torch.cat([each.pe for each in parts]),
            nodes=torch.cat([each.nodes for each in parts]),
            start=_starts(torch.cat([each.start.diff() for each in parts])),
            edge_index=torch.cat([each.edge_index for each in parts], 1),
            edge_start=_starts(torch.cat([each.edge_start.diff() for each in parts])),
        )


def ego_graphs(
    graph: TextGraph,
    roots: Tensor,
    *,
    hops: int = 1,
    cap: int = 9,
    exclude: Tensor | None = None,
    positions: int = 8,
    seed: int = 0,
) -> EgoGraphs:
    """The subgraphs induced on the nodes within `hops` of each root, in time linear in the sum of their sizes.

    Of a hop that would exceed the cap a random part is taken; it depends on the root and the seed alone, so that a root
    has the same neighbourhood whatever is asked with it. A root without neighbours gets a loop.

    Args:
        graph: where they lie.
        roots: [G] nodes.
        hops: radius.
        cap: most nodes of one ego graph, its root included.
        exclude: nodes that appear nowhere, not even as neighbours (held-out nodes).
        positions: length of the random-walk positions.
        seed: of the choice where the cap bites.

    Raises:
        ValueError: for a root the graph does not have, one that is excluded, no hops or a cap below 1.

    >>> path = TextGraph(
    ...     name="path", x=torch.eye(3), edge_index=torch.tensor([[0, 1], [1, 2]]), texts=("a", "b", "c"),
    ...     y=torch.tensor([0, 1, 0]), classes=("outer", "inner"),
    ... )
    >>> ego_graphs(path, torch.tensor([0, 1])).nodes.tolist()  # 0 with its neighbour, then 1 with both
    [0, 1, 1, 0, 2]

    Source: arXiv 2511.11912, section on the victim (ego-subgraphs); the algorithm is ours.
    """
    if hops < 1 or cap < 1:
        raise ValueError(f"hops and cap must be at least 1, got {hops} and {cap}")
    if roots.ndim != 1 or not len(roots):
        raise ValueError(f"roots must be [G] with at least one node, got {list(roots.shape)}")
    if roots.min() < 0 or roots.max() >= len(graph):
        raise ValueError(f"roots names node {int(roots.max())}, graph {graph.name!r} has nodes 0 to {len(graph) - 1}")
    allowed = torch.ones(len(graph), dtype=torch.bool)
    if exclude is not None:
        allowed[exclude] = False
        if not allowed[roots].all():
            raise ValueError(f"roots holds node {int(roots[~allowed[roots]][0])}, which exclude leaves out")
    at_once = max(1, min(ROOTS, PLACES // len(graph), len(roots)))
    table = torch.full((at_once * len(graph),), FREE)
    found = [_around(graph, part, hops, cap, allowed, seed, table) for part in _split(roots, at_once)]
    nodes, sizes, edges, edge_counts = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    start, edge_start = _starts(sizes), _starts(edge_counts)
    return EgoGraphs(
        x=graph.x[nodes],
        pe=random_walk_pe(edges, start, edge_start, positions),
        nodes=nodes,
        start=start,
        edge_index=edges,
        edge_start=edge_start,
    )


def random_walk_pe(edge_index: Tensor, start: Tensor, edge_start: Tensor, length: int) -> Tensor:
    """Chance that a random walk is back where it began after 1..length steps.

    PE_v = ((P)_vv, (P^2)_vv, ..., (P^length)_vv), P = D^-1 A

    Args:
        edge_index: [2, E] numbered within each graph.
        start, edge_start: [G + 1] where nodes and edges of each graph begin.
        length: number of steps.

    Returns:
        [M, length].
    """
    sizes, counts = start.diff(), edge_start.diff()
    made = torch.zeros(int(start[-1]), length)
    if not length:
        return made
    largest = int(sizes.max())
    for graphs in _split(torch.arange(len(sizes)), max(1, 2**24 // largest**2)):
        edges, _ = _ranges(edge_start, graphs)
        owner = torch.arange(len(graphs)).repeat_interleave(counts[graphs])
        adjacent = torch.zeros(len(graphs), largest, largest)
        adjacent[owner, edge_index[0, edges], edge_index[1, edges]] = 1.0
        walk = adjacent / adjacent.sum(-1, keepdim=True).clamp(min=1.0)
        power, back = walk, []
        for _ in range(length):
            back.append(power.diagonal(dim1=1, dim2=2))
            power = power @ walk
        inside = torch.arange(largest) < sizes[graphs].unsqueeze(1)
        nodes, _ = _ranges(start, graphs)
        made[nodes] = torch.stack(back, -1)[inside]
    return made


def _around(
    graph: TextGraph, roots: Tensor, hops: int, cap: int, allowed: Tensor, seed: int, table: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes, how many each root has, edges numbered within each neighbourhood, and how many each has.

    `table` tells for each (root, node) its number within the neighbourhood; it is free before and after. Looking up is
    what makes the time linear: neither members nor edges are ever sorted.
    """
    total = len(graph)
    owner, node = torch.arange(len(roots)), roots
    table[owner * total + node] = 0
    owners, nodes, sizes = [owner], [node], torch.ones(len(roots), dtype=torch.int64)
    for _ in range(hops):
        at, reached = _neighbours(graph, node)
        keys = owner[at] * total + reached
        keys = keys[(table[keys] == FREE) & allowed[reached]]
        number = torch.arange(len(keys))
        table.scatter_reduce_(0, keys, number, "amin")
        keys = keys[table[keys] == number]  # each new member once
        keys, left_out = _capped(keys, roots, cap - sizes, total, seed)
        table[left_out] = FREE
        owner, node = keys // total, keys % total
        sizes = sizes + torch.bincount(owner, minlength=len(roots))
        owners.append(owner)
        nodes.append(node)
    owner, node = torch.cat(owners), torch.cat(nodes)
    order = owner.argsort(stable=True)  # roots stay first, nearer nodes before farther ones
    owner, node = owner[order], node[order]
    keys = owner * total + node
    place = torch.arange(len(owner)) - _starts(sizes)[owner]
    table[keys] = place
    at, reached = _neighbours(graph, node)
    ends = table[owner[at] * total + reached]
    inside = ends != FREE
    at = at[inside]
    edges = torch.stack([place[at], ends[inside]])
    table[keys] = FREE
    counts = torch.bincount(owner[at], minlength=len(roots))
    alone = (counts == 0).nonzero().squeeze(1)
    if len(alone):
        whose = torch.cat([owner[at], alone])
        edges = torch.cat([edges, torch.zeros(2, len(alone), dtype=torch.int64)], 1)[:, whose.argsort(stable=True)]
        counts[alone] = 1
    return node, sizes, edges, counts


def _capped(keys: Tensor, roots: Tensor, room: Tensor, total: int, seed: int) -> tuple[Tensor, Tensor]:
    """The keys for which their root has room, in the order they came, and those left out."""
    owner = keys // total
    crowded = (torch.bincount(owner, minlength=len(roots)) > room)[owner]
    if not crowded.any():
        return keys, keys[:0]
    some = crowded.nonzero().squeeze(1)
    drawn = some[_mixed(roots[owner[some]], keys[some] % total, seed).argsort()]
    drawn = drawn[owner[drawn].argsort(stable=True)]
    rank = torch.arange(len(drawn)) - _starts(torch.bincount(owner[drawn], minlength=len(roots)))[owner[drawn]]
    keep = torch.ones(len(keys), dtype=torch.bool)
    keep[drawn[rank >= room[owner[drawn]]]] = False
    return keys[keep], keys[~keep]


def _neighbours(graph: TextGraph, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """All neighbours of `nodes`: which of them each belongs to, and the neighbour."""
    start, indices = graph.neighbours
    entries, counts = _ranges(start, nodes)
    return torch.arange(len(nodes)).repeat_interleave(counts.diff()), indices[entries]


def _ranges(start: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The entries start[r]..start[r + 1] - 1 of each row, one after the other, and where each row's begin."""
    counts = start[rows + 1] - start[rows]
    begin = _starts(counts)
    entries = torch.arange(int(begin[-1])) + (start[rows] - begin[:-1]).repeat_interleave(counts)
    return entries, begin


def _starts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _split(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = rows.split(size)  # type: ignore[no-untyped-call]
    return parts


def _mixed(root: Tensor, node: Tensor, seed: int) -> Tensor:
    """A number for each (root, node) that looks drawn at random: splitmix64 on wrapping 64-bit integers."""
    value = root * -7046029254386353131 + node * -4658895280553007687 + (seed + 1) * 8536931
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        value = (value ^ ((value >> shift) & (2 ** (64 - shift) - 1))) * factor
    return value ^ ((value >> 31) & (2**33 - 1))
