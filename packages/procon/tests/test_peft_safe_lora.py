import copy

import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from procon.peft_safe_lora import alignment_projection, safe_lora

IDS = torch.tensor([[1, 2, 3, 4]])


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6, bias=False)
        self.second = nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return self.second(self.first(x))


def tuned(seed=0):
    """An aligned net with a random adapter, and its base."""
    torch.default_generator.manual_seed(seed)
    aligned, base = Net(), Net()
    model = get_peft_model(copy.deepcopy(aligned), LoraConfig(r=2, target_modules=["first", "second"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model, aligned, base


def factors(model, layer):
    module = getattr(model.get_base_model(), layer)
    return module.lora_B["default"].weight.detach().clone(), module.lora_A["default"].weight.detach().clone()


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 6))
def test_the_projection_is_that_of_the_paper(seed, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    aligned, base = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    found = alignment_projection(aligned, base)
    v = (aligned - base).double()
    norm = sum(float(x) ** 2 for x in v.flatten()) ** 0.5
    expected = [[float(v[i] @ v[j]) / norm for j in range(rows)] for i in range(rows)]
    assert torch.allclose(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(found, found.T, atol=1e-5)


def test_rank_one_alignment_keeps_only_its_column():
    u = torch.tensor([1.0, 2.0, 2.0])
    projection = alignment_projection(torch.outer(u, torch.tensor([3.0, 4.0])), torch.zeros(3, 2))
    assert torch.allclose(projection @ u, 15 * u)  # |V| = 3 * 5, and C u = sigma^2 / |V| u
    assert torch.allclose(projection @ torch.tensor([2.0, -1.0, 0.0]), torch.zeros(3), atol=1e-5)


def test_every_layer_at_threshold_one_and_none_at_minus_one():
    model, aligned, base = tuned()
    before = {layer: factors(model, layer) for layer in ("first", "second")}
    assert not any(entry.projected for entry in safe_lora(model, base, threshold=-1.0))
    for layer, (up, _) in before.items():
        assert torch.equal(factors(model, layer)[0], up)
    found = safe_lora(model, base, threshold=1.0)
    assert [entry.layer for entry in found] == ["first", "second"]
    for entry in found:
        assert entry.projected
        up, down = before[entry.layer]
        projection = alignment_projection(getattr(aligned, entry.layer).weight, getattr(base, entry.layer).weight)
        assert torch.allclose(factors(model, entry.layer)[0], projection @ up, atol=1e-6)
        assert torch.equal(factors(model, entry.layer)[1], down)
        whole, moved = (up @ down).flatten(), (projection @ up @ down).flatten()
        assert entry.cosine == pytest.approx(float(whole @ moved / whole.norm() / moved.norm()), abs=1e-5)


def test_only_layers_below_the_threshold_are_projected():
    model, _, base = tuned(1)
    cosines = [entry.cosine for entry in safe_lora(model, base, threshold=-1.0)]
    between = sum(cosines) / 2
    found = safe_lora(model, base, threshold=between)
    assert [entry.projected for entry in found] == [cosine <= between for cosine in cosines]


def test_an_untrained_adapter_stays_zero():
    torch.default_generator.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["first"]))
    (entry,) = safe_lora(model, Net())
    assert entry.cosine == 0
    assert not factors(model, "first")[0].any()


def test_a_transposed_layer_is_turned(tmp_path):
    """GPT-2 keeps its weights as [in, out]."""
    aligned, base = tiny_lm(9, architecture="gpt2", width=16, seed=0), tiny_lm(9, architecture="gpt2", width=16, seed=1)
    model = get_peft_model(aligned, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    assert {entry.layer.rpartition(".")[2] for entry in safe_lora(model, base, threshold=1.0)} == {"c_attn"}
    model.save_pretrained(tmp_path)
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize(("settings", "words"), [({"threshold": 1.5}, "threshold"), ({"adapter": "nosuch"}, "nosuch")])
def test_refuses(settings, words):
    model, _, base = tuned()
    with pytest.raises(ValueError, match=words):
        safe_lora(model, base, **settings)


def test_refuses_a_base_that_does_not_fit():
    model, aligned, _ = tuned()
    with pytest.raises(ValueError, match="must differ"):
        safe_lora(model, aligned)
    with pytest.raises(ValueError, match="'first'"):
        safe_lora(model, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="shape"):
        alignment_projection(torch.zeros(2, 3), torch.zeros(3, 2))
