import pytest
import torch
from aisec_common.torch.blocks import find_blocks
from aisec_common.torch.hf_tiny_lm import tiny_lm
from peft import LoraConfig, get_peft_model
from torch import nn


def stack(n, width=2):
    return nn.ModuleList([nn.Linear(width, width) for _ in range(n)])


@pytest.mark.parametrize(("architecture", "name"), [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_decoders_have_one(architecture, name):
    found, blocks = find_blocks(tiny_lm(20, architecture=architecture, layers=3, width=16))
    assert (found, len(blocks)) == (name, 3)


def test_adapters_leave_it_in_place():
    model = tiny_lm(20, layers=2, width=16)
    blocks = find_blocks(model)[1]
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    assert find_blocks(wrapped) == ("base_model.model.model.layers", blocks)


def test_the_longest_uniform_list_outside_other_lists_is_taken():
    inner = nn.ModuleList([nn.ModuleDict({"experts": stack(9)}) for _ in range(3)])
    mixed = nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()])
    model = nn.ModuleDict({"layers": inner, "heads": stack(2), "mixed": mixed})
    assert find_blocks(model)[0] == "layers"
    assert find_blocks(model, "heads")[0] == "heads"
    assert find_blocks(model, "mixed")[0] == "mixed"


def test_a_vision_tower_is_taken_only_where_it_is_alone():
    vision = nn.ModuleDict({"layers": stack(8)})
    assert find_blocks(nn.ModuleDict({"vision_tower": vision, "language_model": stack(2)}))[0] == "language_model"
    assert find_blocks(nn.ModuleDict({"vision_tower": vision}))[0] == "vision_tower.layers"


def test_models_without_a_list_say_so():
    with pytest.raises(ValueError, match="name the block list"):
        find_blocks(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"no block list 'h'; its module lists are: layers"):
        find_blocks(nn.ModuleDict({"layers": stack(2)}), "h")
    assert torch.is_tensor(find_blocks(nn.ModuleDict({"layers": stack(2)}))[1][0].weight)
