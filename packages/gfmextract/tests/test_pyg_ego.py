import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import made_graph
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import AddRandomWalkPE
from torch_geometric.utils import k_hop_subgraph

from gfmextract.pyg_ego import EgoGraphs, ego_graphs, random_walk_pe
from gfmextract.text_graph import TextGraph


def edges_of(ego):
    nodes = ego.node_id.tolist()
    return {(nodes[a], nodes[b]) for a, b in ego.edge_index.T.tolist()}


@given(nodes=st.integers(3, 30), density=st.floats(0.05, 0.6), hops=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_without_a_cap_they_are_the_k_hop_subgraphs_of_pyg(nodes, density, hops, seed):
    graph = made_graph(nodes, density, seed)
    undirected = torch.cat([graph.edge_index, graph.edge_index.flip(0)], 1)
    undirected = undirected[:, undirected[0] != undirected[1]]
    for root, ego in zip(range(nodes), ego_graphs(graph, torch.arange(nodes), hops=hops, cap=nodes), strict=True):
        subset, edges, _, _ = k_hop_subgraph(root, hops, undirected, num_nodes=nodes)
        assert ego.node_id[0] == root
        assert sorted(ego.node_id.tolist()) == sorted(subset.tolist())
        assert torch.equal(ego.x, graph.x[ego.node_id])
        expected = {tuple(edge) for edge in edges.T.tolist()} or {(root, root)}  # an isolated node gets a loop
        assert edges_of(ego) == expected
        assert ego.edge_index.shape[1] == len(expected), "no edge comes twice"


@given(cap=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_the_cap_keeps_the_root_and_a_part_of_its_neighbours(cap, seed):
    graph = made_graph(30, 0.4, seed)
    whole, some = (ego_graphs(graph, torch.arange(30), hops=2, cap=size, seed=seed) for size in (30, cap))
    for everything, part in zip(whole, some, strict=True):
        assert len(part.x) == min(cap, len(everything.x))
        assert part.node_id[0] == everything.node_id[0]
        assert set(part.node_id.tolist()) <= set(everything.node_id.tolist())
        inside = {(a, b) for a, b in edges_of(everything) if {a, b} <= set(part.node_id.tolist())}
        assert edges_of(part) == (inside or {(part.node_id[0].item(),) * 2})


def test_a_batch_is_taken_apart_again():
    egos = ego_graphs(made_graph(20, 0.2, 0), torch.tensor([3, 7, 3, 11]))
    again = EgoGraphs.of_batch(egos.batch())
    assert all(torch.equal(value, vars(again)[name]) for name, value in vars(egos).items())


def test_nearer_nodes_come_before_farther_ones():
    path = TextGraph(
        name="path",
        x=torch.eye(6),
        edge_index=torch.stack([torch.arange(5), torch.arange(1, 6)]),
        texts=list("abcdef"),
        y=torch.tensor([0, 1] * 3),
        classes=("even", "odd"),
    )
    assert ego_graphs(path, torch.tensor([0]), hops=9, cap=4).nodes.tolist() == [0, 1, 2, 3]


def test_a_root_has_the_same_neighbourhood_whatever_is_asked_with_it():
    graph = made_graph(60, 0.5, 0)
    together = ego_graphs(graph, torch.arange(60), cap=5)
    for root in (0, 17, 59):
        alone = ego_graphs(graph, torch.tensor([root]), cap=5)
        again = together[torch.tensor([root])]
        for field in ("x", "pe", "nodes", "edge_index"):
            assert torch.equal(getattr(alone, field), getattr(again, field))
    other = ego_graphs(graph, torch.arange(60), cap=5, seed=1)
    assert not torch.equal(other.nodes, together.nodes)


def test_the_choice_under_the_cap_is_uniform():
    star = TextGraph(
        name="star",
        x=torch.zeros(201, 1),
        edge_index=torch.stack([torch.zeros(200, dtype=torch.int64), torch.arange(1, 201)]),
        texts=["t"] * 201,
        y=torch.arange(201) % 2,
        classes=("a", "b"),
    )
    taken = torch.cat([ego_graphs(star, torch.tensor([0]), cap=51, seed=s).nodes[1:] for s in range(200)])
    counts = torch.bincount(taken, minlength=201)[1:].double()
    expected = 200 * 50 / 200
    assert ((counts - expected) ** 2 / (expected * 0.75)).sum() < 200 + 5 * 20  # chi-square of 199 degrees of freedom


def test_excluded_nodes_appear_nowhere():
    graph = made_graph(40, 0.3, 3)
    held_out = torch.arange(20, 40)
    found = ego_graphs(graph, torch.arange(20), hops=2, cap=40, exclude=held_out)
    assert not torch.isin(found.nodes, held_out).any()


def test_random_walk_positions_are_those_of_pyg():
    graph = made_graph(25, 0.2, 5)
    egos = ego_graphs(graph, torch.arange(25), hops=2, cap=9, positions=6)
    for ego in egos:
        plain = Data(edge_index=ego.edge_index, num_nodes=len(ego.x))
        torch.testing.assert_close(ego.pe, AddRandomWalkPE(6, "pe")(plain).pe, rtol=1e-5, atol=1e-6)


def test_no_positions_if_none_are_wanted():
    assert random_walk_pe(torch.tensor([[0], [0]]), torch.tensor([0, 1]), torch.tensor([0, 1]), 0).shape == (1, 0)


def test_a_batch_is_that_of_pyg():
    egos = ego_graphs(made_graph(20, 0.3, 1), torch.tensor([4, 7, 7, 0]))
    ours, pyg = egos.batch(), Batch.from_data_list(list(egos))
    assert ours.num_graphs == pyg.num_graphs == 4
    for field in ("x", "pe", "batch", "ptr", "node_id"):
        assert torch.equal(ours[field], pyg[field])
    as_edges = [{tuple(edge) for edge in each.edge_index.T.tolist()} for each in (ours, pyg)]
    assert as_edges[0] == as_edges[1]
    assert ours.node_id[ours.root_n_index].tolist() == [4, 7, 7, 0] == egos.roots.tolist()


def test_data_objects_come_back_with_their_root_first():
    egos = ego_graphs(made_graph(20, 0.3, 1), torch.arange(6), positions=8)
    turned = []
    for ego in egos:
        order = torch.arange(len(ego.x)).flip(0)
        turned.append(Data(x=ego.x[order], node_id=ego.node_id[order], edge_index=order.argsort()[ego.edge_index]))
        turned[-1].root_n_index = len(order) - 1
    back = EgoGraphs.of(turned)
    assert torch.equal(back.roots, egos.roots)
    assert [edges_of(ego) for ego in back] == [edges_of(ego) for ego in egos]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda graph: ego_graphs(graph, torch.tensor([], dtype=torch.int64)), "roots must be"),
        (lambda graph: ego_graphs(graph, torch.tensor([20])), "roots names node 20, graph 'made' has nodes 0 to 19"),
        (lambda graph: ego_graphs(graph, torch.tensor([3]), hops=0), "hops and cap must be at least 1"),
        (lambda graph: ego_graphs(graph, torch.tensor([3]), exclude=torch.tensor([3])), "roots holds node 3"),
        (lambda graph: EgoGraphs.of([]), "graphs is empty"),
        (
            lambda graph: EgoGraphs.of([Data(x=torch.ones(1, w), edge_index=torch.zeros(2, 1).long()) for w in (3, 4)]),
            r"x of graph 1 must be \[nodes, 3\]",
        ),
        (lambda graph: ego_graphs(graph, torch.arange(2)).data(), "there are 2 ego graphs"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(made_graph(20, 0.3, 0))


def test_joined_parts_are_the_parts_one_after_the_other():
    parts = [ego_graphs(made_graph(nodes, 0.2, nodes), torch.arange(nodes)) for nodes in (5, 9, 7)]
    joint = EgoGraphs.joined(parts)
    assert len(joint) == 21
    for found, expected in zip(joint, [ego for part in parts for ego in part], strict=True):
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.pe, expected.pe)
        assert torch.equal(found.edge_index, expected.edge_index)
        assert torch.equal(found.node_id, expected.node_id)
    with pytest.raises(ValueError, match="parts is empty"):
        EgoGraphs.joined([])
    other = ego_graphs(made_graph(5, 0.2, 0), torch.arange(5), positions=3)
    with pytest.raises(ValueError, match=r"width \(4, 3\) in part 1 and \(4, 8\) in part 0"):
        EgoGraphs.joined([parts[0], other])
