import json
import math

import pytest
import torch
from aisec_common.data import checkpoint_path
from linear_victims import worded_graph

from gfmextract import real_comparison
from gfmextract.extraction import EmbeddingRegression
from gfmextract.pyg_topologies import topologies
from gfmextract.real_comparison import (
    BASELINES,
    FOTOM_BACKBONES,
    Cell,
    Judge,
    Recipe,
    Source,
    compare,
    fotom_sources,
    shapes,
)
from gfmextract.surrogate import fresh_surrogate

SMALL = Recipe(budgets=(6, 12), tests=16, probes=24, queried="one", elsewhere="two", copy_epochs=1, copy_steps=1)


class Counting:
    """A victim of topology: size, edges, squares of degrees and a constant."""

    def encode_graph(self, batch):
        nodes = batch.ptr.diff().float()
        owner = batch.batch[batch.edge_index[0]]
        degree = torch.zeros(len(batch.x)).index_add_(0, batch.edge_index[0], torch.ones(len(owner)))
        second = torch.zeros(len(nodes)).index_add_(0, batch.batch, degree.square())
        return torch.stack([nodes, degree.sum() * 0 + second.sqrt(), torch.ones(len(nodes))], 1)


def source():
    (queries, _), (tests, labels), (probes, probe_labels) = (topologies(seed, each=4) for seed in range(3))
    return Source("four kinds", queries, tests, probes, labels, probe_labels)


@pytest.fixture
def counting(monkeypatch):
    """FoToM and its sources replaced by what needs no checkpoint."""
    from gfmextract import pyg_fotom

    monkeypatch.setattr(pyg_fotom, "load_fotom", Counting)
    monkeypatch.setattr(real_comparison, "fotom_sources", lambda recipe: [source()])


def test_every_copy_is_kept_and_not_made_again(counting, tmp_path, monkeypatch):
    told = []
    records = compare("fotom", tmp_path, seeds=2, recipe=SMALL, show=lambda *seen: told.append(seen))
    assert len(records) == 2 * (2 * len(FOTOM_BACKBONES) + len(BASELINES))
    assert told[-1] == ("copies of fotom", len(records), len(records))
    assert {record["queries"] for record in records} == {6, 12}
    assert all(0 <= record["fidelity"] <= 1 for record in records)

    fit = EmbeddingRegression.fit
    monkeypatch.setattr(EmbeddingRegression, "fit", lambda *_, **__: pytest.fail("was made again"))
    assert compare("fotom", tmp_path, seeds=2, recipe=SMALL) == records

    cell = Cell(source="four kinds", attacker="sage", budget=6, seed=1)
    (tmp_path / "runs" / cell.file).unlink()
    monkeypatch.setattr(EmbeddingRegression, "fit", fit)
    again = compare("fotom", tmp_path, seeds=2, recipe=SMALL)
    changed = [i for i, (a, b) in enumerate(zip(again, records, strict=True)) if a != b]
    assert [records[i]["settings"]["attacker"] for i in changed] == ["sage"]  # its seconds differ
    assert {name: again[changed[0]][name] for name in ("fidelity", "cosine")} == {
        name: records[changed[0]][name] for name in ("fidelity", "cosine")
    }


def test_other_settings_are_run_anew(counting, tmp_path):
    compare("fotom", tmp_path, seeds=1, recipe=SMALL)
    compare("fotom", tmp_path, seeds=1, recipe=Recipe(**{**vars(SMALL), "budgets": (6,)}))
    held = [json.loads(file.read_text())["settings"]["budgets"] for file in (tmp_path / "runs").glob("*-6-0.json")]
    assert held == [[6]] * len(held)


def test_a_judge_finds_no_fault_with_the_victim_itself():
    made = source()
    judge = Judge.of(Counting(), made)

    class Perfect:
        def encode_graph(self, batch):
            return Counting().encode_graph(batch)

    found = judge.measured(Perfect())
    assert found["fidelity"] == 1
    assert found["accuracy"] == found["victim_accuracy"]
    assert found["cosine"] == pytest.approx(1)
    untrained = fresh_surrogate(EmbeddingRegression(backbone="gin").config, shapes(made.tests), 3)
    assert judge.measured(untrained)["cosine"] < 0.999


def test_shapes_hold_degree_and_size():
    graphs, _ = topologies(0, each=3)
    read = shapes(graphs)
    place = 0
    for i, graph in enumerate(graphs):
        degrees = torch.bincount(graph.edge_index[1], minlength=30).float()
        assert torch.equal(read.x[place : place + 30, 1], degrees.log1p()), i
        assert read.x[place, 2].item() == pytest.approx(math.log(30))
        place += 30
    assert torch.equal(read.edge_index, graphs.edge_index)


def test_sources_judge_no_graph_that_was_asked_about(monkeypatch):
    from gfmextract import import_graph

    graphs = {name: worded_graph(nodes=80, seed=seed) for seed, name in enumerate(("one", "two"))}
    monkeypatch.setattr(import_graph, "module_graph", lambda name, encode, least: graphs[name])
    sources = {made.name: made for made in fotom_sources(SMALL)}
    assert set(sources) == {"four kinds", "two kinds to four", "one", "one to two"}
    for name in ("four kinds", "two kinds to four"):
        assert (len(sources[name].tests), len(sources[name].probes)) == (16, 24)
        assert len(sources[name].queries) >= 12
    one = sources["one"]
    asked, judged, probed = (set(egos.roots.tolist()) for egos in (one.queries, one.tests, one.probes))
    assert not asked & judged
    assert not asked & probed
    assert not judged & probed


def test_an_unknown_victim_and_an_absent_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="victim must be"):
        compare("nosuch", tmp_path)
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="aisec data fetch fotom"):
        compare("fotom", tmp_path, recipe=SMALL)


@pytest.mark.checkpoint
@pytest.mark.slow
def test_fotom_is_copied_better_with_more_queries(tmp_path, monkeypatch):
    try:
        checkpoint_path("fotom")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    (queries, _), (tests, labels), (probes, probe_labels) = (topologies(seed, each=20) for seed in range(3))
    graphs = Source("four kinds", queries, tests, probes, labels, probe_labels)
    monkeypatch.setattr(real_comparison, "fotom_sources", lambda recipe: [graphs])
    recipe = Recipe(budgets=(8, 64), tests=80, probes=80)
    records = compare("fotom", tmp_path, seeds=1, recipe=recipe)
    cosine = {(r["settings"]["attacker"], r["queries"]): r["cosine"] for r in records}
    assert cosine["gin", 64] > cosine["untrained", 64]
    assert all(record["victim_accuracy"] > 0.9 for record in records)
