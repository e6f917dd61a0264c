from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tracerouter.sparsify_checkpoint import load_sparsify

WIDTH, LATENTS, K = 6, 10, 3
PLACE = (3, "resid")


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(folder, config=None, **tensors):
    """A folder as sparsify writes it."""
    weights = {
        "encoder.weight": random(LATENTS, WIDTH, seed=1),
        "encoder.bias": random(LATENTS, seed=3),
        "W_dec": torch.nn.functional.normalize(random(LATENTS, WIDTH, seed=2), dim=1),
        "b_dec": random(WIDTH, seed=4),
    } | tensors
    save_file(weights, folder / "sae.safetensors")
    written = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": 0, "k": K}
    written |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": WIDTH}
    (folder / "cfg.json").write_text(json.dumps(written | (config or {})))
    return weights


def test_reconstructs_as_the_library_does(tmp_path):
    weights = stored(tmp_path)
    sae = load_sparsify(tmp_path, place=PLACE, width=WIDTH)
    x = random(7, WIDTH, seed=5)
    codes = torch.relu((x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"])
    top = codes.topk(K)
    rows = [
        sum(value * weights["W_dec"][i] for value, i in zip(values, indices, strict=True)) + weights["b_dec"]
        for values, indices in zip(top.values, top.indices, strict=True)
    ]
    torch.testing.assert_close(sae(x), torch.stack(rows), rtol=1e-5, atol=1e-5)
    assert sae.k == K


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"transcode": True}, {}, "made with transcode=True"),
        ({"skip_connection": True}, {}, "made with skip_connection=True"),
        ({"embed_skip": True}, {}, "made with embed_skip=True"),
        ({"gram_lookup": True}, {}, "made with gram_lookup=True"),
        ({"activation": "groupmax"}, {}, "made with activation='groupmax'"),
        ({"signed": True}, {}, "made with signed=True"),
        ({"k": None}, {}, "without k"),
        ({}, {"W_skip": torch.ones(WIDTH, WIDTH)}, "holds W_skip"),
        ({}, {"b_dec": torch.ones(WIDTH + 1)}, r"bias must be \[6\], got \[7\]"),
    ],
)
def test_what_is_not_supported_names_the_file(tmp_path, config, tensors, message):
    stored(tmp_path, config, **tensors)
    with pytest.raises(ValueError, match=rf"sae\.safetensors.*{message}"):
        load_sparsify(tmp_path, place=PLACE)


def test_another_width_names_the_file(tmp_path):
    stored(tmp_path)
    with pytest.raises(ValueError, match=r"sae\.safetensors is for activations of width 6, the site has width 4"):
        load_sparsify(tmp_path, place=PLACE, width=4)


@pytest.mark.parametrize(
    ("name", "place"), [("layers.3", (3, "resid")), ("h.3.attn", (3, "attn_out")), ("layers.3.mlp", (3, "mlp_out"))]
)
def test_the_place_is_that_of_the_folder_and_no_other(tmp_path, name, place, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    stored(folder)
    monkeypatch.chdir(folder)
    for named in (folder, f"{folder}/", "."):
        assert load_sparsify(named, place=place).latents == LATENTS
        for layer, site in ((4, place[1]), (3, "mlp_hidden")):
            with pytest.raises(ValueError, match=rf"place must be 3:{place[1]} .*{name}.*; got {layer}:{site}$"):
                load_sparsify(named, place=(layer, site))
