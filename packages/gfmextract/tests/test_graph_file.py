from pathlib import Path

import pytest
import torch
from small_graphs import made_graph

from gfmextract.graph_file import load_graph, save_graph


def test_a_graph_comes_back_as_it_was(tmp_path):
    graph = made_graph(nodes=12, density=0.3, seed=0)
    save_graph(graph, tmp_path / "graph.pt")
    back = load_graph(tmp_path / "graph.pt")
    assert torch.equal(back.x, graph.x)
    assert torch.equal(back.edge_index, graph.edge_index)
    assert torch.equal(back.y, graph.y)
    assert list(back.texts) == list(graph.texts)
    assert back.prompts == graph.prompts
    assert back.name == "made"


def saved(tmp_path, **changes):
    graph = made_graph(nodes=6, density=0.5, seed=0)
    content = {"x": graph.x, "edge_index": graph.edge_index, "texts": list(graph.texts), "y": graph.y}
    content |= {"classes": ["one", "two"]} | changes
    torch.save({key: value for key, value in content.items() if value is not None}, tmp_path / "given.pt")
    return tmp_path / "given.pt"


def test_a_dictionary_of_a_user_takes_its_name_from_the_file(tmp_path):
    graph = load_graph(saved(tmp_path))
    assert graph.name == "given"
    assert graph.prompts[0] == "this text is about one"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"y": None}, "lacks y"),
        ({"labels": torch.ones(6)}, "unknown key labels"),
        ({"classes": ["one"]}, "given.pt: classes"),
        ({"x": Path("somewhere")}, "no tensors and texts alone"),
    ],
)
def test_wrong_files_are_one_line(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        load_graph(saved(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_no_file_and_no_graph(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        load_graph(tmp_path / "none.pt")
    (tmp_path / "torn.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"torn\.pt"):
        load_graph(tmp_path / "torn.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="lacks classes"):
        load_graph(tmp_path / "list.pt")
