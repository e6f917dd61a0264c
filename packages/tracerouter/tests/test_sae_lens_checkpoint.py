from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tracerouter.sae_lens_checkpoint import load_sae_lens

WIDTH, LATENTS, K = 6, 10, 3
PLACE = (3, "resid")


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(folder, config=None, **tensors):
    """A folder as SAELens writes it; decoder rows are not of norm 1."""
    weights = {
        "W_enc": random(WIDTH, LATENTS, seed=1),
        "W_dec": random(LATENTS, WIDTH, seed=2),
        "b_enc": random(LATENTS, seed=3),
        "b_dec": random(WIDTH, seed=4),
    } | tensors
    weights = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(weights, folder / "sae_weights.safetensors")
    written = {"d_in": WIDTH, "d_sae": LATENTS, "dtype": "float32", "architecture": "standard"}
    written |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps(written | (config or {})))
    return weights


def their_forward(weights, x, *, subtract, k=None, rescale=False):
    """The library's own order of operations."""
    hidden = (x - subtract * weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    norms = weights["W_dec"].norm(dim=-1)
    if rescale:
        hidden = hidden * norms
    codes = torch.relu(hidden)
    if k is not None:
        codes = codes * (codes >= codes.sort(dim=-1, descending=True).values[..., k - 1 : k])
    if rescale:
        return codes / norms @ weights["W_dec"] + weights["b_dec"]
    return codes @ weights["W_dec"] + weights["b_dec"]


CONFIGS = [
    ({}, {"subtract": 1}),
    ({"apply_b_dec_to_input": False}, {"subtract": 0}),
    ({"architecture": "topk", "k": K}, {"subtract": 1, "k": K}),
    ({"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}, {"subtract": 1, "k": K, "rescale": True}),
    # as written before version 6
    (
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "hook_point": "blocks.3.hook_resid_post"},
        {"subtract": 1, "k": K},
    ),
]


@pytest.mark.parametrize(("config", "how"), CONFIGS)
def test_reconstructs_as_the_library_does(tmp_path, config, how):
    weights = stored(tmp_path, config)
    sae = load_sae_lens(tmp_path, place=PLACE, width=WIDTH)
    x = random(7, WIDTH, seed=5)
    torch.testing.assert_close(sae(x), their_forward(weights, x, **how), rtol=1e-5, atol=1e-5)
    assert sae.k == how.get("k")
    assert not any(p.requires_grad for p in sae.parameters())


def test_relu_decoder_columns_get_norm_one(tmp_path):
    stored(tmp_path)
    torch.testing.assert_close(load_sae_lens(tmp_path, place=PLACE).decoder.norm(dim=0), torch.ones(LATENTS))


def test_half_precision_files_are_read_as_float32(tmp_path):
    stored(tmp_path, W_enc=random(WIDTH, LATENTS, seed=1).bfloat16())
    assert load_sae_lens(tmp_path, place=PLACE).encoder.dtype == torch.float32


def test_a_scaling_factor_of_ones_is_nothing(tmp_path):
    stored(tmp_path, scaling_factor=torch.ones(LATENTS))
    assert load_sae_lens(tmp_path, place=PLACE).latents == LATENTS


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"architecture": "jumprelu"}, {"threshold": torch.ones(LATENTS)}, "'jumprelu' autoencoder; supported are"),
        ({"architecture": "gated"}, {}, "'gated' autoencoder"),
        ({"activation_fn": "tanh-relu"}, {}, "'tanh-relu' autoencoder"),
        ({"normalize_activations": "layer_norm"}, {}, "normalises activations"),
        ({"reshape_activations": "hook_z"}, {}, "attention heads taken apart"),
        ({"architecture": "topk"}, {}, "without k"),
        ({}, {"scaling_factor": torch.full((LATENTS,), 2.0)}, "finetuning scaling factor"),
        ({}, {"b_gate": torch.ones(LATENTS)}, "holds b_gate"),
        ({}, {"b_enc": None}, "holds no b_enc"),
        ({}, {"W_dec": torch.ones(LATENTS, WIDTH + 1)}, "do not fit each other"),
    ],
)
def test_what_is_not_supported_names_the_file(tmp_path, config, tensors, message):
    stored(tmp_path, config, **tensors)
    with pytest.raises(ValueError, match=rf"sae_weights\.safetensors.*{message}"):
        load_sae_lens(tmp_path, place=PLACE)


def test_another_width_names_the_file(tmp_path):
    stored(tmp_path)
    with pytest.raises(
        ValueError, match=r"sae_weights\.safetensors is for activations of width 6, the site has width 8"
    ):
        load_sae_lens(tmp_path, place=PLACE, width=8)


def test_unreadable_folders_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"cfg\.json cannot be read"):
        load_sae_lens(tmp_path, place=PLACE)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match=r"cfg\.json is no JSON"):
        load_sae_lens(tmp_path, place=PLACE)
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(ValueError, match=r"cfg\.json must hold a JSON object"):
        load_sae_lens(tmp_path, place=PLACE)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors cannot be read"):
        load_sae_lens(tmp_path, place=PLACE)


HOOKS = [
    ("blocks.3.hook_resid_post", (3, "resid")),
    ("blocks.3.hook_resid_pre", (2, "resid")),
    ("blocks.3.hook_attn_out", (3, "attn_out")),
    ("blocks.3.hook_mlp_out", (3, "mlp_out")),
    ("blocks.3.mlp.hook_post", (3, "mlp_hidden")),
    ("model.layers.13", (13, "resid")),
    ("transformer.h.3.attn.c_proj", (3, "attn_out")),
    ("gpt_neox.layers.3.mlp", (3, "mlp_out")),
]


@pytest.mark.parametrize(("hook", "place"), HOOKS)
@pytest.mark.parametrize("written", ["hook_name", "hook_point", "metadata"])
def test_the_place_is_that_of_the_hook_and_no_other(tmp_path, hook, place, written):
    stored(
        tmp_path,
        {"metadata": {"hook_name": hook, "model_name": "gpt2-small"}} if written == "metadata" else {written: hook},
    )
    assert load_sae_lens(tmp_path, place=place).latents == LATENTS
    others = {(place[0] - 1, place[1]), (place[0] + 1, place[1])}
    others |= {(place[0], site) for site in ("resid", "attn_out", "mlp_out", "mlp_hidden") if site != place[1]}
    for layer, site in others:
        with pytest.raises(ValueError, match=rf"place must be {place[0]}:{place[1]} .*{hook}.*; got {layer}:{site}$"):
            load_sae_lens(tmp_path, place=(layer, site))


@pytest.mark.parametrize("hook", ["blocks.3.hook_resid_mid", "blocks.0.hook_resid_pre", "blocks.3.ln1.hook_normalized"])
def test_a_hook_that_is_no_site_is_refused(tmp_path, hook):
    stored(tmp_path, {"hook_name": hook})
    with pytest.raises(ValueError, match=rf"sae_weights\.safetensors was trained on '{hook}', which is no site here"):
        load_sae_lens(tmp_path, place=PLACE)


def test_a_file_that_names_no_block_says_nothing(tmp_path):
    for config in ({}, {"metadata": None}, {"hook_name": None}, {"hook_name": "my_own_hook"}):
        stored(tmp_path, config)
        assert load_sae_lens(tmp_path, place=PLACE).latents == LATENTS


def test_attention_heads_are_found_in_new_metadata_too(tmp_path):
    stored(tmp_path, {"metadata": {"hook_name": "blocks.3.attn.hook_z"}, "reshape_activations": "hook_z"})
    with pytest.raises(ValueError, match="attention heads taken apart"):
        load_sae_lens(tmp_path, place=PLACE)
