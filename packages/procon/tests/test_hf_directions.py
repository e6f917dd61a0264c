import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from aisec_common.torch.model_hash import model_hash
from peft import LoraConfig, get_peft_model

from procon.direction import difference_in_means
from procon.hf_directions import prompt_states, refusal_directions

TOKENIZER = word_tokenizer(["rain", "sun", "wind", "two", "six", "ten"])
HARMFUL = ["rain", "sun sun rain", "wind rain", "sun wind sun wind rain"]
HARMLESS = ["two", "six ten", "ten two six"]


def model(architecture="llama", **settings):
    return tiny_lm(TOKENIZER, architecture=architecture, layers=3, width=16, **settings)


def states_of_one(lm, text):
    """Outputs of all blocks at the last token of one text, without any padding."""
    last = []
    stack = lm.model.layers if hasattr(lm, "model") else lm.transformer.h
    handle = stack[-1].register_forward_hook(
        lambda module, arguments, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        hidden = lm(**TOKENIZER(text, return_tensors="pt"), output_hidden_states=True).hidden_states
    handle.remove()
    return torch.stack([state[0, -1] for state in (*hidden[1:-1], last[0])])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_states_are_those_of_single_unpadded_prompts(architecture, batch_size):
    lm = model(architecture)
    states = prompt_states(lm, TOKENIZER, HARMFUL, batch_size=batch_size)
    assert states.shape == (4, 3, 16)
    torch.testing.assert_close(states, torch.stack([states_of_one(lm, text) for text in HARMFUL]))
    some = prompt_states(lm, TOKENIZER, HARMFUL, batch_size=batch_size, layers=(-1, 0))
    assert torch.equal(some, states[:, [2, 0]])


def test_the_model_is_left_as_it_was():
    lm = model()
    lm.train()
    lm.model.layers[1].eval()
    flags = [module.training for module in lm.modules()]
    states = prompt_states(lm, TOKENIZER, HARMFUL)
    assert [module.training for module in lm.modules()] == flags
    assert not any(module._forward_hooks for module in lm.modules())
    assert not states.requires_grad
    with pytest.raises(ValueError, match="number 0 has no token"):
        prompt_states(lm, TOKENIZER, [""])
    assert [module.training for module in lm.modules()] == flags


def test_dropout_is_off():
    lm = model()
    lm.model.layers[0].mlp = torch.nn.Sequential(lm.model.layers[0].mlp, torch.nn.Dropout(0.5))
    lm.train()
    assert torch.equal(prompt_states(lm, TOKENIZER, HARMFUL), prompt_states(lm, TOKENIZER, HARMFUL))


def test_directions_are_differences_in_means_and_name_their_model():
    lm = model()
    found = refusal_directions(lm, TOKENIZER, harmful=HARMFUL, harmless=HARMLESS, model_name="tiny")
    expected = difference_in_means(
        torch.stack([states_of_one(lm, text) for text in HARMFUL]),
        torch.stack([states_of_one(lm, text) for text in HARMLESS]),
    )
    torch.testing.assert_close(found.vectors, expected)
    assert (found.layers, found.model_name, found.model_hash) == ((0, 1, 2), "tiny", model_hash(lm))
    found.check(lm)


def test_fresh_adapters_change_neither_directions_nor_their_check():
    lm = model()
    before = refusal_directions(lm, TOKENIZER, harmful=HARMFUL, harmless=HARMLESS)
    adapted = get_peft_model(lm, LoraConfig(target_modules=["q_proj", "v_proj"]))
    after = refusal_directions(adapted, TOKENIZER, harmful=HARMFUL, harmless=HARMLESS)
    torch.testing.assert_close(before.vectors, after.vectors)
    before.check(adapted)
    with pytest.raises(ValueError, match="the model has 32"):
        before.check(get_peft_model(tiny_lm(TOKENIZER, layers=3, width=32), LoraConfig(target_modules=["q_proj"])))


def test_wrong_input():
    lm = model()
    for settings, message in (
        ({"harmful": []}, "harmful is empty"),
        ({"harmless": []}, "harmless is empty"),
        ({"harmless": HARMFUL[::-1]}, "same mean in layer 0"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            refusal_directions(lm, TOKENIZER, **{"harmful": HARMFUL, "harmless": HARMLESS, **settings})
    for layer in (3, -4):
        with pytest.raises(ValueError, match=f"no block {layer}"):
            prompt_states(lm, TOKENIZER, HARMFUL, layers=(layer,))
    lm.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="harmful has NaN or infinite states in layer 1"):
        refusal_directions(lm, TOKENIZER, harmful=HARMFUL, harmless=HARMLESS)
