import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.model_hash import model_hash
from peft import LoraConfig, get_peft_model
from torch import nn


def test_it_depends_on_every_weight_name_and_type():
    model = tiny_lm(20, layers=2, width=16)
    first = model_hash(model)
    assert model_hash(tiny_lm(20, layers=2, width=16)) == first
    assert model_hash(tiny_lm(20, layers=2, width=16, seed=1)) != first
    other = tiny_lm(20, layers=2, width=16)
    other.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1e-6
    assert model_hash(other) != first
    assert model_hash(model.to(torch.bfloat16)) != first


def test_adapters_count_only_once_they_are_merged():
    model = tiny_lm(20, layers=2, width=16)
    before = model_hash(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))
    assert model_hash(wrapped) == before
    assert model_hash(model) == before  # PEFT changes it in place
    assert model_hash(wrapped.merge_and_unload()) != before


def test_names_count_and_scalars_and_half_precision_are_taken():
    layer = nn.Linear(2, 2)
    assert model_hash(nn.ModuleDict({"a": layer})) != model_hash(nn.ModuleDict({"b": layer}))
    assert len(model_hash(nn.BatchNorm1d(3).to(torch.bfloat16))) == 64
