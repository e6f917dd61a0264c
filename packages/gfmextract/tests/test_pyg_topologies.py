import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.utils import to_networkx

from gfmextract.pyg_topologies import KINDS, topologies


def test_each_kind_has_its_shape():
    graphs, labels = topologies(3, each=10)
    seen = {kind: [] for kind in KINDS}
    for graph, label in zip(graphs, labels.tolist(), strict=True):
        seen[KINDS[label]].append(to_networkx(graph, to_undirected=True, remove_self_loops=True))
    assert all(nx.is_tree(graph) for graph in seen["tree"])
    assert all(graph.number_of_nodes() == 30 for kind in KINDS for graph in seen[kind])
    edges = {kind: np.mean([graph.number_of_edges() for graph in seen[kind]]) for kind in KINDS}
    assert 50 < edges["erdos_renyi"] < 70
    assert 40 < edges["barabasi_albert"] < 60  # doubles are dropped
    assert 54 < edges["watts_strogatz"] <= 60
    hubs, clusters = (
        {kind: np.mean([measure(graph) for graph in seen[kind]]) for kind in KINDS}
        for measure in (lambda graph: max(dict(graph.degree).values()), nx.average_clustering)
    )
    assert max(hubs, key=hubs.get) == "barabasi_albert"
    assert max(clusters, key=clusters.get) == "watts_strogatz"


def test_the_same_seed_gives_the_same_graphs_and_leaves_global_generators_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    once, twice, other = (topologies(seed, each=3)[0] for seed in (0, 0, 1))
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()
    assert torch.equal(once.edge_index, twice.edge_index)
    assert once.edge_index.shape != other.edge_index.shape or not torch.equal(once.edge_index, other.edge_index)


def test_a_selection_of_kinds():
    _, labels = topologies(0, each=2, kinds=("watts_strogatz",))
    assert labels.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("given", "said"),
    [({"each": 0}, "each"), ({"each": 1, "nodes": 5}, "nodes"), ({"each": 1, "kinds": ("x",)}, "'x'")],
)
def test_misuse(given, said):
    with pytest.raises(ValueError, match=said):
        topologies(0, **given)
