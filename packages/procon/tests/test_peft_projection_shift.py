import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from peft import LoraConfig, get_peft_model
from torch import nn

from procon.direction import RefusalDirections
from procon.peft_projection_shift import projection_shift

ROWS = [
    {"prompt": "a b c", "completion": " d"},
    {"prompt": "a", "completion": " b c d a"},
    {"prompt": "c d a b", "completion": " a a"},
]


@pytest.fixture
def tokenizer():
    return word_tokenizer(["a", "b", "c", "d"])


def model_of(tokenizer, std):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = get_peft_model(tiny_lm(tokenizer, width=16, layers=3), LoraConfig(r=2, target_modules=["q_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=std) if std else nn.init.zeros_(parameter)
    return model


def directions():
    vectors = nn.functional.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    return RefusalDirections(vectors=vectors, layers=(0, 1), model_name="", model_hash="", blocks=3)


def test_it_is_the_mean_of_a_loop_over_samples(tokenizer):
    model = model_of(tokenizer, 1.0)
    vectors, shifts = directions(), []
    for row in ROWS:
        ids = tokenizer(row["prompt"] + row["completion"] + "</s>", return_tensors="pt").input_ids
        start = len(tokenizer(row["prompt"]).input_ids)
        with torch.no_grad():
            tuned = model(ids, output_hidden_states=True).hidden_states
            with model.disable_adapter():
                base = model(ids, output_hidden_states=True).hidden_states
        for token in range(start, ids.shape[1]):
            for layer in vectors:  # hidden_states[0] is the embedding
                moved = tuned[layer + 1][0, token] - base[layer + 1][0, token]
                shifts.append(abs(float(moved @ vectors[layer])))
    assert projection_shift(model, tokenizer, ROWS, vectors, batch_size=2) == pytest.approx(sum(shifts) / len(shifts))


def test_a_fresh_adapter_moves_nothing_and_flags_are_restored(tokenizer):
    model = model_of(tokenizer, 0.0)
    model.train()
    assert projection_shift(model, tokenizer, ROWS, directions()) == 0
    assert model.training


def test_refuses_no_rows(tokenizer):
    with pytest.raises(ValueError, match="rows"):
        projection_shift(model_of(tokenizer, 0.0), tokenizer, [], directions())
