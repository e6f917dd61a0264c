"""Causal language models of transformers: load one, cut text into windows, and measure its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from aisec_common.data import model_path
from aisec_common.torch.hf_load import load_causal_lm
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from impq.hidden_states import logits_of
from impq.runner import UNSCORED, Batch, evaluation, row_nll

PACKED = "packed.safetensors"  # of `impq.apply.save_applied`


def load_model(
    name: str, *, device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, ready to be evaluated; no code from the checkpoint is run.

    Args:
        name: a known checkpoint, a folder or a hub's `org/name`.
        device: where the model goes.
        dtype: of its parameters; by default the checkpoint's own.

    Raises:
        FileNotFoundError: for a known checkpoint that has not been fetched, or a path that does not exist.
        ValueError: for a folder without a `config.json`, or with packed weights of `impq.apply.save_applied`.
    """
    path = model_path(name)
    if (Path(path) / PACKED).is_file():
        raise ValueError(f"model: {name} holds packed weights; load them with impq.apply.load_applied(model, folder)")
    return load_causal_lm(path, device=device, dtype=dtype)


def token_windows(tokenizer: PreTrainedTokenizerBase, text: str, n_tokens: int, window: int) -> Tensor:
    """The first `n_tokens` tokens of a text in windows of equal length, without special tokens.

    Args:
        tokenizer: turns the text into ids.
        text: one string.
        n_tokens: wanted; rounded down to whole windows.
        window: tokens in each window.

    Returns:
        Ids [rows, window].

    Raises:
        ValueError: for a window of fewer than two tokens, fewer tokens wanted than a window has, or a text that is
            too short.
    """
    if window < 2:
        raise ValueError(f"window must be at least 2 tokens, one to predict from another, got {window}")
    rows = n_tokens // window
    if rows < 1:
        raise ValueError(f"n_tokens must be at least one window of {window} tokens, got {n_tokens}")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)
    if len(ids) < rows * window:
        raise ValueError(
            f"text has {len(ids)} tokens, {rows * window} are wanted; give a longer text or lower n_tokens"
        )
    return ids[: rows * window].view(rows, window)


def batches_of(model: PreTrainedModel, ids: Tensor | Mapping[str, Tensor], batch_rows: int = 16) -> list[Batch]:
    """Micro-batches of windows on the model's device.

    Args:
        model: that will read them.
        ids: token ids [rows, tokens], or `input_ids` with `attention_mask` and `labels` where wanted; without labels
            every token but the first of a window is scored, and padding is not.
        batch_rows: windows in a batch.

    Raises:
        ValueError: for no windows, windows of one token, ids outside the model's vocabulary, windows longer than its
            positions, or shapes that differ.

    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> [batch.labels.shape[0] for batch in batches_of(tiny_lm(9, layers=2, width=8), torch.ones(5, 4).long(), 2)]
    [2, 2, 1]
    """
    given = {"input_ids": ids} if isinstance(ids, Tensor) else dict(ids)
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be at least 1, got {batch_rows}")
    unknown = given.keys() - {"input_ids", "attention_mask", "labels"}
    if unknown or "input_ids" not in given:
        raise ValueError(f"ids must have input_ids and may have attention_mask and labels, got {sorted(given)}")
    tokens = given["input_ids"]
    _check_ids(model, tokens)
    for name, tensor in given.items():
        if tensor.shape != tokens.shape:
            raise ValueError(f"ids: {name} is {list(tensor.shape)}, input_ids are {list(tokens.shape)}")
    labels = given.get("labels", tokens)
    inputs = {"input_ids": tokens}
    if "attention_mask" in given:
        inputs["attention_mask"] = given["attention_mask"]
        labels = labels.masked_fill(given["attention_mask"] == 0, UNSCORED)
    return [
        Batch(
            inputs={name: part[rows].to(model.device) for name, part in inputs.items()} | {"use_cache": False},
            labels=labels[rows].to(model.device),
        )
        for rows in (slice(start, start + batch_rows) for start in range(0, len(tokens), batch_rows))
    ]


def nll(model: nn.Module, batches: Sequence[Batch]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Negative log-likelihood of each window; exp(sums.sum() / counts.sum()) is the perplexity.

    Returns:
        Sums in nats and numbers of scored tokens, both [windows].

    Raises:
        ValueError: for no batches.

    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> model = tiny_lm(9, layers=2, width=8)
    >>> sums, counts = nll(model, batches_of(model, torch.ones(5, 4).long()))
    >>> counts
    array([3, 3, 3, 3, 3])
    """
    if not batches:
        raise ValueError("batches: at least one is needed to measure a loss")
    with evaluation(model):
        parts = [row_nll(logits_of(model(**batch.inputs)), batch.labels) for batch in batches]
    sums, counts = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return sums, counts


def _check_ids(model: PreTrainedModel, tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"ids must be integers [rows, tokens], got {tokens.dtype} {list(tokens.shape)}")
    rows, length = tokens.shape
    if not rows or not length:
        raise ValueError("ids are empty; calibration needs at least one window of two tokens")
    if length < 2:
        raise ValueError("ids have one token per window; at least two are needed, one to predict from another")
    vocabulary = model.get_input_embeddings().get_parameter("weight").shape[0]
    if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(f"ids must lie in the model's vocabulary 0..{vocabulary - 1}; is this its tokenizer?")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(
            f"ids have {length} tokens per window, the model has {positions} positions; shorten the window"
        )
