import pytest
import torch
from small_graphs import made_graph

from gfmextract.text_graph import TextGraph

GIVEN = {
    "name": "g",
    "x": torch.eye(3),
    "edge_index": torch.tensor([[0, 1, 1, 2], [1, 0, 1, 1]]),
    "texts": ("a", "b", "c"),
    "y": torch.tensor([0, 1, 1]),
    "classes": ("first", "second"),
}


def test_neighbours_have_no_direction_no_doubles_and_no_loops():
    start, indices = TextGraph(**GIVEN).neighbours
    assert start.tolist() == [0, 1, 3, 4]
    assert indices.tolist() == [1, 0, 2, 1]


def test_a_hash_holds_everything():
    changes = (
        {"name": "h"},
        {"x": 2 * torch.eye(3)},
        {"edge_index": torch.tensor([[0], [1]])},
        {"texts": ("a", "b", "d")},
        {"y": torch.tensor([0, 0, 1])},
        {"classes": ("first", "third")},
        {"template": "{}"},
    )
    assert TextGraph(**GIVEN).hash == TextGraph(**GIVEN).hash
    assert len({TextGraph(**GIVEN | each).hash for each in ({}, *changes)}) == 1 + len(changes)


def test_a_subgraph_keeps_what_belongs_to_its_nodes():
    part = TextGraph(**GIVEN).subgraph(torch.tensor([2, 1]))
    assert part.texts == ["c", "b"]
    assert part.y.tolist() == [1, 1]
    assert torch.equal(part.x, torch.eye(3)[[2, 1]])
    assert part.neighbours[1].tolist() == [1, 0]


def test_a_subgraph_of_all_nodes_is_the_graph():
    graph = made_graph(20, 0.3, 0)
    again = graph.subgraph(torch.arange(20))
    assert all(torch.equal(a, b) for a, b in zip(graph.neighbours, again.neighbours, strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.ones(3)}, r"x must be \[nodes, features\]"),
        ({"x": torch.tensor([[1.0], [float("nan")], [0.0]])}, "x of node 1 holds NaN"),
        ({"texts": ("a", "b")}, "texts and y must have one entry for each of 3 nodes"),
        ({"edge_index": torch.zeros(2, 0, dtype=torch.int64)}, "at least one edge"),
        ({"edge_index": torch.tensor([[0], [3]])}, "edge_index names node 3"),
        ({"classes": ("only",)}, "classes must name at least two"),
        ({"y": torch.tensor([0, 1, 2])}, "y of node 2 is 2"),
    ],
)
def test_wrong_input_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        TextGraph(**{**GIVEN, **changed})
