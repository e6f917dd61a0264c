from copy import deepcopy

import pytest
import torch
from tiny_router import prompts

from tracerouter.hf_reader import Reader
from tracerouter.sites import find_sites


def test_rows_are_the_counted_tokens_whatever_they_are_batched_with(model, tokenizer):
    names = find_sites(model, ["resid"])
    read, key = Reader(model, tokenizer, names), (2, "resid")
    texts = ["w1 w2 w3", "w4", "w5 w6"]
    together = read(texts, [key])[key]
    apart = torch.cat([read([text], [key])[key] for text in texts])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        copy = deepcopy(model)  # transformers leaves hooks of its own in a model that was asked for hidden states
        hidden = copy(**tokenizer(texts[:1], return_tensors="pt"), output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(together[:3], hidden[0])


def test_edits_hold_for_one_call_and_gradients_are_off(model, tokenizer):
    read, keys = Reader(model, tokenizer, find_sites(model, ["resid"])), [(1, "resid")]
    clean = read(prompts("w1"), keys)
    cut = read(prompts("w1"), keys, {(0, "resid"): torch.zeros_like})
    assert not torch.allclose(clean[keys[0]], cut[keys[0]])
    assert torch.equal(read(prompts("w1"), keys)[keys[0]], clean[keys[0]])
    assert not clean[keys[0]].requires_grad


def test_only_a_begin_token_at_the_start_is_left_out(model, tokenizer):
    read = Reader(model, tokenizer, find_sites(model, ["resid"]))
    assert read.counted(read.inputs(["<s> w1 w2", "w1 <s> w2", "w1"])).tolist() == [
        [False, True, True],
        [True, True, True],
        [True, False, False],
    ]
    with pytest.raises(ValueError, match="without any token"):
        read.inputs([" "])
