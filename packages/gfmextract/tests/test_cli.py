import json
import sys

import pandas as pd
import pytest
from aisec_common.files import locked
from linear_victims import LinearVictim, worded_graph

from gfmextract.cli import load_victim, main
from gfmextract.graph_file import save_graph
from gfmextract.hf_text_tower import tiny_text_tower
from gfmextract.pyg_graph_clip import GraphClip, GraphClipConfig
from gfmextract.synthetic import World

QUICK = ["--backbone", "mlp", "--layers", "1", "--hidden", "16", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    for seed in (0, 1):
        save_graph(worded_graph(nodes=40, seed=seed), folder / f"{seed}.pt")
    return [folder / "0.pt", folder / "1.pt"]


def run(capsys, *words):
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_audit_writes_the_page_and_the_tables(graphs, tmp_path, capsys):
    words = ["--scenarios", "graph-specific", "domain-level", "--defenses", "quantize", "--no-adaptive", *QUICK]
    status, out, _ = run(
        capsys, "audit", "--victim", "linear_victims:LinearVictim", "--graphs", graphs[0], "--out", tmp_path, *words
    )
    assert status == 0
    assert set(pd.read_csv(tmp_path / "scenarios.csv")["scenario"]) == {"graph-specific"}
    assert set(pd.read_csv(tmp_path / "defenses.csv")["defence"]) == {"none", "quantize"}
    assert (tmp_path / "leakage.html").read_text().startswith("<!doctype html>")
    assert "LinearVictim on worded 0;" in out
    assert "Left out: domain-level" in out


def test_an_audit_that_was_killed_goes_on(graphs, tmp_path, capsys, monkeypatch):
    from gfmextract import audit

    words = ["audit", "--victim", "linear_victims:LinearVictim", "--graphs", *graphs, "--out", tmp_path, *QUICK]
    words += ["--scenarios", "graph-specific", "--defenses", "quantize"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(audit.Audit, "_settings", killed)
        assert run(capsys, *words)[0] == 130
    assert not (tmp_path / "leakage.html").exists()
    kept = {file: file.read_text() for file in (tmp_path / "runs").glob("graph-specific-*.json")}
    assert len(kept) == 2 * 3
    assert run(capsys, *words)[0] == 0
    assert {file: file.read_text() for file in kept} == kept
    seconds = {json.loads(text)["rows"][0]["seconds"] for text in kept.values()}
    assert set(pd.read_csv(tmp_path / "scenarios.csv")["seconds"]) == {round(each, 4) for each in seconds}


def test_a_factory_is_found_in_the_folder_and_gets_the_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "my_encoder.py").write_text(
        "from linear_victims import LinearVictim\n"
        "def make(path):\n    assert path == 'weights'\n    return LinearVictim()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert isinstance(load_victim("my_encoder:make", "weights"), LinearVictim)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a tiny victim, its text tower, another tower, and a graph of its features."""
    folder = tmp_path_factory.mktemp("saved")
    world = World.of(0)
    for name, tower in (("tower", world.tower), ("other", tiny_text_tower(world.words, world.latents, seed=1))):
        tower.model.save_pretrained(folder / name)
        tower.tokenizer.save_pretrained(folder / name)
    config = GraphClipConfig(layers=1, width=16, heads=2)
    GraphClip(config, features=world.tower.width, tower=world.tower).save(folder / "victim.safetensors")
    save_graph(world.domain(0, nodes=40)[0], folder / "graph.pt")
    return folder


def graph_clip(folder, checkpoint, *words):
    names = ["--checkpoint", folder / checkpoint, "--graphs", folder / "graph.pt"]
    return ["audit", "--victim", "graphclip", *names, *QUICK, *words]


def test_a_saved_graph_clip_is_audited(saved, tmp_path, capsys):
    words = ["--scenarios", "graph-specific", "--defenses", "none", "--text-model", saved / "tower"]
    status, out, _ = run(capsys, *graph_clip(saved, "victim.safetensors", "--out", tmp_path, *words))
    assert status == 0
    assert "GraphClip on domain 0;" in out
    assert set(pd.read_csv(tmp_path / "scenarios.csv")["queried"]) == {"domain 0"}


def test_what_is_no_saved_graph_clip_is_one_line(saved, tmp_path, capsys):
    tower = ["--text-model", saved / "tower"]
    without = ["audit", "--victim", "graphclip", "--graphs", saved / "graph.pt"]
    for words, message in (
        (without, "needs --checkpoint FILE"),
        (graph_clip(saved, "tower", *tower), "tower is not a file that GraphClip.save wrote"),
        (graph_clip(saved, "nosuch", *tower), "nosuch is not a file that GraphClip.save wrote"),
        (graph_clip(saved, "victim.safetensors"), "has no name to load it by: give the tower (--text-model FOLDER)"),
        (graph_clip(saved, "victim.safetensors", "--text-model", saved / "other"), "tower is not the one"),
        (graph_clip(saved, "victim.safetensors", "--text-model", saved / "nosuch"), "neither a known checkpoint"),
    ):
        status, _, error = run(capsys, *words, "--out", tmp_path)
        assert status == 2
        assert message in error.splitlines()[-1]


def test_compare_writes_and_prints_the_table(tmp_path, monkeypatch, capsys):
    from gfmextract import real_comparison, real_tables

    asked = []
    monkeypatch.setattr(real_comparison, "compare", lambda name, out, **rest: asked.append((name, rest["seeds"])))
    monkeypatch.setattr(real_tables, "write_tables", lambda out: [{"copy": "gin", "fidelity": "0.900"}])
    status, out, _ = run(capsys, "compare", "--victim", "fotom", "--seeds", "2", "--out", tmp_path)
    assert status == 0
    assert asked == [("fotom", 2)]
    assert "| gin | 0.900 |" in out


def test_misuse_is_one_line(graphs, tmp_path, capsys):
    audit = ["audit", "--out", tmp_path, "--graphs", *graphs, *QUICK, "--victim"]
    for words, message in (
        ([*audit, "linear_victims"], "MODULE:FACTORY"),
        ([*audit, "nosuch_module:make"], "there is no module nosuch_module"),
        ([*audit, "linear_victims:nosuch"], "has no nosuch"),
        ([*audit, "linear_victims:worded_graph"], "has no method encode_graph"),
        ([*audit, "linear_victims:LinearVictim", "--hidden", "3"], "hidden must be"),
        (["audit", "--out", tmp_path, "--graphs", tmp_path / "no.pt", "--victim", "a:b"], "there is no file"),
        (["compare", "--out", tmp_path, "--seeds", "0"], "--seeds"),
    ):
        status, _, error = run(capsys, *words)
        assert status == 2
        assert message in error.splitlines()[-1]


def test_a_folder_in_use_is_left_alone(graphs, tmp_path, capsys):
    words = ["--victim", "linear_victims:LinearVictim", "--graphs", graphs[0], "--out", tmp_path, *QUICK]
    with locked(tmp_path, "--out"):
        status, _, error = run(capsys, "audit", *words)
    assert status == 2
    assert "another run is at work" in error
