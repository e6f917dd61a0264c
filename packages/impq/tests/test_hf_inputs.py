from itertools import pairwise
from pathlib import Path

import pytest
import torch

from impq import hf_inputs
from impq.config import EvalConfig, GameConfig, ModelConfig
from impq.hf_inputs import calibration, game_of, held_out, load
from impq.hf_model import load_model


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_model(str(checkpoint), device="cpu", dtype=torch.float32)


def judged(**settings):
    return EvalConfig(model="m", plan=Path("plan.json"), window=8, **settings)


def ids_of(batches):
    return torch.cat([batch.inputs["input_ids"] for batch in batches])


def test_held_out_windows_spread_over_the_whole_text(loaded, tmp_path):
    model, tokenizer = loaded
    text = tmp_path / "text.txt"
    text.write_text(" ".join(str(n) for n in range(2000)))
    found = ids_of(held_out(judged(text=str(text), text_tokens=40), model, tokenizer))
    ids = torch.tensor(tokenizer(text.read_text(), add_special_tokens=False)["input_ids"])
    windows = ids[: len(ids) // 8 * 8].view(-1, 8)
    places = [next(k for k, window in enumerate(windows) if torch.equal(window, row)) for row in found]
    gaps = {b - a for a, b in pairwise(places)}
    assert (places[0], places[-1]) == (0, len(windows) - 1)
    assert max(gaps) - min(gaps) <= 1


def test_a_held_out_text_that_is_too_short_is_told_by_its_own_argument(loaded, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("too short a text")
    with pytest.raises(ValueError, match="lower text_tokens"):
        held_out(judged(text=str(text), text_tokens=400), *loaded)


def test_calibration_takes_the_first_tokens_and_says_what_whole_windows_leave_out(loaded, tmp_path, capsys):
    model, tokenizer = loaded
    text = tmp_path / "text.txt"
    text.write_text(" ".join(str(n) for n in range(500)))
    found = ids_of(calibration(ModelConfig(model="m", calib=str(text), tokens=50, window=32), model, tokenizer))
    assert found.flatten().tolist() == tokenizer(text.read_text(), add_special_tokens=False)["input_ids"][:32]
    assert capsys.readouterr().err == "tokens: 32 of 50 are used, in windows of 32\n"
    calibration(ModelConfig(model="m", calib=str(text), tokens=64, window=32), model, tokenizer)
    assert capsys.readouterr().err == ""


def test_dtype_auto_is_float32_on_a_cpu_and_the_checkpoint_s_own_elsewhere(loaded, tmp_path, monkeypatch):
    model, tokenizer = loaded
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    model.to(torch.float32)
    tokenizer.save_pretrained(tmp_path)
    assert load(ModelConfig(model=str(tmp_path)))[0].dtype == torch.float32
    assert load(ModelConfig(model=str(tmp_path), dtype="float16"))[0].dtype == torch.float16
    asked = []
    monkeypatch.setattr(hf_inputs, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(hf_inputs, "load_model", lambda _, **how: asked.append(how["dtype"]))
    load(ModelConfig(model="m"))
    load(ModelConfig(model="m", dtype="float32"))
    assert asked == [None, torch.float32]


def test_a_damaged_checkpoint_is_one_line(loaded, checkpoint, tmp_path):
    for path in checkpoint.iterdir():
        half = 1000 if path.suffix == ".safetensors" else None
        (tmp_path / path.name).write_bytes(path.read_bytes()[:half])
    with pytest.raises(ValueError, match="cannot be loaded on cpu"):
        load(ModelConfig(model=str(tmp_path)))


def test_the_game_has_the_groups_and_the_name_that_were_asked_for(loaded, checkpoint):
    from impq.backend import get_backend

    model, tokenizer = loaded
    config = GameConfig(model=str(checkpoint), tokens=32, window=16, group_size="row")
    shown = []
    game = game_of(
        config,
        model,
        calibration(config, model, tokenizer),
        get_backend("rtn"),
        lambda *words: shown.append(words),
        bits=(4, 3, 2),
    )
    assert (game.header.group_size, game.header.bits) == ("row", (4, 3, 2))
    assert game.header.model_name == checkpoint.name
    assert {what for what, *_ in shown} == {"quantising, rtn"}
