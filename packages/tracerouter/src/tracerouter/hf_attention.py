"""The onset curve of a transformers model: its attention weights, read layer by layer and dropped at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracerouter.onset import (
    attention_entropy,
    attention_flow,
    disturbance,
    entropy_scores,
    js_scores,
    last_rows,
    sensitivity_scores,
)
from tracerouter.pairs import Pair
from tracerouter.sites import DECODER, Adapter

Score = Literal["flow", "js", "entropy"]
Reduce = Callable[[Tensor], Tensor]


def onset_curve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    score: Score = "flow",
    batch_size: int = 16,
    adapter: Adapter = DECODER,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """How sensitive the attention of every block is to the concept; `onset_layer` finds the first peak.

    The model runs in eval mode with eager attention and is left as it was. A layer's weights are reduced while the
    model runs and dropped: never more than one layer of [2 B, H, T, T] beside the model's own.

    Args:
        model: with transformer blocks; a model with adapters or the language tower of one that also sees is fine too.
        tokenizer: its own; prompts are encoded as `tokenizer(text)` does.
        pairs: S+ and S-. For `"js"` and `"entropy"` the two prompts of a pair need not match.
        score: `"flow"`: flow between modifiers and targets less the disturbance, for pairs of equal token length.
            `"js"`: divergence of what the last token attends to. `"entropy"`: separation by attention entropy.
        batch_size: pairs a forward pass.
        adapter: what knows the block list of the architecture.
        progress: called as `progress(pairs done, pairs)`.

    Returns:
        One score a block.

    Raises:
        ValueError: for no pairs, an unknown score, a tokenizer without pad token, a model that returns no attention
            weights, or pairs of unequal token length where positions are needed.

    Source: arXiv 2601.21900, stage 1; the exact forms are ours.
    """
    if score not in ("flow", "js", "entropy"):
        raise ValueError(f"score must be 'flow', 'js' or 'entropy', got {score!r}")
    if not pairs:
        raise ValueError("pairs is empty: give at least one pair of prompts")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    blocks = [block for _, block in adapter.blocks(model)]
    found: list[Tensor] = []
    lengths = torch.zeros(2)
    with _inference(model), eager_attention(model):
        for first in range(0, len(pairs), batch_size):
            batch = pairs[first : first + batch_size]
            inputs = _encoded(tokenizer, [p.sensitive for p in batch] + [p.matched for p in batch], model.device)
            mask = inputs["attention_mask"].bool()
            lengths += torch.stack([half.sum().float() for half in mask.chunk(2)]).cpu()
            reduce: Reduce
            if score == "flow":
                targets, modifiers = _places(batch, tokenizer, mask.shape[1])
                reduce = partial(_sensitivity, targets=targets, modifiers=modifiers)
            else:
                reduce = partial(_row_sums if score == "js" else _entropies, mask=mask)
            found.append(_attend(model, blocks, inputs, reduce))
            if progress is not None:
                progress(first + len(batch), len(pairs))
    if score == "js":
        width = max(rows.shape[-1] for rows in found)
        rows = sum(nn.functional.pad(part, (width - part.shape[-1], 0)) for part in found)
        assert isinstance(rows, Tensor)
        plus, minus = (lengths / len(pairs)).tolist()
        return js_scores(rows[:, 0], rows[:, 1], mean_lengths=(plus, minus))
    per_pair = torch.cat(found, dim=2).unbind(1)  # [L, n] each
    if score == "flow":
        return sensitivity_scores(*(part.T for part in per_pair))
    return entropy_scores(*(part.T for part in per_pair))


@contextlib.contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model compute attention weights, which fused kernels never form, for as long as the block runs.

    Args:
        model: its attention implementation, also of its towers, is set back afterwards.
    """
    config = model.config
    towers = {name: getattr(config, name, None) for name in config.sub_configs}
    before = {"": config._attn_implementation}
    before |= {name: tower._attn_implementation for name, tower in towers.items() if tower is not None}
    if set(before.values()) == {"eager"}:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before if len(before) > 1 else before[""])


@contextlib.contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str], device: torch.device) -> dict[str, Tensor]:
    if tokenizer.pad_token is None:
        raise ValueError("tokenizer has no pad token: set tokenizer.pad_token = tokenizer.eos_token")
    # padded on the right, so that absolute positions are those of the prompt alone
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def _attend(model: PreTrainedModel, blocks: list[nn.Module], inputs: dict[str, Tensor], reduce: Reduce) -> Tensor:
    """`reduce` of every block's attention weights, [L, ...] on the CPU."""
    found: dict[int, Tensor] = {}
    tokens = inputs["input_ids"].shape[1]

    def reader(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            for part in output if isinstance(output, tuple) else ():
                if isinstance(part, Tensor) and part.ndim == 4 and part.shape[2:] == (tokens, tokens):
                    found.setdefault(layer, reduce(part).cpu())

        return hook

    with contextlib.ExitStack() as hooked:
        for layer, block in enumerate(blocks):
            for module in block.modules():
                if "attention" in type(module).__name__.lower():
                    hooked.callback(module.register_forward_hook(reader(layer)).remove)
        decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
        decoder(**inputs, use_cache=False)  # without the head: no logits of a large vocabulary for nothing
    if len(found) < len(blocks):
        missing = next(layer for layer in range(len(blocks)) if layer not in found)
        raise ValueError(
            f"model: block {missing} returns no attention weights (it runs {model.config._attn_implementation!r}); "
            "load the model with attn_implementation='eager', or give onset="
        )
    return torch.stack([found[layer] for layer in range(len(blocks))])


def _sensitivity(weights: Tensor, targets: Tensor, modifiers: Tensor) -> Tensor:
    """[3, B] of [2 B, H, T, T]: flow in the sensitive prompts, in the matched ones, disturbance."""
    plus, minus = weights.chunk(2)
    flows = [attention_flow(half, targets, modifiers) for half in (plus, minus)]
    return torch.stack([*flows, disturbance(plus, minus, targets, modifiers)])


def _row_sums(weights: Tensor, mask: Tensor) -> Tensor:
    """[2, T] of [2 B, H, T, T]: summed last rows of the sensitive and of the matched half."""
    return torch.stack([half.sum(0) for half in last_rows(weights, mask).chunk(2)])


def _entropies(weights: Tensor, mask: Tensor) -> Tensor:
    """[2, B] of [2 B, H, T, T]."""
    return attention_entropy(weights, mask).view(2, -1)


def _places(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, tokens: int) -> tuple[Tensor, Tensor]:
    """Masks [B, T] of targets and modifiers in prompts padded on the right."""
    targets, modifiers = torch.zeros(2, len(pairs), tokens, dtype=torch.bool).unbind(0)
    for row, pair in enumerate(pairs):
        said, aims = pair.places(lambda text: tokenizer(text)["input_ids"], offsets=_offsets(tokenizer, pair))
        modifiers[row, list(said)] = True
        targets[row, list(aims)] = True
    return targets, modifiers


def _offsets(tokenizer: PreTrainedTokenizerBase, pair: Pair) -> list[tuple[int, int]] | None:
    spots = (*(pair.modifiers or ()), *(pair.targets or ()))
    if not any(isinstance(spot, tuple) for spot in spots):
        return None
    if not tokenizer.is_fast:
        raise ValueError("tokenizer is a slow one and knows no spans of characters: give positions of tokens")
    return [(first, last) for first, last in tokenizer(pair.sensitive, return_offsets_mapping=True)["offset_mapping"]]
