"""Resta: after fine-tuning, a safety vector is added to the weights."""

from __future__ import annotations

import torch
from aisec_common.seeding import derived_seed
from peft import LoraModel, PeftModel

NAME = "resta"


def resta(
    model: PeftModel,
    *,
    unaligned: str,
    tuned: str = "default",
    gamma: float = 0.5,
    drop: float = 0.0,
    seed: int = 0,
) -> None:
    """Adds and activates the adapter "resta": θ = θ_tuned + γ (θ_aligned − θ_unaligned).

    The safety vector is the negative of an adapter that undoes the alignment; both adapters sit on the aligned model,
    and their sum is exact (concatenated ranks). With `drop` > 0 (Resta_d) the entries of both factors of the tuned
    adapter are first dropped at random and the rest rescaled by 1 / (1 − drop), which is DARE as peft does it.

    Args:
        model: the aligned model with the two adapters, not merged; the two stay as they are.
        unaligned: name of the adapter that was fine-tuned against the alignment.
        tuned: name of the adapter to be made safe.
        gamma: weight of the safety vector.
        drop: share of entries dropped, in [0, 1).
        seed: of the drawing.

    Raises:
        ValueError: for an adapter that is not there or the same twice, a `gamma` below 0, or `drop` outside [0, 1).

    Source: Bhardwaj et al., Language Models are Homer Simpson! (arXiv 2402.11746); DARE: Yu et al. (arXiv 2311.03099).
    """
    for argument, adapter in (("tuned", tuned), ("unaligned", unaligned)):
        if adapter not in model.peft_config:
            raise ValueError(f"{argument}: no adapter {adapter!r}; the model has {', '.join(model.peft_config)}")
    if tuned == unaligned:
        raise ValueError(f"unaligned and tuned are both {tuned!r}; give two adapters")
    if NAME in model.peft_config:
        raise ValueError(f"model has an adapter {NAME!r} already; delete it first")
    if not gamma >= 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    if not 0 <= drop < 1:
        raise ValueError(f"drop must be in [0, 1), got {drop}")
    lora: LoraModel = model.base_model  # type: ignore[assignment]
    kept = tuned
    with torch.random.fork_rng():  # peft draws from the global generator, also for what it overwrites at once
        torch.manual_seed(derived_seed(seed, "dare"))
        if drop:
            kept = f"{NAME}_kept"
            # of one adapter alone peft makes a "linear" copy that drops nothing: the second has no weight
            pair, weights = [tuned, tuned], [1.0, 0.0]
            lora.add_weighted_adapter(pair, weights, kept, combination_type="dare_linear", density=1 - drop)
        lora.add_weighted_adapter([kept, unaligned], [1.0, -gamma], NAME, combination_type="cat")
    if drop:
        model.delete_adapter(kept)
    model.set_adapter(NAME)
