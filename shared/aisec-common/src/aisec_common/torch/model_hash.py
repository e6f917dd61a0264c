"""One hash for a model's weights, so that what was measured on one model is not used on another."""

from __future__ import annotations

import hashlib
import re

import torch
from torch import nn

_ADAPTER = re.compile(r"(^|\.)(lora_|modules_to_save)")
_WRAPPER = re.compile(r"^base_model\.model\.|(?<=\.)base_layer\.|(?<=\.)original_module\.")


def model_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and stored buffers; same on every device.

    Low-rank adapters of PEFT do not count: a model has one hash with and without them, until they are merged.

    >>> model_hash(nn.ReLU())[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if _ADAPTER.search(name):
            continue
        whole = tensor.detach().cpu().contiguous()
        digest.update(f"{_WRAPPER.sub('', name)} {whole.dtype} {list(whole.shape)}\n".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
