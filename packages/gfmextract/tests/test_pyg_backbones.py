import copy

import pytest
import torch
from small_graphs import made_graph
from torch_geometric.nn import GPSConv

from gfmextract.config import BACKBONES
from gfmextract.pyg_backbones import make_backbone
from gfmextract.pyg_ego import EgoGraphs, ego_graphs
from gfmextract.text_graph import TextGraph

EGOS = ego_graphs(made_graph(40, 0.1, 0), torch.arange(40), hops=2)


def made(name, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_backbone(name, 4, 6, hidden=16, **sizes)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("layers", [1, 3])
def test_in_evaluation_an_answer_does_not_depend_on_what_it_is_batched_with(name, layers):
    backbone = made(name, layers=layers)
    backbone.encode_graph(EGOS.batch())  # in training: moves the running statistics away from their start
    backbone.eval()
    with torch.no_grad():
        together = backbone.encode_graph(EGOS.batch())
        alone = torch.cat([backbone.encode_graph(EGOS[i : i + 1].batch()) for i in range(len(EGOS))])
    assert together.shape == (40, 6)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_gps_layers_are_those_of_pyg(training):
    backbone, batch = made("gps", layers=2).train(training), EGOS.batch()
    h = torch.randn(len(batch.x), 16, generator=torch.Generator().manual_seed(0))
    theirs = copy.deepcopy(backbone.layers)
    with torch.no_grad():
        found, expected = backbone.layers(h, batch.edge_index, batch.batch), h
        for layer in theirs.layers:
            expected = GPSConv.forward(layer, expected, batch.edge_index, batch.batch)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", BACKBONES)
def test_relabelling_the_nodes_changes_nothing(name):
    backbone = made(name).eval()
    turned = []
    for ego in EGOS:
        order = torch.randperm(len(ego.x), generator=torch.Generator().manual_seed(len(turned)))
        turned.append(ego.clone())
        turned[-1].x, turned[-1].node_id = ego.x[order], ego.node_id[order]
        turned[-1].edge_index, turned[-1].root_n_index = order.argsort()[ego.edge_index], int(order.argsort()[0])
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.encode_graph(EgoGraphs.of(turned).batch()),
            backbone.encode_graph(EGOS.batch()),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("name", BACKBONES)
def test_all_but_mlp_see_edges(name):
    ring = EgoGraphs.of(list(EGOS))
    other = EgoGraphs(**{**vars(ring), "edge_index": ring.edge_index.flip(1) * 0})  # every edge a loop at the root
    backbone = made(name).eval()
    with torch.no_grad():
        same = torch.allclose(backbone.encode_graph(ring.batch()), backbone.encode_graph(other.batch()), atol=1e-5)
    assert same == (name == "mlp")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_weight_learns(name):
    backbone = made(name)
    backbone.encode_graph(EGOS.batch()).square().sum().backward()
    assert [key for key, weight in backbone.named_parameters() if weight.grad is None] == []


def test_an_isolated_root_stays_within_reach_of_the_others():
    chain = torch.stack([torch.arange(28), torch.arange(1, 29)])
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=rng)
    kind = torch.arange(30) % 2
    graph = TextGraph(name="g", x=x, edge_index=chain, texts=["t"] * 30, y=kind, classes=("a", "b"))
    backbone = made("gps")
    for norm in (part for part in backbone.modules() if isinstance(part, torch.nn.BatchNorm1d)):
        norm.momentum = 1.0
    backbone.encode_graph(ego_graphs(graph, torch.arange(29)).batch())  # training never shows an isolated root
    backbone.eval()
    with torch.no_grad():
        lengths = backbone.encode_graph(ego_graphs(graph, torch.arange(30)).batch()).norm(dim=1)
    assert lengths[29] < 30 * lengths[:29].median()  # some 600 with the usual eps


def test_without_positions_none_are_read():
    egos = ego_graphs(made_graph(10, 0.3, 0), torch.arange(10), positions=0)
    assert made("gcn", positions=0).encode_graph(egos.batch()).shape == (10, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_backbone("rgcn", 4, 6), "backbone must be one of gps"),
        (lambda: make_backbone("gps", 4, 6, hidden=8), "hidden must be above 8 and a multiple of 4"),
        (lambda: make_backbone("gat", 4, 6, hidden=18), "hidden must be above 8 and a multiple of 4"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
