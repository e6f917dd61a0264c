"""A tiny causal language model of the real transformers classes, and the loop that trains it in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from aisec_common.seeding import derived_seed
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase


def tiny_lm(
    vocabulary: int | PreTrainedTokenizerBase,
    *,
    architecture: Literal["llama", "gpt2"] = "llama",
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    context: int = 128,
    seed: int = 0,
) -> PreTrainedModel:
    """A randomly initialised `LlamaForCausalLM` or `GPT2LMHeadModel`, in eval mode on the CPU.

    The weights depend on `seed` alone; no global random generator is advanced or reseeded. There is no dropout.

    Args:
        vocabulary: number of tokens, or a tokenizer, which also gives the ids of `<pad>`, `<s>` and `</s>`.
        architecture: which real class.
        layers: number of blocks.
        width: hidden size d; the Llama MLP is 8/3 d wide (rounded up to 8), the GPT-2 MLP 4 d.
        heads: attention heads; must divide `width` into an even size.
        context: longest sequence in tokens.
        seed: of the initial weights.

    Raises:
        ValueError: for a size that is not positive, `heads` that do not fit `width`, or an unknown architecture.

    >>> model = tiny_lm(50, layers=1, width=16, heads=2)
    >>> model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 50])
    """
    tokens = vocabulary if isinstance(vocabulary, int) else len(vocabulary)
    sizes = {"vocabulary": tokens, "layers": layers, "width": width, "heads": heads, "context": context}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if width % (2 * heads):
        raise ValueError(f"heads must divide width into an even size, got width {width} and heads {heads}")
    settings: dict[str, Any] = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    if not isinstance(vocabulary, int):
        settings = {name: getattr(vocabulary, name) for name in settings}
    if architecture == "llama":
        settings |= {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        settings |= {"intermediate_size": -(-width // 3) * 8, "max_position_embeddings": context}
    elif architecture == "gpt2":
        settings |= {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": context}
        settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    else:
        raise ValueError(f"architecture must be 'llama' or 'gpt2', got {architecture!r}")
    config = AutoConfig.for_model(architecture, vocab_size=tokens, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derived_seed(seed, "tiny_lm"))  # torch.manual_seed would reseed GPUs too
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.train(False)
    return model


def train_tiny_lm(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    steps: int,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.01,
    warmup: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train on next-token loss: AdamW, gradients clipped to norm 1, learning rate rising and falling linearly.

    The loss of a batch is the mean of -log p(label_t | tokens before t) over labels that are not -100. The model is
    trained in place on its own device and left in eval mode; everything random is in `batches`.

    Args:
        model: a causal language model; parameters without `requires_grad` stay as they are.
        batches: at least `steps` mappings of `input_ids`, `labels` (-100 where no loss is wanted) and, if padded,
            `attention_mask`, each of shape (rows, tokens).
        steps: optimizer steps.
        learning_rate: the highest; it falls to 0 by the last step.
        weight_decay: AdamW's.
        warmup: share of the steps over which the learning rate rises, in [0, 1).
        progress: called as `progress(steps done, steps)`.

    Returns:
        The loss of each step, in nats per token.

    Raises:
        ValueError: when `batches` end early, nothing is trainable, or the loss becomes NaN or infinite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup must be in [0, 1), got {warmup}")
    rise = int(warmup * steps)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("model has no parameter with requires_grad=True")
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / (rise + 1) if step < rise else (steps - step) / (steps - rise)
    )
    losses: list[float] = []
    model.train()
    try:
        for batch in batches:
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            targets = inputs.pop("labels")[:, 1:].flatten()
            logits: Tensor = model(**inputs).logits[:, :-1].flatten(0, 1).float()
            loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100)
            losses.append(loss.item())
            if not torch.isfinite(loss):
                raise ValueError(f"the loss is {losses[-1]} at step {len(losses)}: lower learning_rate or check labels")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            pace.step()
            if progress is not None:
                progress(len(losses), steps)
            if len(losses) == steps:
                return losses
    finally:
        model.train(False)
    raise ValueError(f"batches ended after {len(losses)} of {steps} steps")
