from dataclasses import replace

import pytest
import torch
from linear_victims import word_vectors, worded_graph

from gfmextract import real_victim
from gfmextract.pretraining import PretrainingConfig
from gfmextract.pyg_graph_clip import GraphClip, GraphClipConfig
from gfmextract.real_comparison import Recipe, compare
from gfmextract.real_tables import VALIDITY, write_tables
from gfmextract.real_victim import ALSO_UNSEEN, BACKBONES, TOWER, gain_over_text, minilm_victim
from gfmextract.scenarios import query_budget

SMALL = Recipe(
    pretraining=("one", "two"), related="one", unseen="new", fractions=(1.0,), epochs=1, copy_epochs=1, copy_steps=1
)


UNSEEN = ("new", "newer")


class Words:
    """A text tower of 32 dimensions that takes no checkpoint."""

    width, source, hash = 32, None, "words"

    def encode(self, texts):
        return word_vectors(texts)


@pytest.fixture
def worded(monkeypatch, tmp_path):
    """MiniLM, the packages and their summaries replaced by random words; a small encoder."""
    from gfmextract import hf_text_tower, import_graph, pretraining

    seeds = {name: number for number, name in enumerate(("one", "two", *UNSEEN))}

    def graph(name, encode, least):
        return replace(worded_graph(nodes=24, seed=seeds[name]), name=name)

    monkeypatch.setenv("AISEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(real_victim, "ALSO_UNSEEN", UNSEEN[1:])
    monkeypatch.setattr(hf_text_tower, "load_text_tower", lambda name: Words())
    monkeypatch.setattr(import_graph, "module_graph", graph)
    monkeypatch.setattr(import_graph, "module_summaries", lambda g, egos: [g.texts[i] for i in egos.roots.tolist()])
    small = GraphClipConfig(layers=1, width=16, heads=2)
    monkeypatch.setattr(
        pretraining, "PretrainingConfig", lambda **given: PretrainingConfig(**given, encoder=small, batch_size=16)
    )


def test_the_victim_never_sees_what_it_is_judged_on(worded, monkeypatch):
    from gfmextract import pretraining

    learned, pretrain = [], pretraining.pretrain
    monkeypatch.setattr(
        pretraining, "pretrain", lambda graphs, *rest, **more: learned.extend(graphs) or pretrain(graphs, *rest, **more)
    )
    victim, graphs = minilm_victim(SMALL)
    assert {graph.name for graph in learned} == {"one", "two"}
    assert set(graphs) == {*UNSEEN, "one"}
    assert isinstance(victim, GraphClip)
    assert not set(ALSO_UNSEEN) & {*Recipe().pretraining, Recipe().unseen}
    assert TOWER == "all-minilm-l6-v2"


def test_every_unseen_graph_is_attacked_within_and_from_a_related_one(worded, tmp_path):
    records = compare("minilm", tmp_path / "out", seeds=1, recipe=SMALL)
    assert {r["settings"]["source"] for r in records} == {*UNSEEN, *(f"one to {name}" for name in UNSEEN)}
    assert len(records) == 4 * (len(BACKBONES) + 3)
    gains = [record for record in records if "gain" in record]
    assert [r["settings"]["source"] for r in gains] == [f"one to {name}" for name in UNSEEN]
    for record in gains:
        assert record["settings"]["attacker"] == "text-only"
        assert record["gain"] == pytest.approx(record["victim_accuracy"] - record["accuracy"])
        assert record["gain_low"] < record["gain"] < record["gain_high"]
        assert record["nodes"] == 24
    write_tables(tmp_path / "out")
    assert len((tmp_path / "out" / VALIDITY).read_text().splitlines()) == 1 + len(UNSEEN)


class Right:
    """A victim that knows the class of every node, which the graph's first feature tells."""

    def encode_graph(self, batch):
        return torch.eye(3)[batch.x[batch.root_n_index, 0].long()]

    def encode_text(self, texts):
        return torch.eye(3)[: len(texts)]


def test_the_gain_is_paired_over_nodes():
    graph = worded_graph(nodes=30, seed=1)
    x = torch.zeros(30, 3)
    x[:, 0] = graph.y.float()  # as texts, 0 lies nowhere and 1 and 2 both lie on the first prompt
    (row,) = query_budget(graph, (1.0,), test=replace(graph, name="other", x=x)).rows
    found = gain_over_text(Right(), row, level=0.95)
    assert found["nodes"] == 30
    assert found["gain"] == pytest.approx(2 / 3)
    assert 0 < found["gain_low"] < 2 / 3 < found["gain_high"] <= 1
    assert 0 <= found["neighbours_accuracy"] <= 1
