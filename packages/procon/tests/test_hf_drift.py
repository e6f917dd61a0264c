import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from peft import LoraConfig, get_peft_model

from procon.drift import signed_cosines
from procon.hf_directions import refusal_directions
from procon.hf_drift import drift_report

TOKENIZER = word_tokenizer(["rain", "sun", "wind", "two", "six", "ten"])
PROBE = {"harmful": ["rain", "sun sun rain", "wind rain"], "harmless": ["two", "six ten", "ten two six"]}


def model(seed=0):
    return tiny_lm(TOKENIZER, layers=3, width=16, seed=seed)


def report(before, after):
    return drift_report(before=before, after=after, tokenizer=TOKENIZER, **PROBE)


def tuned(base):
    """The base with adapters that change it."""
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"]))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw)
    return adapted


def test_two_models():
    one, other = model(), model(seed=1)
    found = report(one, other)
    expected = signed_cosines(*(refusal_directions(lm, TOKENIZER, **PROBE) for lm in (one, other)))
    assert found.cosines == tuple(expected.tolist())
    assert found.layers == (0, 1, 2)
    assert found.model_before == "LlamaForCausalLM"


def test_a_base_model_is_measured_without_the_adapters_put_into_it():
    base = model()
    untouched = refusal_directions(model(), TOKENIZER, **PROBE)
    adapted = tuned(base)
    expected = report(untouched, adapted).cosines
    assert max(expected) < 0.99
    found = report(base, adapted)
    assert found.cosines == pytest.approx(expected, abs=1e-6)
    assert report(adapted, base).cosines == pytest.approx(expected, abs=1e-6)
    assert (found.model_before, found.model_after) == ("LlamaForCausalLM", "LlamaForCausalLM with adapters")
    assert report(base, adapted).cosines == found.cosines  # the adapters are on again
    assert report(adapted, adapted).cosines == (1.0, 1.0, 1.0)


def test_adapters_of_another_base_stay_on():
    adapted = tuned(model())
    expected = signed_cosines(*(refusal_directions(lm, TOKENIZER, **PROBE) for lm in (model(), adapted)))
    assert report(model(), adapted).cosines == tuple(expected.tolist())


def test_directions_may_stand_for_either_model_and_choose_the_layers():
    one, other = model(), model(seed=1)
    whole = report(one, other).cosines
    some = refusal_directions(one, TOKENIZER, **PROBE).at((2, 0))
    assert report(some, other).cosines == (whole[2], whole[0])
    assert report(other, some).cosines == (whole[2], whole[0])
    both = report(some, refusal_directions(other, TOKENIZER, **PROBE).at((0, 2)))
    assert both.cosines == (whole[2], whole[0])


def test_models_of_other_shape_and_empty_probes():
    with pytest.raises(ValueError, match="hidden size, got 16 and 32"):
        report(model(), tiny_lm(TOKENIZER, layers=3, width=32))
    with pytest.raises(ValueError, match="number of blocks, got 3 and 2"):
        report(model(), tiny_lm(TOKENIZER, layers=2, width=16))
    with pytest.raises(ValueError, match="harmful is empty"):
        drift_report(before=model(), after=model(), tokenizer=TOKENIZER, harmful=[], harmless=["two"])
