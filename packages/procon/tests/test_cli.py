import json

import pytest
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from made_up_runs import curves
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback

from procon import cli, trl_comparison
from procon.comparison import FILES
from procon.direction import RefusalDirections
from procon.drift import DriftReport

WORDS = ["rain", "sun", "wind", "seven", "two", "five", "Sorry", "no", "ok", "well"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a model, prompts of both kinds, training and safety samples."""
    folder = tmp_path_factory.mktemp("given")
    tokenizer = word_tokenizer(WORDS)
    tiny_lm(tokenizer, layers=2, width=16, heads=2).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "harmful.txt").write_text("rain\n\nsun wind\nwind\n")
    (folder / "harmless.txt").write_text("seven two\nfive\n")
    samples = [{"prompt": f"{a} ", "completion": f"ok {b}"} for a in WORDS[3:6] for b in WORDS[3:6]]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    (folder / "safety.jsonl").write_text(json.dumps({"prompt": "rain sun ", "completion": "Sorry no"}) + "\n")
    (folder / "empty.txt").write_text("\n")
    return folder


def words(given, out, *more):
    probe = ["--probe", str(given / "harmful.txt"), str(given / "harmless.txt"), "--device", "cpu"]
    return [*probe, "--out", str(out), *more]


def train(given, out, variant, *more):
    settings = ["--batch-size", "4", "--accumulate", "1", "--epochs", "1", "--learning-rate", "0.01"]
    base = ["train", "--model", str(given / "model"), "--data", str(given / "data.jsonl"), "--variant", variant]
    return cli.main([*base, *settings, *words(given, out, *more)])


def test_trains_reports_and_measures_the_adapter_again(given, tmp_path, capsys):
    safe = ["--safety-data", str(given / "safety.jsonl"), "--warmup-epochs", "1"]
    assert train(given, tmp_path, "wu_safe", *safe) == 0
    assert "| 0 | +" in capsys.readouterr().out
    log = [entry for entry in json.loads((tmp_path / "log.json").read_text()) if "loss" in entry]
    assert [entry["procon_alpha"] for entry in log] == [1.0] * 3 + [0.0] * 3  # 10 samples in batches of 4, twice
    assert RefusalDirections.load(tmp_path / "directions.safetensors").blocks == 2
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(given / "model"), tmp_path / "adapter")
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    assert train(given, tmp_path, "wu_safe", *safe) == 2
    assert "holds an adapter already" in capsys.readouterr().err

    drift = ["drift", str(given / "model"), str(tmp_path / "adapter")]
    assert cli.main([*drift, *words(given, tmp_path / "drift")]) == 0
    first, second = (DriftReport.load(folder / "drift.json") for folder in (tmp_path, tmp_path / "drift"))
    assert first.cosines == pytest.approx(second.cosines, abs=1e-5)
    assert min(first.cosines) < 1 - 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["s", "wu", "s_safe", "sft", "sft_safe", "sppft", "kl", "random"])
def test_every_variant_trains(given, tmp_path, variant):
    more = ["--safety-data", str(given / "safety.jsonl")] if variant.endswith("safe") else []
    if variant == "random":
        more = ["--normalize"]
    assert train(given, tmp_path, variant, *more) == 0
    keys = {key for entry in json.loads((tmp_path / "log.json").read_text()) for key in entry}
    assert ("procon" in keys) == (variant in ("s", "wu", "s_safe", "random"))
    assert ("kl" in keys) == (variant == "kl")


def test_resumes_where_it_was_stopped(given, tmp_path, monkeypatch, capsys):
    two = ("--epochs", "2")  # of three steps each; the first one's end is kept
    assert train(given, tmp_path / "whole", "s", *two) == 0

    def pulled(show):
        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **settings):
                if state.global_step == 5:
                    raise KeyboardInterrupt

        return Stop()

    with monkeypatch.context() as patch:
        patch.setattr(cli, "_progress", pulled)
        assert train(given, tmp_path / "part", "s", *two) == 130
    assert train(given, tmp_path / "part", "s", *two, "--resume") == 0
    assert "training steps: 6/6" in capsys.readouterr().err
    whole, part = (
        [(entry["loss"], entry["procon"]) for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]
        for folder in (tmp_path / "whole", tmp_path / "part")
    )
    assert part == [pytest.approx(step) for step in whole]
    assert len(part) == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--variant", "s_safe"], "safety_data is missing"),
        (["--variant", "s", "--safety-data", "x.jsonl"], "safety_data has no effect"),
        (["--data", "nowhere.jsonl"], "--data: nowhere.jsonl cannot be read"),
        (["--epochs", "0"], "epochs must be positive"),
        (["--lora-targets", "nothing"], "nothing"),
        (["--resume"], "there is no checkpoint"),
    ],
)
def test_misuse_is_one_line(given, tmp_path, capsys, more, message):
    base = ["train", "--model", str(given / "model"), "--data", str(given / "data.jsonl")]
    assert cli.main([*base, *words(given, tmp_path, *more)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
    assert len([line for line in error if line.startswith("procon:")]) == 1


def test_empty_probes_and_unknown_models_are_refused(given, tmp_path, capsys):
    empty = ["--probe", str(given / "harmful.txt"), str(given / "empty.txt"), "--out", str(tmp_path)]
    for models, message in (([str(given / "model")] * 2, "is empty"), (["./nowhere"] * 2, "nowhere")):
        probe = empty if message == "is empty" else words(given, tmp_path)
        assert cli.main(["drift", *models, *probe]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_compares_what_was_run(tmp_path, capsys, monkeypatch):
    asked = {}
    monkeypatch.setattr(trl_comparison, "compare", lambda out, **more: asked.update(more))
    (tmp_path / "runs").mkdir()
    for number, run in enumerate(curves(2.0)):
        (tmp_path / "runs" / f"{number}.json").write_text(json.dumps(run))
    assert cli.main(["compare", "--out", str(tmp_path), "--seeds", "3"]) == 0
    assert (asked["seeds"], asked["device"]) == (3, "cpu")
    told = capsys.readouterr().out
    assert "procon_s-30" in told
    effect = json.loads((tmp_path / "equal-task-loss.json").read_text())["effect"]
    assert f"refusal above random directions at equal task loss: holds ({effect:+.2f} log-odds [" in told
    assert all((tmp_path / name).stat().st_size and name in told for name in FILES)


def test_a_comparison_says_what_it_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AISEC_CACHE", str(tmp_path / "cache"))
    for more, message in (([], "aisec data fetch smollm2-135m-instruct"), (["--seeds", "0"], "seeds must be at least")):
        assert cli.main(["compare", "--out", str(tmp_path / "out"), *more]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
