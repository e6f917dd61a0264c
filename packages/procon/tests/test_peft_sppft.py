import pytest
from aisec_common.torch.hf_tiny_lm import tiny_lm
from peft import LoraConfig, get_peft_model

from procon.peft_sppft import safety_layers, sppft_config

CONFIG = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])


def adapted(model, config):
    names = [name for name, parameter in get_peft_model(model, config).named_parameters() if parameter.requires_grad]
    return {int(name.split(".layers.")[1].split(".")[0]) for name in names}


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(1, (0,)), (2, (0,)), (4, (1,)), (6, (1, 2)), (30, tuple(range(6, 13))), (32, tuple(range(6, 14)))],
)
def test_safety_layers_are_llama_2_s_to_scale(blocks, expected):
    assert safety_layers(blocks) == expected


def test_all_blocks_but_the_safety_layers_get_adapters():
    assert adapted(tiny_lm(9, layers=4, width=16), sppft_config(tiny_lm(9, layers=4, width=16), CONFIG)) == {0, 2, 3}
    assert CONFIG.layers_to_transform is None


def test_named_blocks_stay_frozen():
    model = tiny_lm(9, layers=4, width=16)
    assert adapted(model, sppft_config(model, CONFIG, frozen=(0, 3))) == {1, 2}


@pytest.mark.parametrize(
    ("config", "frozen", "words"),
    [
        (CONFIG, (4,), "no block 4"),
        (CONFIG, (-1,), "no block -1"),
        (CONFIG, (0, 1, 2, 3), "none of the 4"),
        (LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0]), None, "layers_to_transform"),
    ],
)
def test_refuses(config, frozen, words):
    with pytest.raises(ValueError, match=words):
        sppft_config(tiny_lm(9, layers=4, width=16), config, frozen)
