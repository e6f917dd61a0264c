"""Six scenarios of extraction: what the attacker asks about, what its copy is tested on, which encoder it trains.

>>> from gfmextract.text_graph import TextGraph
>>> graph = TextGraph(
...     name="ring", x=torch.eye(20), edge_index=torch.stack([torch.arange(20), torch.arange(20).roll(1)]),
...     texts=["a"] * 20, y=torch.arange(20) % 2, classes=("even", "odd"),
... )
>>> [(row.label, len(row.queries), len(row.test_nodes)) for row in query_budget(graph, [0.5, 1.0]).rows]
[('50%', 5, 10), ('100%', 10, 10)]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

import torch
from aisec_common.seeding import torch_rng
from torch import Tensor

from gfmextract.config import BACKBONES, BackboneName
from gfmextract.pyg_ego import EgoGraphs, ego_graphs
from gfmextract.text_graph import TextGraph

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
VISIBLE = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """How much of a graph goes with its root into an ego graph; see `ego_graphs`."""

    hops: int = 1
    cap: int = 9
    positions: int = 8
    seed: int = 0

    def of(self, graph: TextGraph, roots: Tensor, exclude: Tensor | None = None) -> EgoGraphs:
        """The ego graphs of some roots."""
        return ego_graphs(
            graph, roots, hops=self.hops, cap=self.cap, exclude=exclude, positions=self.positions, seed=self.seed
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One extraction: from queries to a test.

    Args:
        label: what sets it apart from the other rows of its scenario.
        queried: graph that the attacker asks about.
        queries: [Q] nodes of it, asked in this order, each once.
        test: graph that the copy is tested on; it may be the same.
        test_nodes: [T] nodes of it; on the same graph none of them is a query.
        visible: [V] nodes of `queried` that the attacker sees (S5), all by default; ego graphs are induced on them.
        strict: test nodes of the same graph are not even neighbours in what is asked.
        neighbourhood: of the ego graphs.
        backbone, layers, hidden: of the attacker's encoder in this row, in place of the attack's own (S3).

    Raises:
        ValueError: for no query, a query twice, a query that is tested or cannot be seen; the message names the node.
    """

    label: str
    queried: TextGraph
    queries: Tensor
    test: TextGraph
    test_nodes: Tensor
    visible: Tensor | None = None
    strict: bool = False
    neighbourhood: Neighbourhood = Neighbourhood()
    backbone: BackboneName | None = None
    layers: int | None = None
    hidden: int | None = None

    def __post_init__(self) -> None:
        for name, nodes in (("queries", self.queries), ("test_nodes", self.test_nodes)):
            if nodes.ndim != 1 or not len(nodes):
                raise ValueError(f"{name} of row {self.label!r} must name at least one node, got {list(nodes.shape)}")
        values, counts = torch.unique(self.queries, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"queries of row {self.label!r} hold node {int(values[counts > 1][0])} twice: ask once")
        if self.queried is self.test:
            both = self.queries[torch.isin(self.queries, self.test_nodes)]
            if len(both):
                raise ValueError(f"queries of row {self.label!r} hold the test node {int(both[0])}: take it out of one")
        if self.visible is not None and not torch.isin(self.queries, self.visible).all():
            unseen = self.queries[~torch.isin(self.queries, self.visible)]
            raise ValueError(f"queries of row {self.label!r} hold node {int(unseen[0])}, which is not in visible")

    @property
    def excluded(self) -> Tensor | None:
        """[X] nodes that appear in nothing that is asked, ascending; None where all may."""
        out = torch.zeros(len(self.queried), dtype=torch.bool)
        if self.visible is not None:
            out[:] = True
            out[self.visible] = False
        if self.strict and self.queried is self.test:
            out[self.test_nodes] = True
        return out.nonzero().squeeze(1) if out.any() else None

    def query_egos(self) -> EgoGraphs:
        """What the attacker submits."""
        return self.neighbourhood.of(self.queried, self.queries, self.excluded)

    def test_egos(self) -> EgoGraphs:
        """What victim and copy are compared on: neighbourhoods in the full graph."""
        return self.neighbourhood.of(self.test, self.test_nodes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenario:
    """Rows that vary one thing.

    Raises:
        ValueError: for no row, or two rows of one label.
    """

    name: str
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError(f"rows of scenario {self.name!r} must be at least one")
        labels = [row.label for row in self.rows]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"rows of scenario {self.name!r} hold the label {twice!r} twice: name the graphs apart")


def domain_level(graphs: Sequence[TextGraph], *, neighbourhood: Neighbourhood = Neighbourhood()) -> Scenario:
    """S1: all nodes of one graph are asked, the copy is tested on each other graph of the domain.

    Args:
        graphs: of one domain, with different names.
        neighbourhood: of the ego graphs.

    Returns:
        A row for each ordered pair.

    Source: arXiv 2511.11912, domain-level extraction; the grid is ours.
    """
    if len(graphs) < 2:
        raise ValueError(f"graphs must be at least two of one domain, got {len(graphs)}")
    rows = tuple(_onto(queried, test, neighbourhood) for queried, test in permutations(graphs, 2))
    return Scenario(name="domain-level", rows=rows)


def graph_specific(
    graph: TextGraph,
    *,
    share: float = 0.5,
    strict: bool = False,
    seed: int = 0,
    neighbourhood: Neighbourhood = Neighbourhood(),
) -> Scenario:
    """S2: a share of the target graph's nodes is asked, the copy is tested on the others.

    Args:
        graph: the target.
        share: of its nodes that may be asked.
        strict: the others are not even neighbours in what is asked.
        seed: of the split.
        neighbourhood: of the ego graphs.

    Source: arXiv 2511.11912, graph-specific extraction; the split is ours.
    """
    asked, tested = _split(graph, share, seed)
    row = Row(
        label=graph.name,
        queried=graph,
        queries=asked,
        test=graph,
        test_nodes=tested,
        strict=strict,
        neighbourhood=neighbourhood,
    )
    return Scenario(name="graph-specific", rows=(row,))


def architecture_mismatch(
    graph: TextGraph,
    *,
    test: TextGraph | None = None,
    backbones: Sequence[BackboneName] = BACKBONES,
    layers: Sequence[int] = (1, 2, 3, 4),
    widths: Sequence[int] = (64,),
    strict: bool = False,
    seed: int = 0,
    neighbourhood: Neighbourhood = Neighbourhood(),
) -> Scenario:
    """S3: the attacker's encoder differs from the victim's; queries and test as in S2, or of S1 / S6 with a `test`.

    Args:
        graph: that is asked.
        test: another graph; by default the nodes of `graph` that S2 tests.
        backbones, layers, widths: of the attacker's encoder, crossed.
        strict, seed, neighbourhood: as in `graph_specific`.

    Source: arXiv 2511.11912, architecture mismatch; the grid is ours.
    """
    row = _whole_or_half(graph, test, strict, seed, neighbourhood)
    rows = tuple(
        replace(row, label=f"{backbone}, {depth} layers, width {width}", backbone=backbone, layers=depth, hidden=width)
        for backbone, depth, width in product(backbones, layers, widths)
    )
    return Scenario(name="architecture-mismatch", rows=rows)


def query_budget(
    graph: TextGraph,
    fractions: Sequence[float] = FRACTIONS,
    *,
    test: TextGraph | None = None,
    strict: bool = False,
    seed: int = 0,
    neighbourhood: Neighbourhood = Neighbourhood(),
) -> Scenario:
    """S4: a fraction of the available nodes is asked; a smaller one is part of every larger one.

    Args:
        graph: that is asked. Available are the nodes that S2 asks, or, with a `test`, all.
        fractions: of the available nodes, above 0 and at most 1; two nodes at least are asked.
        test: another graph of the domain or of another one; by default the nodes of `graph` that S2 tests.
        strict, seed, neighbourhood: as in `graph_specific`.

    Source: arXiv 2511.11912, query budget; the grid is ours.
    """
    row = _whole_or_half(graph, test, strict, seed, neighbourhood)
    order = row.queries
    rows = []
    for fraction in fractions:
        _share("fractions", fraction)
        rows.append(replace(row, label=f"{fraction:.0%}", queries=order[: max(2, round(fraction * len(order)))]))
    return Scenario(name="query-budget", rows=tuple(rows))


def partial_access(
    graph: TextGraph,
    visible: Sequence[float] = VISIBLE,
    *,
    strict: bool = False,
    seed: int = 0,
    neighbourhood: Neighbourhood = Neighbourhood(),
) -> Scenario:
    """S5: the attacker sees a fraction of the nodes, asks those that S2 asks, and is tested as in S2 on the full graph.

    What is asked and trained on is induced on the visible nodes; a smaller visible part belongs to every larger one.

    Args:
        graph: the target.
        visible: fractions of its nodes, above 0 and at most 1.
        strict, seed, neighbourhood: as in `graph_specific`.

    Raises:
        ValueError: where fewer than two nodes that S2 asks are visible.

    Source: arXiv 2511.11912, partial node access; the grid is ours.
    """
    (row,) = graph_specific(graph, strict=strict, seed=seed, neighbourhood=neighbourhood).rows
    order = torch.randperm(len(graph), generator=torch_rng(seed, "visible"))
    rows = []
    for fraction in visible:
        _share("visible", fraction)
        seen = order[: round(fraction * len(graph))]
        queries = row.queries[torch.isin(row.queries, seen)]
        if len(queries) < 2:
            raise ValueError(f"visible {fraction:g} of graph {graph.name!r} leaves {len(queries)} queries: show more")
        rows.append(replace(row, label=f"{fraction:.0%} visible", queries=queries, visible=seen))
    return Scenario(name="partial-access", rows=tuple(rows))


def data_discrepancy(
    domains: Mapping[str, Sequence[TextGraph]], *, neighbourhood: Neighbourhood = Neighbourhood()
) -> Scenario:
    """S6: all nodes of a graph of one domain are asked, the copy is tested on the graphs of the other domains.

    Args:
        domains: their graphs, with different names.
        neighbourhood: of the ego graphs.

    Source: arXiv 2511.11912, training-data discrepancy; the grid is ours.
    """
    if len(domains) < 2:
        raise ValueError(f"domains must be at least two, got {', '.join(domains) or 'none'}")
    rows = tuple(
        _onto(queried, test, neighbourhood)
        for source, target in permutations(domains, 2)
        for queried, test in product(domains[source], domains[target])
    )
    return Scenario(name="data-discrepancy", rows=rows)


def _onto(queried: TextGraph, test: TextGraph, neighbourhood: Neighbourhood) -> Row:
    return Row(
        label=f"{queried.name} to {test.name}",
        queried=queried,
        queries=torch.arange(len(queried)),
        test=test,
        test_nodes=torch.arange(len(test)),
        neighbourhood=neighbourhood,
    )


def _whole_or_half(
    graph: TextGraph, test: TextGraph | None, strict: bool, seed: int, neighbourhood: Neighbourhood
) -> Row:
    if test is None:
        (row,) = graph_specific(graph, strict=strict, seed=seed, neighbourhood=neighbourhood).rows
        return row
    row = _onto(graph, test, neighbourhood)
    return replace(row, queries=torch.randperm(len(graph), generator=torch_rng(seed, "budget")))


def _split(graph: TextGraph, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Nodes that may be asked, in an order that budgets cut from, and nodes that are tested, ascending."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    order = torch.randperm(len(graph), generator=torch_rng(seed, "split"))
    asked = max(1, round(share * len(graph)))
    return order[:asked], order[asked:].sort().values


def _share(name: str, fraction: float) -> None:
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"{name} must lie above 0 and at most at 1, got {fraction}")
