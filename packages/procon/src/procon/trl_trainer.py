"""`trl.SFTTrainer` with the projection constraint: data, adapters, checkpoints and logs stay trl's."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.sft_trainer import SFTTrainer

from procon.config import ProConConfig
from procon.direction import RefusalDirections
from procon.hf_safety_data import mixed
from procon.projection import projection_term
from procon.projection_capture import ProjectionCapture
from procon.record import check_record, digest, write_record
from procon.reference import (
    BaseModel,
    CachedProjections,
    Inputs,
    Reference,
    frozen_copy,
    has_learned_positions,
    without_rounding,
)
from procon.samples import Samples
from procon.schedule import Schedule, schedule_of

CALIBRATION_SAMPLES = 128
CACHE_FOLDER = "_procon_reference"  # pushing to a hub leaves out names that begin with an underscore


class ProConTrainer(SFTTrainer):
    """Fine-tunes with L = L_CE + α · L_ProCon, which holds projections onto the refusal directions where they were.

    Takes what `trl.SFTTrainer` takes; a saved adapter or model needs nothing of this package. With α = 0 a step is
    exactly trl's. At every step α is logged as `procon_alpha`, and L_ProCon, over the whole batch of the step, as
    `procon`. Evaluation is trl's: its loss is the cross-entropy alone.

    Schedule "warmup" adds its epochs to `num_train_epochs` (or, where `max_steps` is set, their steps to that):
    optimiser and learning rate run through both phases.

    Args:
        model: as in trl; with `reference="adapter_off"` it needs a `peft_config` or to be a PEFT model.
        args: `trl.SFTConfig`.
        data_collator: as in trl; pads on either side, or packs.
        train_dataset: as in trl.
        directions: r of this model.
        procon: the settings of the term.
        safety_dataset: flagged prompts with refusals, in the format of `train_dataset`; mixed into it.
        alpha_schedule: progress in epochs -> α, in place of the schedule that `procon` names.
        scale_directions: with `normalize=True`, directions whose spread of z_0 is divided by in place of that of
            `directions`; a control with random directions takes the refusal directions here, because its own,
            smaller spread would make it stricter.
        sft: whatever else `trl.SFTTrainer` takes.

    Raises:
        ValueError: for directions of another model, full fine-tuning with `reference="adapter_off"`, prompt-tuning
            adapters, safety data with other columns, or streamed data where its length is needed. In `train`, for a
            checkpoint of other directions or settings, and for projections that are not finite.

    >>> import tempfile
    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> from aisec_common.torch.hf_tokenizer import word_tokenizer
    >>> from peft import LoraConfig
    >>> from procon import refusal_directions
    >>> from trl import SFTConfig
    >>> tokenizer = word_tokenizer(["rain", "sun", "seven", "two"])
    >>> model = tiny_lm(tokenizer, width=16)
    >>> directions = refusal_directions(model, tokenizer, harmful=["rain", "sun"], harmless=["seven", "two"])
    >>> given = {"processing_class": tokenizer, "peft_config": LoraConfig(target_modules=["q_proj"])}
    >>> given["train_dataset"] = Dataset.from_list([{"prompt": "two ", "completion": "seven"}])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     args = SFTConfig(folder, use_cpu=True, bf16=False, activation_checkpointing=False, report_to="none")
    ...     trainer = ProConTrainer(model, args, directions=directions, **given)
    >>> trainer.alpha
    0.1

    Source: arXiv 2509.06795, section 4.
    """

    _tag_names = ["trl", "sft", "procon"]  # noqa: RUF012
    _name = "ProCon"

    model: Any  # transformers allows None for all three
    args: Any
    train_dataset: Any

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        *,
        directions: RefusalDirections,
        procon: ProConConfig | None = None,
        safety_dataset: Dataset | None = None,
        alpha_schedule: Schedule | None = None,
        scale_directions: RefusalDirections | None = None,
        **sft: Any,
    ) -> None:
        self.procon = procon or ProConConfig()
        self.alpha_schedule = schedule_of(self.procon, alpha_schedule)
        self._scheduled = alpha_schedule is not None
        if scale_directions is not None and not self.procon.normalize:
            raise ValueError("scale_directions has no effect without normalize=True")
        if self.procon.schedule == "warmup" or self.procon.reference == "cache":
            _require_length(train_dataset, self.procon)
        if safety_dataset is not None:
            train_dataset = mixed(train_dataset, safety_dataset, seed=getattr(args, "seed", 42))
        of_start = not isinstance(model, str)
        if of_start:  # before trl spends time on the data, and before a cloned chat template resizes the embedding
            directions.check(model)
        super().__init__(model, args, data_collator, train_dataset, **sft)
        if not of_start:
            directions.check(self.model)
        self._check_adapter()
        self.directions = directions.at(self.procon.layers)
        self._scale_directions = (scale_directions or directions).at(self.procon.layers)
        self._capture = ProjectionCapture(self.model, self.directions)
        self._base_model = frozen_copy(self.model) if self.procon.reference == "model" else self.model
        self._reference: Reference | None = None
        self.procon_scale: Tensor | None = None
        self._counts: tuple[Tensor, Tensor] | None = None
        self._warned = False
        self._add_warmup()

    # ---------------------------------------------------------------- loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """trl's loss, and in training α times the projection term."""
        alpha = self.alpha
        if self.model.training:
            self._metrics["train"]["procon_alpha"] = [alpha]  # trl's logs print the mean of the list: the latest
        if not (self.model.training and alpha):
            return self._cross_entropy(model, inputs, return_outputs, num_items_in_batch)
        samples = Samples.of(inputs, self.procon.tokens)
        batch = dict(inputs)  # trl adds to `inputs` what its fused head needs
        with self._capture:
            found = self._cross_entropy(model, inputs, return_outputs, num_items_in_batch)
        term = self._term(self._capture.take(), batch, samples, whole_step=num_items_in_batch is not None)
        self._log_term(term, in_parts=num_items_in_batch is not None)
        if return_outputs:
            loss, outputs = found
            return loss + alpha * term, outputs
        return found + alpha * term

    def _cross_entropy(self, *inputs: Any) -> Any:
        return super().compute_loss(*inputs)  # type: ignore[no-untyped-call]

    @property
    def alpha(self) -> float:
        """α of the step that comes next."""
        return self.alpha_schedule(self.state.epoch or 0.0)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[Any, Any]:
        """The batches of one step; their constrained tokens are counted, over all processes, as trl counts labels."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._counts = None
        if items is not None and self.alpha:
            counts = [Samples.of(batch, self.procon.tokens).counts() for batch in batches]
            both = torch.stack([torch.stack(pair) for pair in counts]).sum(0).to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                both = self.accelerator.gather(both).view(-1, 2).sum(0)
            # the gradients of the processes are averaged, and those of tensor-parallel ones are the same
            shares = self._processes / self.get_tp_size()
            tokens, samples = both / shares
            self._counts = (tokens, samples)
        return batches, items

    @property
    def _processes(self) -> int:
        return int(self.accelerator.num_processes) if self.args.average_tokens_across_devices else 1

    def _term(self, z: Tensor, inputs: Inputs, samples: Samples, *, whole_step: bool) -> Tensor:
        tokens, rows = self._counts if whole_step and self._counts is not None else samples.counts()
        if not tokens and not self._warned:
            self._warned = True
            warnings.warn(
                f"a batch has no tokens to hold in place (tokens={self.procon.tokens!r}): its projection term is 0",
                stacklevel=2,
            )
        if self._reference is None:
            self._prepare_reference()
        assert self._reference is not None
        return projection_term(
            z,
            without_rounding(z, self._reference(inputs, samples), samples.constrained),
            samples.constrained,
            norm=self.procon.norm,
            reduction=self.procon.reduction,
            tokens=tokens,
            samples=rows,
            scale=self.procon_scale,
            segments=samples.segments,
        )

    def _log_term(self, term: Tensor, *, in_parts: bool) -> None:
        # a part of the step's batch was divided by the whole step's count, so the parts add up to the step's term
        parts = self.current_gradient_accumulation_steps if in_parts else 1
        value = float(self.accelerator.gather(term.detach()).mean()) * parts
        if not math.isfinite(value):
            raise ValueError(
                f"the projection term is {value} at step {self.state.global_step + 1}: lower the learning rate, or "
                "check the model's dtype"
            )
        self._metrics["train"]["procon"].append(value)

    # ---------------------------------------------------------------- reference

    def train(self, resume_from_checkpoint: str | bool | None = None, *more: Any, **named: Any) -> Any:
        """trl's training, after the pre-pass that reference="cache" needs and the calibration of `normalize`.

        Raises:
            ValueError: if the checkpoint was not made with these directions and settings.
        """
        if resume_from_checkpoint:
            self._check_checkpoint(resume_from_checkpoint)
        of_start_only = self.procon.reference == "cache" and not isinstance(self.model, PeftModel)
        if self._scheduled or self.procon.alpha or of_start_only:
            self._prepare_reference()
        return super().train(resume_from_checkpoint, *more, **named)

    def _prepare_reference(self) -> None:
        """Needs the weights of the start: with a cache in full fine-tuning it is too late once training began."""
        base = BaseModel(self._base_model, self.directions, self.accelerator.autocast)
        self._reference = base
        if self.procon.normalize and self.procon_scale is None:
            self.procon_scale = self._spread()
        if self.procon.reference == "cache":
            identity = f"{self.directions.model_hash} {digest(self.directions)} {self.accelerator.mixed_precision}"
            cached = CachedProjections(
                base,
                Path(self.args.output_dir) / CACHE_FOLDER,
                identity,
                self.procon.cache_dtype,
                absolute=has_learned_positions(self.model),
                writer=self.accelerator.process_index,
            )
            cached.fill(self._batches(self.accelerator.process_index, self.accelerator.num_processes))
            self.accelerator.wait_for_everyone()
            cached.cache.reload()
            self._reference = cached

    def _batches(self, first: int = 0, step: int = 1) -> Iterator[tuple[dict[str, Any], Samples]]:
        """The training data in its own order; a data loader would draw a seed from the global generator."""
        collate = self._get_collator_with_removed_columns(self.data_collator)
        rows = self.args.per_device_train_batch_size
        for start in range(first * rows, len(self.train_dataset), step * rows):
            examples = [self.train_dataset[i] for i in range(start, min(start + rows, len(self.train_dataset)))]
            inputs = self._prepare_inputs(collate(examples))
            yield inputs, Samples.of(inputs, self.procon.tokens)

    def _spread(self) -> Tensor:
        """Standard deviation [L] of z_0 over the constrained tokens of the first training samples."""
        base = BaseModel(self._base_model, self._scale_directions, self.accelerator.autocast)
        found: list[Tensor] = []
        seen = 0
        for inputs, samples in self._batches():
            found.append(base(inputs)[samples.constrained])
            seen += int(samples.counts()[1])
            if seen >= CALIBRATION_SAMPLES:
                break
        z_0 = torch.cat(found)
        spread = z_0.std(0) if len(z_0) > 1 else torch.zeros(z_0.shape[-1])
        if not (spread > 0).all():
            raise ValueError("normalize=True: the projections do not vary in some layer; use normalize=False")
        for layer, value in zip(self.directions.layers, spread.tolist(), strict=True):
            self._metrics["train"][f"procon_scale_{layer}"].append(value)
        return spread

    # ---------------------------------------------------------------- checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """trl's, and beside the weights a record of the directions and settings they were trained with."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            write_record(Path(output_dir or self.args.output_dir), self._record())

    def _record(self) -> dict[str, Any]:
        return {
            "model_name": self.directions.model_name,
            "model_hash": self.directions.model_hash,
            "directions": digest(self.directions),
            "scaled_by": digest(self._scale_directions) if self.procon.normalize else None,
            "alpha_schedule": "given" if self._scheduled else None,
            **json.loads(json.dumps(asdict(self.procon))),
        }

    def _check_checkpoint(self, checkpoint: str | bool) -> None:
        folder: Any = checkpoint
        if checkpoint is True:
            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if folder is None:
            raise ValueError(f"resume_from_checkpoint: there is no checkpoint in {self.args.output_dir}; train anew")
        check_record(Path(folder), self._record(), "resume_from_checkpoint")

    # ---------------------------------------------------------------- construction

    def _check_adapter(self) -> None:
        if isinstance(self.model, PeftModel):
            if self.model.active_peft_config.is_prompt_learning:
                raise ValueError("peft_config: prompt learning shifts the tokens to be held; use a LoRA-like adapter")
        elif self.procon.reference == "adapter_off":
            raise ValueError(
                "reference='adapter_off' needs an adapter: give peft_config, or use reference='cache' or 'model' for "
                "full fine-tuning"
            )

    def _add_warmup(self) -> None:
        if self.procon.schedule != "warmup":
            return
        epochs = self.procon.warmup_epochs
        self.args = copy.copy(self.args)  # the caller's object may serve another run
        if self.args.max_steps > 0:
            rows = self.args.train_batch_size * self.args.world_size
            batches = len(self.train_dataset) / rows
            batches = math.floor(batches) if self.args.dataloader_drop_last else math.ceil(batches)
            self.args.max_steps += round(epochs * max(1, math.ceil(batches / self.args.gradient_accumulation_steps)))
        else:
            self.args.num_train_epochs += epochs


def _require_length(dataset: Any, procon: ProConConfig) -> None:
    if dataset is not None and not hasattr(dataset, "__len__"):
        what = "schedule='warmup'" if procon.schedule == "warmup" else "reference='cache'"
        raise ValueError(f"train_dataset is streamed, and {what} needs its length; use a datasets.Dataset")
