"""Models, tokenizers and files that a command names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from aisec_common.torch.device import resolve_device
from aisec_common.torch.hf_load import load_causal_lm
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

FORMATS = ({"prompt", "completion"}, {"messages"}, {"text"})


def load(name: str, *, device: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode and its tokenizer; no code from the checkpoint is run.

    Args:
        name: a known checkpoint, a folder or a hub's `org/name`.
        device: see `resolve_device`.
        dtype: of the weights; "auto" is float32 on a CPU, else the checkpoint's own.

    Raises:
        ValueError: in one line, if it cannot be loaded, or a folder has no `config.json`.
        FileNotFoundError: for a known checkpoint that has not been fetched, or a path that does not exist.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    there = resolve_device(device)
    kind: torch.dtype | None = None if dtype == "auto" else getattr(torch, dtype)
    if dtype == "auto" and there.type == "cpu":
        kind = torch.float32
    try:
        return load_causal_lm(name, device=there, dtype=kind)
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model: {name} cannot be loaded on {there} ({reason})") from None


def read_prompts(file: Path) -> list[str]:
    """One prompt a line; empty lines are left out.

    Raises:
        ValueError: in one line, if the file is missing or has no prompt.
    """
    try:
        prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"probe: {file} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not prompts:
        raise ValueError(f"probe: {file} is empty; write one prompt a line")
    return prompts


def read_samples(file: Path, argument: str) -> list[dict[str, Any]]:
    """Training samples of JSON lines, all in one of trl's formats.

    Args:
        file: each line an object with `prompt` and `completion`, or `messages`, or `text`.
        argument: the option that named it.

    Raises:
        ValueError: in one line, naming the line that is wrong.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{argument}: {file} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    samples: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{argument}: line {number} of {file} is no JSON ({error})") from None
        if not isinstance(sample, dict) or set(sample) not in FORMATS:
            raise ValueError(f"{argument}: line {number} of {file} must have prompt and completion, messages, or text")
        if samples and set(sample) != set(samples[0]):
            raise ValueError(f"{argument}: line {number} of {file} has another format than the lines before")
        samples.append(sample)
    if not samples:
        raise ValueError(f"{argument}: {file} has no samples; write one JSON object a line")
    return samples
