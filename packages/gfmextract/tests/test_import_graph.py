import sys

import pytest
import torch

from gfmextract.import_graph import module_graph, module_summaries
from gfmextract.pyg_ego import ego_graphs

FILES = {
    "toolbox/__init__.py": '"""All tools."""',
    "toolbox/saws/__init__.py": '"""Saws cut."""\nfrom .hand_saw import HandSaw\nraise RuntimeError("imported")',
    "toolbox/saws/hand_saw.py": '"""A saw for one hand.\n\nA second paragraph."""\n'
    "import toolbox.nails.wire\nclass HandSaw:\n    pass\ndef _hidden(): pass\ndef cut_plank(): pass",
    "toolbox/saws/blade.py": "def HTTPBlade():\n    from ..nails import wire",
    "toolbox/saws/empty.py": "",
    "toolbox/nails/__init__.py": '"""Nails hold."""\nimport os',
    "toolbox/nails/wire.py": '"""Wire \\d nails."""\nfrom toolbox.saws.blade import HTTPBlade',
    "toolbox/nails/old.py": "print 'no Python of today'",
    "toolbox/nails/tests/test_wire.py": '"""Tests of nails."""',
    "toolbox/nails/alone.py": "async def wait(): pass",
    "toolbox/_private/a.py": '"""Hidden."""',
    "toolbox/_private/b.py": '"""Hidden."""',
    "toolbox/small/one.py": '"""Only one."""',
}


@pytest.fixture
def toolbox(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    told = tmp_path / "tool_box-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: tool-box\nVersion: 1.0\n")
    (told / "RECORD").write_text("".join(f"{name},,\n" for name in FILES))
    monkeypatch.syspath_prepend(tmp_path)
    return "tool-box"


def lengths(texts):
    return torch.tensor([[float(len(text))] for text in texts])


def test_nodes_texts_edges_and_classes(toolbox):
    graph = module_graph(toolbox, lengths, least=2)
    assert list(graph.texts) == [
        "Nails hold.",
        "It defines wait",
        "Wire \\d nails.",
        "Saws cut.",
        "It defines http blade",
        "A saw for one hand. It defines hand saw, cut plank",
    ]
    assert graph.classes == ("nails", "saws")
    assert graph.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert {tuple(edge) for edge in graph.edge_index.T.tolist()} == {
        (2, 4),  # from toolbox.saws.blade import, a name within a module
        (3, 5),  # from .hand_saw import, in a package
        (4, 2),  # from ..nails import wire, a module, within a function
        (5, 2),  # import toolbox.nails.wire
    }
    assert graph.prompts == ["this Python module is part of nails", "this Python module is part of saws"]
    assert torch.equal(graph.x, lengths(graph.texts))
    assert graph.name == "tool-box"
    assert "toolbox" not in sys.modules


def test_summaries_tell_of_root_and_neighbours(toolbox):
    graph = module_graph(toolbox, lengths, least=2)
    told = module_summaries(graph, ego_graphs(graph, torch.arange(6)))
    assert told[0] == "Nails hold."
    assert told[1] == "wait"
    assert told[2].startswith("Wire \\d nails. Beside it:")
    assert "http blade" in told[2]
    assert "hand saw, cut plank" in told[2]
    assert told[3] == "Saws cut. Beside it: hand saw, cut plank"


def test_what_is_no_such_distribution_is_refused(toolbox):
    with pytest.raises(ValueError, match="distribution 'no-such-thing' is not installed"):
        module_graph("no-such-thing", lengths)
    with pytest.raises(ValueError, match="distribution 'tool-box' has 0 subpackages of 8 modules"):
        module_graph(toolbox, lengths)


def test_a_linked_distribution_is_refused(tmp_path, monkeypatch):
    told = tmp_path / "linked-1.0.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: linked\nVersion: 1.0\n")
    (told / "RECORD").write_text("linked.pth,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="linked to its source"):
        module_graph("linked", lengths)


def test_real_modules_import_within_their_subpackage_more_often_than_by_chance():
    graph = module_graph("hypothesis", lengths)
    assert len(graph) > 50
    assert "strategies" in graph.classes
    same = (graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]).float().mean()
    shares = torch.bincount(graph.y) / len(graph)
    assert same > shares @ shares + 0.05
