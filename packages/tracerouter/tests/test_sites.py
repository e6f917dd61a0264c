import pytest
import torch
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hooks import capture
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tracerouter.sites import SITES, Decoder, find_sites

SMALL = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
KINDS = {
    "llama": {},
    "qwen2": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {},
    "phi": {},
}
IDS = torch.tensor([[1, 2, 3, 4]])


def built(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        return tiny_lm(30, architecture="gpt2", width=16, heads=2)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **KINDS[kind])).eval()


@pytest.mark.parametrize("kind", ["gpt2", *KINDS])
def test_sites_are_what_enters_the_residual_stream(kind):
    model = built(kind)
    names = find_sites(model, SITES)
    assert set(names) == {(layer, site) for layer in range(2) for site in SITES}
    before = names[0, "resid"]
    with torch.no_grad(), capture(model, names.values()) as seen:
        hidden = model(IDS, output_hidden_states=True).hidden_states
    torch.testing.assert_close(seen[before], hidden[1])
    added = seen[names[1, "attn_out"]] + seen[names[1, "mlp_out"]]
    torch.testing.assert_close(seen[names[1, "resid"]], seen[before] + added)
    wide = 64 if kind == "gpt2" else 24
    assert seen[names[1, "mlp_hidden"]].shape == (1, 4, wide)


def test_mlp_hidden_is_what_the_last_matrix_reads():
    model = built("llama")
    names = find_sites(model, ["mlp_hidden", "mlp_out"])
    with torch.no_grad(), capture(model, names.values()) as seen:
        model(IDS)
    down = model.model.layers[1].mlp.down_proj
    torch.testing.assert_close(down(seen[names[1, "mlp_hidden"]]), seen[names[1, "mlp_out"]])


def test_a_block_list_can_be_named():
    towers = nn.ModuleDict({name: nn.ModuleList(nn.Linear(2, 2) for _ in range(n)) for name, n in (("a", 3), ("b", 2))})
    assert len(find_sites(towers, ["resid"])) == 3
    assert list(find_sites(towers, ["resid"], Decoder("b")).values()) == ["b.0", "b.1"]


@pytest.mark.parametrize("sites", [[], "resid", ["resid", "resid"], ["logits"]])
def test_unknown_sites_are_named(sites):
    with pytest.raises(ValueError, match=r"sites must be .*resid, attn_out, mlp_hidden, mlp_out"):
        find_sites(built("llama"), sites)


def test_a_missing_site_lists_the_parts_of_the_block():
    blocks = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"mixer": nn.Linear(2, 2)}) for _ in range(2))})
    with pytest.raises(ValueError, match=r"block 'layers.0' \(ModuleDict\) has no mlp_out; its parts are: mixer"):
        find_sites(blocks, ["mlp_out"])
