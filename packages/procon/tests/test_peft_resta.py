import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from procon.peft_resta import resta

IDS = torch.tensor([[1, 2, 3, 4, 5]])
TARGETS = ["q_proj", "o_proj"]


def two_adapters(ranks=(2, 2)):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = get_peft_model(tiny_lm(9, width=16), LoraConfig(r=ranks[0], lora_alpha=3, target_modules=TARGETS))
        model.add_adapter("unaligned", LoraConfig(r=ranks[1], lora_alpha=8, target_modules=TARGETS))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
    return model


def updates(model, adapter):
    return {
        name: module.get_delta_weight(adapter).detach()
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A") and name.endswith(tuple(TARGETS))
    }


@pytest.mark.parametrize("ranks", [(2, 2), (2, 3)])
def test_the_sum_is_exact(ranks):
    model = two_adapters(ranks)
    tuned, unaligned = updates(model, "default"), updates(model, "unaligned")
    resta(model, unaligned="unaligned", gamma=0.7)
    assert model.active_adapter == "resta"
    found = updates(model, "resta")
    assert len(found) == 4
    for name, update in found.items():
        assert torch.allclose(update, tuned[name] - 0.7 * unaligned[name], atol=1e-5)
        assert torch.equal(updates(model, "default")[name], tuned[name])


def test_gamma_zero_is_the_tuned_model():
    model = two_adapters()
    model.set_adapter("default")
    before = model(IDS).logits
    resta(model, unaligned="unaligned", gamma=0.0)
    assert torch.allclose(model(IDS).logits, before, atol=1e-5)


def test_dare_drops_and_rescales_the_tuned_factors_alone():
    model = two_adapters()
    resta(model, unaligned="unaligned", gamma=0.5, drop=0.4, seed=1)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    kept, tuned = layer.lora_B["resta"].weight[:, :2], layer.lora_B["default"].weight
    scale = (3 / 2) ** 0.5 / 0.6  # the square root of its scaling on each factor, and the rescaling of what is left
    assert torch.all((kept == 0) | torch.isclose(kept, tuned * scale, atol=1e-5))
    assert 0 < int((kept == 0).sum()) < kept.numel()
    assert torch.equal(layer.lora_B["resta"].weight[:, 2:], layer.lora_B["unaligned"].weight)
    assert set(model.peft_config) == {"default", "unaligned", "resta"}


def test_a_seed_draws_the_same_and_leaves_the_global_generator():
    state = torch.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        model = two_adapters()
        resta(model, unaligned="unaligned", drop=0.5, seed=seed)
        found.append(model(IDS).logits)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_it_loads_without_this_package(tmp_path):
    model = two_adapters()
    resta(model, unaligned="unaligned")
    expected = model(IDS).logits
    model.save_pretrained(tmp_path, selected_adapters=["resta"])
    loaded = PeftModel.from_pretrained(tiny_lm(9, width=16), tmp_path / "resta")
    assert torch.allclose(loaded(IDS).logits, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"unaligned": "nosuch"}, "unaligned: no adapter"),
        ({"tuned": "nosuch"}, "tuned: no adapter"),
        ({"unaligned": "default"}, "both"),
        ({"gamma": -1.0}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"drop": 1.0}, "drop"),
    ],
)
def test_refuses(settings, words):
    with pytest.raises(ValueError, match=words):
        resta(two_adapters(), **{"unaligned": "unaligned", **settings})


def test_refuses_a_second_time():
    model = two_adapters()
    resta(model, unaligned="unaligned")
    with pytest.raises(ValueError, match="already"):
        resta(model, unaligned="unaligned")
