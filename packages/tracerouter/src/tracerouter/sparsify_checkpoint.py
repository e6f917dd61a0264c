"""Sparse autoencoders in the layout of EleutherAI's sparsify, read from their folder without the library."""

from __future__ import annotations

from pathlib import Path

from aisec_common.torch.sparse_autoencoder import SparseAutoencoder

from tracerouter.sae_lens_checkpoint import CONFIG, check_place, read_config, read_weights
from tracerouter.sites import Key

WEIGHTS = "sae.safetensors"


def load_sparsify(folder: str | Path, *, place: Key, width: int | None = None) -> SparseAutoencoder:
    """An autoencoder that sparsify saved (`SparseCoder.save_to_disk`), such as one layer's folder of a Hub repository.

    sparsify keeps encoder and decoder both as [m, d], subtracts b from the input and takes the top k of the ReLU.
    What it was trained on stands in the name of the folder alone, such as `layers.8` or `layers.8.mlp`, which must be
    that of `place`; other names say nothing and pass.

    Args:
        folder: with `cfg.json` and `sae.safetensors`.
        place: the (layer, site) it is meant for.
        width: d of the site it is meant for, checked if given.

    Returns:
        A frozen autoencoder on the CPU, in float32.

    Raises:
        ValueError: naming the file, when it is missing or malformed, of another place or width, or of a form that is
            not supported: transcoders, skip connections, n-gram tables, group-max, signed codes.

    Source: sparsify (MIT), its file format.
    """
    config = read_config(Path(folder) / CONFIG)
    file = Path(folder) / WEIGHTS
    for option, plain in (
        ("transcode", False),
        ("skip_connection", False),
        ("embed_skip", False),
        ("gram_lookup", False),
        ("signed", False),
        ("activation", "topk"),
    ):
        if config.get(option, plain) != plain:
            raise ValueError(f"{file} was made with {option}={config[option]!r}, which is not supported")
    check_place(place, Path(folder).absolute().name, file)
    k = config.get("k")
    if not isinstance(k, int):
        raise ValueError(f"{file} is a TopK autoencoder without k in its {CONFIG}")
    weights = read_weights(file, ("encoder.weight", "encoder.bias", "W_dec", "b_dec"))
    return SparseAutoencoder.from_weights(
        encoder=weights["encoder.weight"],
        encoder_bias=weights["encoder.bias"],
        decoder=weights["W_dec"].T,
        bias=weights["b_dec"],
        k=k,
        width=width,
        origin=str(file),
    )
