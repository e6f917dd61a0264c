"""The drift report of two transformers models, or of one without and with its adapters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from procon.direction import RefusalDirections
from procon.drift import DriftReport
from procon.hf_directions import refusal_directions
from procon.hf_prompts import Prompt


def drift_report(
    *,
    before: nn.Module | RefusalDirections,
    after: nn.Module | RefusalDirections,
    tokenizer: PreTrainedTokenizerBase,
    harmful: Sequence[Prompt],
    harmless: Sequence[Prompt],
    batch_size: int = 16,
) -> DriftReport:
    """Measures the refusal directions of both models with the same prompts and reports their cosines per layer.

    PEFT puts its adapters into the base model it is given. So where one model is the base of the other, the base is
    measured with the adapters switched off; merged adapters cannot be taken out again, so measure `before` first
    (`refusal_directions`) and give the directions.

    Args:
        before: a model, or directions measured earlier.
        after: likewise.
        tokenizer: of both.
        harmful: prompts that the first model refuses.
        harmless: prompts that it answers.
        batch_size: prompts per forward pass.

    Returns:
        The report, over all layers, or those of the directions given.

    Raises:
        ValueError: if the models differ in hidden size or number of blocks, or for wrong prompts.

    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> from aisec_common.torch.hf_tokenizer import word_tokenizer
    >>> tokenizer = word_tokenizer(["rain", "sun", "seven", "two"])
    >>> model = tiny_lm(tokenizer, width=16)
    >>> probe = {"harmful": ["rain", "sun"], "harmless": ["seven", "two"]}
    >>> drift_report(before=model, after=model, tokenizer=tokenizer, **probe).cosines
    (1.0, 1.0)

    Source: arXiv 2509.06795, section 3.
    """
    sides = []
    for model, other in ((before, after), (after, before)):
        if isinstance(model, RefusalDirections):
            sides.append(model)
            continue
        is_base = _is_base(model, other)
        with _adapters_off(other) if is_base else nullcontext():
            measured = refusal_directions(
                model,
                tokenizer,
                harmful=harmful,
                harmless=harmless,
                batch_size=batch_size,
                model_name=_name(model, adapted=not is_base),
            )
        sides.append(measured.at(other.layers) if isinstance(other, RefusalDirections) else measured)
    return DriftReport.of(*sides)


def _adapters_off(model: Any) -> AbstractContextManager[Any]:
    off: AbstractContextManager[Any] = model.disable_adapter()
    return off


def _is_base(model: nn.Module, other: nn.Module | RefusalDirections) -> bool:
    """Whether `model` is what `other` put its adapters into."""
    if isinstance(other, RefusalDirections) or model is other:
        return False
    if hasattr(model, "disable_adapter") or not hasattr(other, "disable_adapter"):
        return False
    theirs = {id(parameter) for parameter in other.parameters()}
    return any(id(parameter) in theirs for parameter in model.parameters())


def _name(model: Any, *, adapted: bool) -> str:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = str(getattr(getattr(model, "config", None), "name_or_path", "")) or type(inner).__name__
    return f"{name} with adapters" if adapted and inner is not model else name
