"""Prompts as the model sees them at the moment it begins to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Prompt = str | list[dict[str, str]]
"""One user turn as text, or a conversation of `{"role": ..., "content": ...}` that ends with the user's turn."""

_REPLY = "procon reply"


def generation_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[str]:
    """Each prompt in the tokenizer's chat template, up to the point where generation starts.

    Text is returned as it is where the tokenizer has no chat template.

    Args:
        tokenizer: of the model.
        prompts: user turns or conversations.

    Raises:
        ValueError: if `prompts` is empty; for a conversation without a chat template; if `add_generation_prompt` adds
            nothing although the template puts something (a role header) before a reply, so that the last token would
            be one of the user's turn. Templates whose replies follow the user's turn at once (Llama 2) are fine.
        TypeError: if `prompts` is a single text.

    Source: arXiv 2509.06795, section 3 (states at the last prompt token).
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list of texts or conversations, got one text; put it into a list")
    if not len(prompts):
        raise ValueError("prompts is empty: give at least one prompt")
    if tokenizer.chat_template is None:
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError("prompts has conversations but the tokenizer has no chat_template; give texts")
        return [str(prompt) for prompt in prompts]
    turns = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    _check_template(tokenizer, turns[0])
    return [_rendered(tokenizer, turn, add_generation_prompt=True) for turn in turns]


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """A batch of texts as token ids, padded on the left so that the last column holds every text's last token.

    Special tokens are added only where there is no chat template: a template writes its own. The tokenizer's padding
    side is neither used nor changed, and it needs no padding token.

    Args:
        tokenizer: of the model.
        texts: as `generation_prompts` returns them.
        device: where to put the batch.

    Returns:
        `input_ids` and `attention_mask`, both [len(texts), tokens of the longest].

    Raises:
        ValueError: if `texts` is empty or one of them has no token.
    """
    if not len(texts):
        raise ValueError("texts is empty: give at least one text")
    rows = tokenizer(list(texts), add_special_tokens=tokenizer.chat_template is None, padding=False)["input_ids"]
    if not all(rows):
        raise ValueError(f"texts: number {[bool(row) for row in rows].index(False)} has no token; leave it out")
    longest = max(map(len, rows))
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids = torch.tensor([[padding] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _check_template(tokenizer: PreTrainedTokenizerBase, turn: list[dict[str, str]]) -> None:
    before = _rendered(tokenizer, turn, add_generation_prompt=False)
    if _rendered(tokenizer, turn, add_generation_prompt=True) != before:
        return
    answered = _rendered(tokenizer, [*turn, {"role": "assistant", "content": _REPLY}], add_generation_prompt=False)
    if not answered.removeprefix(before).lstrip().startswith(_REPLY):
        raise ValueError(
            "tokenizer: add_generation_prompt adds nothing in its chat template, so prompts would end within the "
            "user's turn; use a template that writes the assistant's header"
        )


def _rendered(tokenizer: PreTrainedTokenizerBase, turn: list[dict[str, str]], **settings: Any) -> str:
    return str(tokenizer.apply_chat_template(turn, tokenize=False, **settings))
