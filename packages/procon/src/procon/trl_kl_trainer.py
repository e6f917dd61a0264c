"""The generic control: fine-tuning that keeps the whole output distribution near the base model's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from trl.trainer.sft_trainer import SFTTrainer

from procon.reference import base_weights, without_loss
from procon.samples import Samples

TOKENS = 512  # response tokens whose logits are in memory at the same time
_SCALED = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class KLTrainer(SFTTrainer):
    """Fine-tunes with L = L_CE + β · mean over response tokens of KL(base ‖ tuned), in nats.

    The base model is the tuned one with its adapter switched off. At every step the mean divergence is logged as `kl`.
    It asks whether anchoring needs the refusal direction; the paper has no such control.

    Args:
        model: as in trl, with `peft_config` or as a PEFT model.
        args: `trl.SFTConfig`.
        beta: β; 0 is trl's own training.
        sft: whatever else `trl.SFTTrainer` takes.

    Raises:
        ValueError: for a `beta` that is negative or not finite, a model without adapter, or one that scales its logits.
    """

    _name = "KL to base"

    model: Any  # transformers allows None for both
    args: Any

    def __init__(self, model: Any, args: Any = None, *, beta: float, **sft: Any) -> None:
        if not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"beta must be finite and not negative, got {beta}")
        self.beta = beta
        super().__init__(model, args, **sft)
        if not isinstance(self.model, PeftModel):
            raise ValueError("KLTrainer needs an adapter, without which there is no base model: give peft_config")
        config = self.model.config.get_text_config()
        if scaled := [name for name in _SCALED if getattr(config, name, None) not in (None, 1.0)]:
            raise ValueError(f"model: {scaled[0]} changes the logits after the head, which KLTrainer does not follow")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """trl's loss, and in training β times the divergence."""
        if not (self.model.training and self.beta):
            return self._cross_entropy(model, inputs, return_outputs, num_items_in_batch)
        samples = Samples.of(inputs, "response")
        wanted = without_loss(self.model, inputs)  # before trl adds to `inputs` what its fused head needs
        with self._last_states(samples.predicting) as tuned:
            found = self._cross_entropy(model, inputs, return_outputs, num_items_in_batch)
        with (
            torch.no_grad(),
            self.accelerator.autocast(),
            base_weights(self.model),
            self._last_states(samples.predicting) as base,
        ):
            self.model(**wanted)
        tokens, parts = samples.predicting.sum(), 1
        if num_items_in_batch is not None:
            shared = self.accelerator.num_processes // self.get_tp_size()
            tokens = num_items_in_batch / (shared if self.args.average_tokens_across_devices else 1)
            parts = self.current_gradient_accumulation_steps
        term = self._divergence(tuned[0], base[0]) / torch.as_tensor(tokens).clamp(min=1)
        self._metrics["train"]["kl"].append(float(self.accelerator.gather(term.detach()).mean()) * parts)
        if return_outputs:
            loss, outputs = found
            return loss + self.beta * term, outputs
        return found + self.beta * term

    def _cross_entropy(self, *inputs: Any) -> Any:
        return super().compute_loss(*inputs)  # type: ignore[no-untyped-call]

    @contextmanager
    def _last_states(self, where: Tensor) -> Iterator[list[Tensor]]:
        """The head's inputs [tokens, d] at `where`, of the first pass; trl's fused head never makes logits."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            if not seen:  # asked for outputs, trl runs a second pass without gradients
                seen.append(output.last_hidden_state[where])

        handle = self.model.get_base_model().base_model.register_forward_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()

    def _divergence(self, tuned: Tensor, base: Tensor) -> Tensor:
        """Σ KL(base ‖ tuned); logits are made anew in the backward pass, so that only a part of them is ever held."""
        total = tuned.sum() * 0.0  # keeps the graph where there is no response token
        for mine, theirs in zip(torch.split(tuned, TOKENS), torch.split(base, TOKENS), strict=True):
            total = total + checkpoint(self._part, mine, theirs, use_reentrant=False)
        return total

    def _part(self, tuned: Tensor, base: Tensor) -> Tensor:
        head = self.model.get_output_embeddings()
        q = torch.log_softmax(head(tuned).float(), -1)
        with torch.no_grad():
            p = torch.log_softmax(head(base).float(), -1)
        return nn.functional.kl_div(q, p, reduction="sum", log_target=True)
