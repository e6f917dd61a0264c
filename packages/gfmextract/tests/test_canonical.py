from dataclasses import replace

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_victims import egos_of, renumbered, worded_graph
from small_graphs import made_graph
from torch_geometric.data import Data

from gfmextract.canonical import canonical_hash
from gfmextract.pyg_ego import EgoGraphs, ego_graphs


def names(egos):
    return [tuple(row) for row in canonical_hash(egos).tolist()]


@given(nodes=st.integers(3, 25), density=st.floats(0.05, 0.6), seed=st.integers(0, 999))
@settings(max_examples=25)
def test_renumbering_nodes_and_edges_changes_no_hash(nodes, density, seed):
    egos = ego_graphs(made_graph(nodes, density, seed), torch.arange(nodes), hops=2)
    assert names(renumbered(egos, seed)) == names(egos)


def test_a_hash_does_not_depend_on_what_it_is_hashed_with():
    egos = egos_of(worded_graph())
    alone = [names(egos[torch.tensor([i])])[0] for i in range(len(egos))]
    assert names(egos) == alone
    assert names(egos[torch.arange(59, -1, -1)]) == alone[::-1]


def small(edges, x, root=0):
    undirected = [*edges, *((b, a) for a, b in edges)]
    x = torch.as_tensor(x, dtype=torch.float32).reshape(-1, 1)
    return Data(x=x, edge_index=torch.tensor(undirected).T, root_n_index=root)


@given(nodes=st.integers(2, 5), data=st.data())
@settings(max_examples=60)
def test_small_graphs_have_one_hash_exactly_if_networkx_finds_them_isomorphic(nodes, data):
    pairs = [(a, b) for a in range(nodes) for b in range(a)]
    drawn = []
    for _ in range(2):
        edges = data.draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
        x = data.draw(st.lists(st.integers(0, 1), min_size=nodes, max_size=nodes))
        drawn.append((edges, x, data.draw(st.integers(0, nodes - 1))))
    graphs = []
    for edges, x, root in drawn:
        graph = networkx.Graph(edges)
        graph.add_nodes_from((v, {"kind": (x[v], v == root)}) for v in range(nodes))
        graphs.append(graph)
    same = networkx.is_isomorphic(*graphs, node_match=lambda a, b: a["kind"] == b["kind"])
    first, second = names(EgoGraphs.of([small(*each) for each in drawn]))
    assert (first == second) is same


def test_closed_walks_tell_a_hexagon_from_two_triangles_where_plain_refinement_does_not():
    hexagon = small([(i, (i + 1) % 6) for i in range(6)], [0] * 6)
    triangles = small([(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)], [0] * 6)
    assert len(set(names(EgoGraphs.of([hexagon, triangles])))) == 2


def test_the_least_change_of_a_feature_or_another_root_is_another_hash():
    egos = egos_of(worded_graph())
    x = egos.x.clone()
    x[3, 5] = torch.nextafter(x[3, 5], torch.tensor(9.0))
    graph = int(torch.searchsorted(egos.start, torch.tensor(3), right=True)) - 1
    changed = [a != b for a, b in zip(names(egos), names(replace(egos, x=x)), strict=True)]
    assert [i for i, each in enumerate(changed) if each] == [graph]
    path = [(0, 1), (1, 2)]
    assert len(set(names(EgoGraphs.of([small(path, [0, 0, 0], root) for root in (0, 1, 2)])))) == 2


def test_both_zeros_are_one():
    plain, other = small([(0, 1)], [0.0, 1.0]), small([(0, 1)], [-0.0, 1.0])
    first, second = names(EgoGraphs.of([plain, other]))
    assert first == second


def test_positions_that_do_not_belong_to_the_edges_are_refused():
    egos = egos_of(worded_graph())
    pe = egos.pe.clone()
    pe[int(egos.start[7]), 1] += 0.1
    with pytest.raises(ValueError, match=r"pe of ego graph 7 is not what its edges give"):
        canonical_hash(replace(egos, pe=pe))
