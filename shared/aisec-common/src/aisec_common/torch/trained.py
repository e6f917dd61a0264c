"""Models trained once and kept in the user's cache under a hash of how they were made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from aisec_common.data.cache import cache_folder
from aisec_common.files import write_atomic
from aisec_common.study import content_hash
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn


def trained(model: nn.Module, name: str, recipe: Mapping[str, Any], train: Callable[[], object]) -> bool:
    """Loads the weights that `recipe` led to earlier into `model`, or runs `train` and keeps what it leaves behind.

    Everything that decides the weights belongs into `recipe`: sizes, steps, seeds, hashes of the data. The version of
    torch is added. A file that cannot be read is trained anew. Of several processes that ask for one recipe, one trains
    and the others wait for it: two trainings on two cores are not equal to the last bit.

    Args:
        model: with the initial weights of the recipe; changed in place.
        name: how the file's name begins.
        recipe: values that JSON can hold.
        train: trains `model` in place.

    Returns:
        Whether the weights came from the cache.
    """
    file = trained_file(name, recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # the system frees it when a process dies
        if file.is_file():
            try:
                model.load_state_dict(load_file(file))
                return True
            except (SafetensorError, RuntimeError):
                file.unlink(missing_ok=True)  # torn by a full disk, or of another layout of the same class
        train()
        state = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in model.state_dict().items()}
        write_atomic(file, save(state))
    return False


def trained_file(name: str, recipe: Mapping[str, Any]) -> Path:
    """Where the weights of `recipe` are kept."""
    told = json.dumps({**recipe, "torch": torch.__version__}, sort_keys=True)
    return cache_folder() / "trained" / f"{name}-{content_hash(told)[:16]}.safetensors"
