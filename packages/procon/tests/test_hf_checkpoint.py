import json

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer

from procon.hf_checkpoint import load, read_prompts, read_samples


def test_loads_in_the_dtype_asked_for(tmp_path):
    tokenizer = word_tokenizer(["a", "b"])
    tiny_lm(tokenizer, layers=1, width=16, heads=2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for dtype, expected in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        model, again = load(str(tmp_path), device="cpu", dtype=dtype)
        assert model.dtype == expected
        assert not model.training
        assert again("a b").input_ids == tokenizer("a b").input_ids
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be loaded on cpu") as raised:
        load(str(tmp_path), device="cpu", dtype="auto")
    assert "\n" not in str(raised.value)


def test_prompts_are_lines(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(" one \n\ntwo words\n")
    assert read_prompts(file) == ["one", "two words"]
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="is empty"):
        read_prompts(file)
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompts(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 1 .* is no JSON"),
        (["[1]"], "line 1 .* must have prompt and completion"),
        (['{"prompt": "a"}'], "line 1 .* must have"),
        (['{"text": "a"}', "", '{"messages": []}'], "line 3 .* another format"),
        (["", " "], "has no samples"),
    ],
)
def test_samples_are_json_lines_of_one_format(tmp_path, lines, message):
    file = tmp_path / "data.jsonl"
    good = [{"prompt": "a", "completion": "b"}] * 2
    file.write_text("\n".join(map(json.dumps, good)))
    assert read_samples(file, "--data") == good
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"^--data: .*{message}"):
        read_samples(file, "--data")
