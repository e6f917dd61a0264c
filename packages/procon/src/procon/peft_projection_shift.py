"""How far fine-tuning has moved the projections onto the refusal directions, on given samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from procon.direction import RefusalDirections
from procon.hf_prompts import encode
from procon.projection import projection_term
from procon.projection_capture import ProjectionCapture


def projection_shift(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, str]],
    directions: RefusalDirections,
    *,
    batch_size: int = 64,
) -> float:
    """Mean |z_t − z_0| over response tokens and layers, z_0 of the model with its adapters switched off.

    Args:
        model: with adapters that are not merged, on its own device.
        tokenizer: of the model.
        rows: `prompt` and `completion` each, as text in the form that was trained on.
        directions: of the model without adapters.
        batch_size: rows per forward pass.

    Raises:
        ValueError: if `rows` is empty, or a completion has no token.

    Source: arXiv 2509.06795, section 4 (the quantity that L_ProCon holds down).
    """
    if not len(rows):
        raise ValueError("rows is empty: give at least one sample")
    end = tokenizer.eos_token or ""
    total = tokens = 0.0
    training = model.training
    model.train(False)
    capture = ProjectionCapture(model, directions)
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        batch = encode(tokenizer, [row["prompt"] + row["completion"] + end for row in chunk], model.device)
        answers = encode(tokenizer, [row["completion"] + end for row in chunk], model.device)["attention_mask"]
        mask = torch.zeros_like(batch["attention_mask"], dtype=torch.bool)
        mask[:, -answers.shape[1] :] = answers.bool()  # both are padded on the left, so that answers end together
        with torch.no_grad():
            tuned = _projections(model, capture, batch)
            with model.disable_adapter():
                base = _projections(model, capture, batch)
        total += float(projection_term(tuned, base, mask, tokens=1.0))
        tokens += float(mask.sum())
    model.train(training)
    return total / tokens


def _projections(model: PeftModel, capture: ProjectionCapture, batch: Mapping[str, Tensor]) -> Tensor:
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with capture:
        model(**batch, position_ids=positions, use_cache=False)
    return capture.take()
