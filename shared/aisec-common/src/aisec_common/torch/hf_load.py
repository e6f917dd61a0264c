"""Loading a causal language model that a user named, and nothing it brings along as code."""

from __future__ import annotations

import torch
from aisec_common.data import model_path
from aisec_common.torch.device import resolve_device
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def load_causal_lm(
    name: str, *, device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode and its tokenizer.

    Args:
        name: a known checkpoint (`aisec data list`), a folder or a hub's `org/name`.
        device: where the model goes.
        dtype: of its parameters; by default the checkpoint's own.

    Raises:
        FileNotFoundError: for a known checkpoint that has not been fetched, or a path that does not exist.
        ValueError: for a folder without a `config.json`.
    """
    path = model_path(name)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto", trust_remote_code=False)
    model = model.to(resolve_device(device)).eval()
    assert isinstance(model, PreTrainedModel)
    return model, tokenizer
