import json
import shlex
from pathlib import Path
from typing import get_args

import pytest
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from made_up_runs import curves
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback

from procon import cli, trl_comparison
from procon.cli_config import SAFE, Variant
from procon.comparison import FILES
from procon.direction import RefusalDirections
from procon.drift import DriftReport

README = Path(__file__).parents[1] / "README.md"
WORDS = ["rain", "sun", "wind", "seven", "two", "five", "Sorry", "no", "ok", "well"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a model, prompts of both kinds, training and safety samples."""
    folder = tmp_path_factory.mktemp("given")
    tokenizer = word_tokenizer(WORDS)
    for seed, name in enumerate(("model", "other")):
        tiny_lm(tokenizer, layers=2, width=16, heads=2, seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "harmful.txt").write_text("rain\n\nsun wind\nwind\n")
    (folder / "harmless.txt").write_text("seven two\nfive\n")
    samples = [{"prompt": f"{a} ", "completion": f"ok {b}"} for a in WORDS[3:6] for b in WORDS[3:6]]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    (folder / "safety.jsonl").write_text(json.dumps({"prompt": "rain sun ", "completion": "Sorry no"}) + "\n")
    (folder / "fewer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples[:-1]))
    (folder / "empty.txt").write_text("\n")
    return folder


def words(given, out, *more):
    probe = ["--probe", str(given / "harmful.txt"), str(given / "harmless.txt"), "--device", "cpu"]
    return [*probe, "--out", str(out), *more]


def train(given, out, variant, *more):
    more = (*(("--safety-data", str(given / "safety.jsonl")) if variant in SAFE else ()), *more)
    settings = ["--batch-size", "4", "--accumulate", "1", "--epochs", "1", "--learning-rate", "0.01"]
    base = ["train", "--model", str(given / "model"), "--data", str(given / "data.jsonl"), "--variant", variant]
    return cli.main([*base, *settings, *words(given, out, *more)])


def test_trains_reports_and_measures_the_adapter_again(given, tmp_path, capsys):
    assert train(given, tmp_path, "wu_safe", "--warmup-epochs", "1") == 0
    assert "| 0 | +" in capsys.readouterr().out
    log = [entry for entry in json.loads((tmp_path / "log.json").read_text()) if "loss" in entry]
    assert [entry["procon_alpha"] for entry in log] == [1.0] * 3 + [0.0] * 3  # 10 samples in batches of 4, twice
    assert RefusalDirections.load(tmp_path / "directions.safetensors").blocks == 2
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(given / "model"), tmp_path / "adapter")
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    assert train(given, tmp_path, "wu_safe") == 2
    assert "holds an adapter already" in capsys.readouterr().err

    drift = ["drift", str(given / "model"), str(tmp_path / "adapter")]
    assert cli.main([*drift, *words(given, tmp_path / "drift")]) == 0
    first, second = (DriftReport.load(folder / "drift.json") for folder in (tmp_path, tmp_path / "drift"))
    assert first.cosines == pytest.approx(second.cosines, abs=1e-5)
    assert min(first.cosines) < 1 - 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["s", "wu", "s_safe", "sft", "sft_safe", "sppft", "kl", "random"])
def test_every_variant_trains(given, tmp_path, variant):
    assert train(given, tmp_path, variant, *(["--normalize"] if variant == "random" else [])) == 0
    keys = {key for entry in json.loads((tmp_path / "log.json").read_text()) for key in entry}
    assert ("procon" in keys) == (variant in ("s", "wu", "s_safe", "random"))
    assert ("kl" in keys) == (variant == "kl")


def test_the_commands_of_the_readme(given, tmp_path, monkeypatch, capsys):
    if not README.exists():
        pytest.skip("the README is in the checkout only")
    commands = [line for line in README.read_text().splitlines() if line.startswith(("procon train ", "procon drift "))]
    monkeypatch.chdir(tmp_path)
    for name, file in {"MODEL": "model", "my.jsonl": "data.jsonl"}.items():
        Path(name).symlink_to(given / file)
    for name in ("harmful.txt", "harmless.txt"):
        Path(name).symlink_to(given / name)
    for command in commands:
        assert cli.main([*shlex.split(command)[1:], "--device", "cpu"]) == 0, capsys.readouterr().err
    first, second = (DriftReport.load(Path(folder, "drift.json")) for folder in ("tuned", "drift"))
    assert first.cosines == pytest.approx(second.cosines, abs=1e-5)
    assert min(first.cosines) < 1 - 1e-4


TWO_EPOCHS = ("--epochs", "2")  # of three steps each; the first one's end is kept


def stopped(given, out, variant):
    """A run that ended at the fifth of its six steps."""

    def pulled(show):
        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **settings):
                if state.global_step == 5:
                    raise KeyboardInterrupt

        return Stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_progress", pulled)
        assert train(given, out, variant, *TWO_EPOCHS) == 130


@pytest.mark.parametrize("variant", ["s", "kl"])
def test_resumes_where_it_was_stopped(given, tmp_path, capsys, variant):
    assert train(given, tmp_path / "whole", variant, *TWO_EPOCHS) == 0
    stopped(given, tmp_path / "part", variant)
    assert train(given, tmp_path / "part", variant, *TWO_EPOCHS, "--resume") == 0
    assert "training steps: 6/6" in capsys.readouterr().err
    term = "kl" if variant == "kl" else "procon"
    whole, part = (
        [(entry["loss"], entry[term]) for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]
        for folder in (tmp_path / "whole", tmp_path / "part")
    )
    assert part == [pytest.approx(step) for step in whole]
    assert len(part) == 6


@pytest.mark.parametrize("variant", ["sft", "kl", "sppft", "s"])
def test_what_was_begun_otherwise_is_not_resumed_and_stays_as_it_was(given, tmp_path, capsys, variant):
    stopped(given, tmp_path, variant)
    kept = contents(tmp_path)
    probe = ("--probe", str(given / "harmful.txt"), str(given / "harmful.txt"))
    others = {
        "seed": (variant, "--seed", "1"),
        "learning_rate": (variant, "--learning-rate", "0.02"),
        "model": (variant, "--model", str(given / "other")),
        "data": (variant, "--data", str(given / "fewer.jsonl")),
        "probe": (variant, *probe),
    }
    if variant in ("kl", "s"):
        others["alpha"] = (variant, "--alpha", "0.7")
    for name, other in others.items():
        assert train(given, tmp_path, *other, *TWO_EPOCHS, "--resume") == 2
        assert f"--resume: {tmp_path} was made with another {name}; train anew" in capsys.readouterr().err, name
    for other in set(get_args(Variant)) - {variant}:
        assert train(given, tmp_path, other, *TWO_EPOCHS, "--resume") == 2
        assert f"--resume: {tmp_path} was made with another variant" in capsys.readouterr().err, other
    assert train(given, tmp_path, variant, *TWO_EPOCHS) == 2
    assert "holds a run that was stopped; add --resume" in capsys.readouterr().err
    assert contents(tmp_path) == kept
    (tmp_path / "procon.json").unlink()
    assert train(given, tmp_path, variant, *TWO_EPOCHS, "--resume") == 2
    assert "has no procon.json that says what it was made with" in capsys.readouterr().err


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_settings_of_the_term_reach_the_trainer(given, tmp_path):
    more = ("--norm", "l2_tokens", "--reduction", "paper_sum", "--cache-dtype", "float16", "--tokens", "both")
    assert train(given, tmp_path, "s", *more, "--layers", "-1", "--alpha", "0.01") == 0
    made = json.loads((tmp_path / "adapter" / "procon.json").read_text())
    wanted = {"norm": "l2_tokens", "reduction": "paper_sum", "cache_dtype": "float16", "tokens": "both"}
    wanted |= {"layers": [-1], "alpha": 0.01, "schedule": "constant", "reference": "cache"}
    assert {name: made[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--variant", "s_safe"], "safety_data is missing"),
        (["--variant", "s", "--safety-data", "x.jsonl"], "safety_data has no effect"),
        (["--data", "nowhere.jsonl"], "--data: nowhere.jsonl cannot be read"),
        (["--epochs", "0"], "epochs must be positive"),
        (["--lora-targets", "nothing"], "nothing"),
        (["--probe", "x.txt", "y.txt"], "probe: x.txt cannot be read"),
        (["--variant", "sft", "--alpha", "1"], "alpha has no effect with --variant sft"),
        (["--variant", "kl", "--alpha", "-1"], "beta must be finite and not negative"),
        (["--resume"], "--resume: there is no checkpoint"),
        (["--variant", "sft", "--resume"], "--resume: there is no checkpoint"),
    ],
)
def test_misuse_is_one_line(given, tmp_path, capsys, more, message):
    base = ["train", "--model", str(given / "model"), "--data", str(given / "data.jsonl")]
    assert cli.main([*base, *words(given, tmp_path, *more)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1]
    assert len([line for line in error if line.startswith("procon:")]) == 1
    assert set(contents(tmp_path)) <= {Path(".lock")}


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
