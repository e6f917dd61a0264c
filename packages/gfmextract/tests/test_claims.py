"""What must hold of any victim and any copy."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import made_graph
from torch_geometric.data import Data

from gfmextract.metrics import accuracy, fidelity, mean_cosine, measures
from gfmextract.pyg_ego import EgoGraphs, ego_graphs
from gfmextract.pyg_fotom import FotomVictim
from gfmextract.pyg_graph_clip import GraphClip, GraphClipConfig
from gfmextract.synthetic import World
from gfmextract.text_graph import TextGraph
from gfmextract.victim import encode_egos
from gfmextract.zero_shot import certified_agreement, margins, predict

seeds = st.integers(0, 10_000)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def world():
    return World.of(0)


@pytest.fixture(scope="module")
def graph(world):
    return world.domain(0, nodes=80)[0]


@pytest.fixture(scope="module")
def victim(world):
    return GraphClip(GraphClipConfig(layers=2, width=32), features=64, tower=world.tower).eval()


def test_a_copy_of_the_victim_gives_everything_away(victim, graph):
    egos = ego_graphs(graph, torch.arange(len(graph)))
    z, a = encode_egos(victim, egos), encode_egos(copy.deepcopy(victim), egos)
    text = victim.encode_text(graph.prompts)
    assert (a - z).square().sum() == 0
    assert fidelity(a, z, text) == 1
    assert mean_cosine(a, z) == pytest.approx(1)
    found = measures(a, z, graph.y, text)
    assert found["gap"] == 0
    assert found["cka"] == pytest.approx(1)
    assert found["accuracy"] == accuracy(predict(z, text), graph.y)
    assert certified_agreement(a, z, text) == (margins(z, text) > 0).double().mean().item() > 0.9


@given(seed=seeds, classes=st.integers(2, 5), width=st.integers(2, 8), noise=st.floats(0, 3))
def test_what_is_certified_does_agree(seed, classes, width, noise):
    z, text = drawn(seed, 20, width), drawn(seed + 1, classes, width)
    a = z + noise * drawn(seed + 2, 20, width)
    for left, right in ((a, z), (z, a), (drawn(seed + 3, 20, width), z)):
        assert certified_agreement(left, right, text) <= fidelity(left, right, text)


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_fidelity_knows_neither_scale_nor_rotation(seed, scale):
    z, text = drawn(seed, 20, 6), drawn(seed + 1, 3, 6)
    a = z + 0.7 * drawn(seed + 2, 20, 6)
    turn = torch.linalg.qr(drawn(seed + 3, 6, 6))[0]
    expected, sure = fidelity(a, z, text), certified_agreement(a, z, text)
    assert fidelity(scale * a, scale * z, text) == expected
    assert fidelity(a @ turn, z @ turn, text @ turn) == expected
    assert certified_agreement(scale * a @ turn, scale * z @ turn, text @ turn) == pytest.approx(sure)


@given(seed=st.integers(0, 99), density=st.floats(0.02, 0.3))
@settings(max_examples=2)
def test_answers_do_not_depend_on_what_is_asked_together(world, seed, density):
    graph = made_graph(66, density, seed)
    egos = ego_graphs(graph, torch.arange(66), hops=2)
    torch.manual_seed(seed)
    for victim in (GraphClip(GraphClipConfig(), features=4, tower=world.tower, seed=seed), FotomVictim()):
        one, many = (encode_egos(victim, egos, size) for size in (1, 64))
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)


def test_an_isolated_node_has_an_answer_of_its_own(victim):
    graph = TextGraph(
        name="island",
        x=torch.randn(3, 64, generator=torch.Generator().manual_seed(0)),
        edge_index=torch.tensor([[0], [1]]),
        texts=["a", "b", "c"],
        y=torch.tensor([0, 1, 0]),
        classes=("one", "two"),
    )
    egos = ego_graphs(graph, torch.tensor([2]))
    assert egos.edge_index.tolist() == [[0], [0]], "a loop"
    assert torch.isfinite(encode_egos(victim, egos)).all()


def pair(**changed):
    given = {"x": torch.eye(2), "edge_index": torch.tensor([[0], [1]]), "y": torch.tensor([0, 1])}
    return TextGraph(**({"name": "pair", "texts": ["a", "b"], "classes": ("one", "two")} | given | changed))


def test_wrong_inputs_name_what_is_wrong(victim):
    with pytest.raises(ValueError, match="at least one edge"):
        pair(edge_index=torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least two"):
        pair(classes=("only",), y=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="at least two classes"):
        predict(torch.eye(2), torch.ones(1, 2))
    egos = ego_graphs(pair(), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"width \(2, 8\), this encoder reads \(64, 8\)"):
        encode_egos(victim, egos)
    data = [Data(x=torch.ones(2, width), edge_index=torch.tensor([[0], [1]])) for width in (3, 4)]
    with pytest.raises(ValueError, match=r"x of graph 1 must be \[nodes, 3\]"):
        EgoGraphs.of(data)
