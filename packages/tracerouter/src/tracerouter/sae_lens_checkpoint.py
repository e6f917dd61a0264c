"""Sparse autoencoders in SAELens' layout, read from their folder without the library."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aisec_common.torch.sparse_autoencoder import SparseAutoencoder
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tracerouter.sites import Key, Site

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
FORMS = {"standard": "relu", "topk": "topk"}
HOOKS: Mapping[Site, tuple[str, ...]] = {
    "resid": ("", "hook_resid_post", "hook_out"),
    "attn_out": (
        *("hook_attn_out", "attn.hook_out", "self_attn", "attn", "attention"),
        *("self_attn.o_proj", "attn.c_proj", "attention.dense"),
    ),
    "mlp_hidden": ("mlp.hook_post",),
    "mlp_out": ("hook_mlp_out", "mlp.hook_out", "mlp", "mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h"),
}
"""What each site is called within a block: hook points of TransformerLens, and modules of transformers."""
BLOCK_INPUT = ("hook_resid_pre", "hook_in")


def load_sae_lens(folder: str | Path, *, place: Key, width: int | None = None) -> SparseAutoencoder:
    """An autoencoder that SAELens saved (`SAE.save_model`), before or since its version 6.

    SAELens keeps W_enc as [d, m] and W_dec as [m, d], and subtracts b from the input only if `apply_b_dec_to_input`;
    where it does not, W_enc b moves into b_e. Decoder columns of a ReLU autoencoder are brought to norm 1 by moving
    their norms into the encoder; those of a TopK one only where the file says that it was trained so, because norms
    decide there which codes are kept.

    The file's `hook_name` must be that of `place`; `blocks.8.hook_resid_pre` is what block 7 gives, (7, "resid"). The
    name of its model is not compared: TransformerLens, the hub and folders spell one model differently, and
    autoencoders of a base model serve its fine-tuned ones. Another width is refused when a path is sought, and an
    autoencoder that explains nothing of its site is warned of.

    Args:
        folder: with `cfg.json` and `sae_weights.safetensors`.
        place: the (layer, site) it is meant for.
        width: d of the site it is meant for, checked if given.

    Returns:
        A frozen autoencoder on the CPU, in float32.

    Raises:
        ValueError: naming the file, when it is missing or malformed, of another place or width, or of a form that is
            not supported: JumpReLU (also what BatchTopK is saved as), gated, transcoders, activations normalised while
            running, attention heads taken apart.

    Source: SAELens (MIT), its file format.
    """
    config = read_config(Path(folder) / CONFIG)
    file = Path(folder) / WEIGHTS
    hook = _hook_name(config)
    k = _top_k(config, hook, file)
    check_place(place, hook, file)
    needed = ("W_enc", "W_dec", "b_enc", "b_dec")
    weights = read_weights(file, needed, also=("scaling_factor",))
    if "scaling_factor" in weights and not (weights["scaling_factor"] == 1).all():
        raise ValueError(f"{file} has a finetuning scaling factor, which is not supported")
    encoder, decoder, encoder_bias, bias = weights["W_enc"].T, weights["W_dec"].T, weights["b_enc"], weights["b_dec"]
    if encoder.shape != decoder.T.shape:
        raise ValueError(
            f"{file}: W_enc {list(encoder.T.shape)} and W_dec {list(decoder.T.shape)} do not fit each other"
        )
    if not config.get("apply_b_dec_to_input", True):
        encoder_bias = encoder_bias + encoder @ bias
    if k is None or config.get("rescale_acts_by_decoder_norm"):
        norms = decoder.norm(dim=0).clamp(min=1e-8)
        encoder, encoder_bias, decoder = encoder * norms[:, None], encoder_bias * norms, decoder / norms
    return SparseAutoencoder.from_weights(
        encoder=encoder,
        encoder_bias=encoder_bias,
        decoder=decoder,
        bias=bias,
        k=k,
        width=width,
        origin=str(file),
    )


def check_place(place: Key, hook: str, file: Path) -> None:
    """Makes sure that an autoencoder was trained on the site it is meant for, as far as the name of its hook tells.

    Args:
        place: the (layer, site) it is meant for.
        hook: such as `blocks.8.hook_mlp_out` or `model.layers.8.mlp`; any name without the number of a block says
            nothing and passes.
        file: that the error names.

    Raises:
        ValueError: for another layer or site, or a hook that is no site.

    >>> check_place((7, "resid"), "blocks.8.hook_resid_pre", Path("sae"))
    >>> check_place((8, "resid"), "blocks.8.hook_resid_pre", Path("sae"))
    Traceback (most recent call last):
    ValueError: place must be 7:resid for sae, which was trained on 'blocks.8.hook_resid_pre'; got 8:resid
    """
    named = re.fullmatch(r"(?:.*\.)?(?:blocks|layers?|h)\.(\d+)(?:\.(.+))?", hook)
    if named is None:
        return
    layer, part = int(named[1]), named[2] or ""
    if part in BLOCK_INPUT:
        layer, part = layer - 1, ""
    site = next((site for site, parts in HOOKS.items() if part in parts), None)
    if site is None or layer < 0:
        raise ValueError(f"{file} was trained on {hook!r}, which is no site here; sites are {', '.join(HOOKS)}")
    if (layer, site) != place:
        raise ValueError(
            f"place must be {layer}:{site} for {file}, which was trained on {hook!r}; got {place[0]}:{place[1]}"
        )


def read_config(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: naming the file, when it is missing or no JSON object.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): name the folder of one autoencoder") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON: {error.msg}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(config).__name__}")
    return config


def read_weights(file: Path, needed: tuple[str, ...], also: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors in a file as float32: those of `needed`, and none but those of `also` beside them.

    Raises:
        ValueError: naming the file, when it cannot be read, a tensor is missing, or there is one nobody asked for,
            which would be a form of autoencoder that is not supported.
    """
    try:
        weights = {name: tensor.float() for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors: {error}") from None
    if missing := [name for name in needed if name not in weights]:
        raise ValueError(f"{file} holds no {missing[0]}; it has {', '.join(sorted(weights))}")
    if unknown := sorted(set(weights) - {*needed, *also}):
        raise ValueError(f"{file} holds {unknown[0]}, which ReLU and TopK autoencoders do not have")
    return weights


def _hook_name(config: dict[str, Any]) -> str:
    """Where the autoencoder reads: among the metadata since version 6, at the top before."""
    known = config | (config.get("metadata") or {})
    return str(known.get("hook_name") or known.get("hook_point") or "")


def _top_k(config: dict[str, Any], hook: str, file: Path) -> int | None:
    """k of a TopK autoencoder, None of a plain ReLU one."""
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))  # until version 6
    form = config.get("architecture", "standard")
    told = FORMS.get(form)
    if form == "standard" and activation == "topk":
        told = "topk"
    elif form == "standard" and activation != "relu":
        told, form = None, activation
    if told is None:
        raise ValueError(f"{file} is a {form!r} autoencoder; supported are: standard (ReLU) and topk")
    normalize = config.get("normalize_activations", "none")
    if normalize not in (None, False, "none"):
        raise ValueError(f"{file} normalises activations ({normalize!r}); fold that into the weights and save it again")
    reshape = config.get("reshape_activations", "hook_z" if "hook_z" in hook else "none")
    if reshape != "none":
        raise ValueError(f"{file} reads attention heads taken apart ({reshape!r}), which is no site here")
    if told == "relu":
        return None
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if not isinstance(k, int):
        raise ValueError(f"{file} is a TopK autoencoder without k in its {CONFIG}")
    return k
