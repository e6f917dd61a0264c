from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tracerouter.sae_lens_checkpoint import load_sae_lens

WIDTH, LATENTS, K = 6, 10, 3


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
    sae = load_sae_lens(tmp_path, width=WIDTH)
    x = random(7, WIDTH, seed=5)
    torch.testing.assert_close(sae(x), their_forward(weights, x, **how), rtol=1e-5, atol=1e-5)
    assert sae.k == how.get("k")
    assert not any(p.requires_grad for p in sae.parameters())


def test_relu_decoder_columns_get_norm_one(tmp_path):
    stored(tmp_path)
    torch.testing.assert_close(load_sae_lens(tmp_path).decoder.norm(dim=0), torch.ones(LATENTS))


def test_half_precision_files_are_read_as_float32(tmp_path):
    stored(tmp_path, W_enc=random(WIDTH, LATENTS, seed=1).bfloat16())
    assert load_sae_lens(tmp_path).encoder.dtype == torch.float32


def test_a_scaling_factor_of_ones_is_nothing(tmp_path):
    stored(tmp_path, scaling_factor=torch.ones(LATENTS))
    assert load_sae_lens(tmp_path).latents == LATENTS


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
        load_sae_lens(tmp_path)


def test_another_width_names_the_file(tmp_path):
    stored(tmp_path)
    with pytest.raises(
        ValueError, match=r"sae_weights\.safetensors is for activations of width 6, the site has width 8"
    ):
        load_sae_lens(tmp_path, width=8)


def test_unreadable_folders_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"cfg\.json cannot be read"):
        load_sae_lens(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match=r"cfg\.json is no JSON"):
        load_sae_lens(tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    with pytest.raises(ValueError, match=r"cfg\.json must hold a JSON object"):
        load_sae_lens(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sae_weights\.safetensors cannot be read"):
        load_sae_lens(tmp_path)
