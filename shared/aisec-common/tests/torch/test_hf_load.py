import pytest
import torch
from aisec_common.torch.hf_load import load_causal_lm
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer


def test_a_folder_comes_back_as_it_was_saved(tmp_path):
    tokenizer = word_tokenizer(["a", "b"])
    model = tiny_lm(tokenizer, layers=1, width=16)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, again = load_causal_lm(str(tmp_path), device="cpu")
    ids = torch.tensor([again("a b").input_ids])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not loaded.training
    half, _ = load_causal_lm(str(tmp_path), device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        load_causal_lm(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nosuch"):
        load_causal_lm(str(tmp_path / "nosuch"))
