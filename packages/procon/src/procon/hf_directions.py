"""Refusal directions of a transformers model, measured at the last token of prompts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from aisec_common.torch.blocks import find_blocks
from aisec_common.torch.model_hash import model_hash
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from procon.direction import RefusalDirections, difference_in_means
from procon.hf_prompts import Prompt, encode, generation_prompts
from procon.projection_capture import hidden_of


def prompt_states(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 16,
    layers: Literal["all"] | Sequence[int] = "all",
) -> Tensor:
    """Output of each block at the last prompt token, the last block's before the final norm.

    The model runs without gradients and without dropout; its training flags are restored.

    Args:
        model: a causal language model of transformers, with or without PEFT adapters, on its device.
        tokenizer: its tokenizer.
        prompts: user turns or conversations, see `generation_prompts`.
        batch_size: prompts per forward pass.
        layers: block indices from 0; negative ones count from the last block.

    Returns:
        [prompts, layers, d], float32, on the CPU.

    Raises:
        ValueError: for no prompts, `batch_size` below 1, a layer the model does not have, or a chat template without
            generation prompt.

    Source: arXiv 2509.06795, section 3.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    name, blocks = find_blocks(model)
    chosen = range(len(blocks)) if layers == "all" else [int(layer) for layer in layers]
    if wrong := [layer for layer in chosen if not -len(blocks) <= layer < len(blocks)]:
        raise ValueError(f"layers: the model has no block {wrong[0]}, {name} has {len(blocks)}")
    texts = generation_prompts(tokenizer, prompts)
    device = next(model.parameters()).device
    states = []
    with _evaluation(model):
        for start in range(0, len(texts), batch_size):
            batch = encode(tokenizer, texts[start : start + batch_size], device)
            with _last_token([blocks[layer] for layer in chosen]) as seen:
                model(**batch, **_settings(model, batch["attention_mask"]))
            states.append(torch.stack(seen, dim=1))
    return torch.cat(states)


def refusal_directions(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    harmful: Sequence[Prompt],
    harmless: Sequence[Prompt],
    batch_size: int = 16,
    model_name: str = "",
) -> RefusalDirections:
    """The refusal direction of every block: difference in means at the last prompt token.

    Choose 100 prompts or more of each kind, apart from those in training and test data, and measure the model before
    it is fine-tuned.

    Args:
        model: see `prompt_states`.
        tokenizer: its tokenizer.
        harmful: prompts that the model refuses.
        harmless: prompts that it answers, alike otherwise.
        batch_size: prompts per forward pass.
        model_name: left out, the name the model was loaded by.

    Raises:
        ValueError: as `prompt_states` and `difference_in_means`.

    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> from aisec_common.torch.hf_tokenizer import word_tokenizer
    >>> tokenizer = word_tokenizer(["rain", "sun", "seven", "two"])
    >>> model = tiny_lm(tokenizer, width=16)
    >>> directions = refusal_directions(model, tokenizer, harmful=["rain", "sun"], harmless=["seven", "two"])
    >>> len(directions), directions[0].shape
    (2, torch.Size([16]))

    Source: arXiv 2509.06795, section 3.
    """
    for name, prompts in (("harmful", harmful), ("harmless", harmless)):
        if not len(prompts):
            raise ValueError(f"{name} is empty: give at least one prompt")
    vectors = difference_in_means(
        prompt_states(model, tokenizer, harmful, batch_size=batch_size),
        prompt_states(model, tokenizer, harmless, batch_size=batch_size),
    )
    return RefusalDirections(
        vectors=vectors,
        layers=tuple(range(len(vectors))),
        model_name=model_name or str(getattr(getattr(model, "config", None), "name_or_path", "")),
        model_hash=model_hash(model),
    )


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        with torch.inference_mode():
            yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def _last_token(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Fills a list with the last token's states [B, d] of each block; the rest of a block's output is not kept."""
    seen = [torch.empty(0)] * len(blocks)

    def keep(i: int) -> Any:
        def hook(block: nn.Module, arguments: Any, output: Any) -> None:
            seen[i] = hidden_of(output)[:, -1].float().cpu()

        return hook

    with ExitStack() as hooks:
        for i, block in enumerate(blocks):
            hooks.callback(block.register_forward_hook(keep(i)).remove)
        yield seen


def _settings(model: nn.Module, mask: Tensor) -> dict[str, Any]:
    """What the model's forward should be told, as far as it takes it."""
    whole = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), model)
    known = inspect.signature(whole.forward).parameters
    wanted: dict[str, Any] = {
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),  # padding on the left must not count as positions
        "use_cache": False,
        "logits_to_keep": 1,  # logits are not needed at all, and those of all tokens take most of the memory
    }
    return {name: value for name, value in wanted.items() if name in known}
