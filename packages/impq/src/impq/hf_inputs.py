"""What a command works on: the model it names, windows of the texts it names, and the model's game."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from aisec_common.torch.device import resolve_device
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from impq.backend import Backend
from impq.config import PYDOC, CompareConfig, EvalConfig, GameConfig, ModelConfig
from impq.corpus import Part, python_documentation
from impq.estimate import ModelGame, model_game
from impq.hf_model import batches_of, load_model, token_windows
from impq.runner import Batch

ROWS = 8  # windows in a batch


def load(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, on its device and in its dtype, and its tokenizer.

    Raises:
        ValueError: in one line, if it cannot be loaded.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = resolve_device(config.device)
    dtype = "float32" if config.dtype == "auto" and device.type == "cpu" else config.dtype
    try:
        return load_model(config.model, device=device, dtype=None if dtype == "auto" else getattr(torch, dtype))
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"model: {config.model} cannot be loaded on {device} ({reason})") from None


def calibration(config: ModelConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Batch]:
    """The first windows of the calibration text.

    Raises:
        ValueError: if it is too short, or see `batches_of`.
    """
    text = _text(config.calib, "calibration")
    return batches_of(model, token_windows(tokenizer, text, config.tokens, _window(config, "tokens")), ROWS)


def held_out(
    config: EvalConfig | CompareConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[Batch]:
    """Windows spread evenly over the whole held-out text, its first and its last among them.

    Raises:
        ValueError: if it is too short, or see `batches_of`.
    """
    text, window = _text(config.text, "test"), _window(config, "text_tokens")
    length = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    rows = config.text_tokens // window
    if length < rows * window:
        raise ValueError(f"text {config.text} has {length} tokens; give a longer one or lower text_tokens")
    windows = token_windows(tokenizer, text, length, window)
    return batches_of(model, windows[torch.linspace(0, len(windows) - 1, rows).round().long()], ROWS)


def game_of(
    config: GameConfig,
    model: PreTrainedModel,
    batches: list[Batch],
    backend: Backend,
    show: Callable[[str, int, int], None],
    **settings: Any,
) -> ModelGame:
    """The model's game on the batches; `settings` are those of `model_game`."""
    return model_game(
        model,
        batches,
        backend=backend,
        group_size=config.groups,
        name=config.name,
        progress=lambda done, total: show(f"quantising, {backend.name}", done, total),
        **settings,
    )


def _text(source: str, part: Part) -> str:
    return python_documentation()[part] if source == PYDOC else Path(source).read_text(encoding="utf-8")


def _window(config: ModelConfig, argument: str) -> int:
    """Tokens in a window, no more than are asked for; tells how many fill whole windows where some do not."""
    tokens: int = getattr(config, argument)
    window = min(config.window, tokens)
    if tokens % window:
        print(f"{argument}: {tokens - tokens % window} of {tokens} are used, in windows of {window}", file=sys.stderr)
    return window
