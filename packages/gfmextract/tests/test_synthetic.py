import pytest
import torch

from gfmextract.pyg_ego import ego_graphs
from gfmextract.synthetic import World, summaries
from gfmextract.zero_shot import predict


@pytest.fixture(scope="module")
def world():
    return World.of(0)


def test_copies_share_classes_and_nothing_else(world):
    first, second = world.domain(3, copies=2)
    (other,) = world.domain(4)
    assert first.classes == second.classes != other.classes
    assert not set(first.texts) & set(second.texts)
    assert not torch.equal(first.edge_index, second.edge_index)
    assert (first.name, second.name, other.name) == ("domain 3a", "domain 3b", "domain 4")
    (alone,) = world.domain(3)
    assert alone.texts == first.texts, "a copy does not depend on how many there are"


def test_a_seed_gives_the_same_graphs():
    (first,), (again,), (another,) = (World.of(seed).domain(0, nodes=40) for seed in (5, 5, 6))
    assert first.texts == again.texts != another.texts
    assert torch.equal(first.edge_index, again.edge_index)
    assert torch.equal(first.x, again.x)


def test_edges_have_the_wanted_number_and_contrast(world):
    inside = between = edges = 0
    for seed in range(20):
        (graph,) = world.domain(seed)
        same = (graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]).sum().item()
        inside, between, edges = inside + same, between + graph.edge_index.shape[1] - same, edges + len(graph) * 3
    within = 4 * 60 * 59 / 2
    assert inside + between == pytest.approx(edges, rel=0.05), "six neighbours a node"
    assert (inside / within) / (between / (240 * 239 / 2 - within)) == pytest.approx(10, rel=0.15)


def test_four_words_in_ten_are_of_the_class_besides_those_by_chance(world):
    (graph,) = world.domain(1, nodes=2000)
    topics = [set(description.split()) for description in graph.classes]
    share = sum(
        word in topics[label]
        for text, label in zip(graph.texts, graph.y.tolist(), strict=True)
        for word in text.split()
    ) / (2000 * 12)
    assert share == pytest.approx(0.4 + 0.6 * 20 / 400, abs=0.02)


def test_texts_tell_the_classes_apart_but_not_all(world):
    accuracies = []
    for seed in range(4):
        (graph,) = world.domain(seed)
        text = world.tower.encode(graph.prompts)
        accuracies.append((predict(graph.x, text) == graph.y).float().mean().item())
    assert 0.75 < sum(accuracies) / 4 < 0.95


def test_pretraining_has_one_small_graph_of_each_domain(world):
    graphs = world.pretraining(0, domains=5, nodes=24)
    assert [len(graph) for graph in graphs] == [24] * 5
    assert len({graph.classes for graph in graphs} | {world.domain(seed)[0].classes for seed in range(5)}) == 10


def test_a_summary_tells_of_the_root_and_of_the_majority(world):
    (graph,) = world.domain(2)
    egos = ego_graphs(graph, torch.arange(240))
    topics = [set(description.split()) for description in graph.classes]
    for ego, text in zip(egos, summaries(graph, egos), strict=True):
        words = text.split()
        labels = graph.y[ego.node_id]
        most = torch.bincount(labels, minlength=4)
        assert len(set(words[:6])) == len(set(words[6:])) == 6
        assert set(words[:6]) <= topics[labels[0]]
        assert any(set(words[6:]) <= topics[label] for label in (most == most.max()).nonzero().flatten())
    assert summaries(graph, egos) == summaries(graph, egos) != summaries(graph, egos, seed=1)


def test_impossible_sizes_are_refused(world):
    with pytest.raises(ValueError, match="nodes must be at least 8"):
        world.domain(0, nodes=3)
    with pytest.raises(ValueError, match="copies at least 1"):
        world.domain(0, copies=0)
    with pytest.raises(ValueError, match="domains must be"):
        world.pretraining(0, domains=0)
