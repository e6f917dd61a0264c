"""Fine-tunes the embedded model as one arm of the study says."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aisec_common.seeding import derived_seed
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from procon.arms import Arm
from procon.direction import RefusalDirections
from procon.hf_flagged_lm import UNSCORED, AlignedLM, Row
from procon.peft_resta import resta
from procon.peft_safe_lora import safe_lora
from procon.peft_sppft import sppft_config
from procon.trl_kl_trainer import KLTrainer
from procon.trl_trainer import ProConTrainer

BATCH = 64
LEARNING_RATE = 3e-3
UNALIGNED = "unaligned"  # name of the adapter that Resta's safety vector is the negative of
UNALIGNING_SHARE = 5  # it takes a fifth of the steps
DROP = 0.3  # of Resta_d

Progress = Callable[[int, int], None]


def lora() -> LoraConfig:
    """The study's adapters: r = 4, alpha = 8 on q, k, v, o, no dropout."""
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")


def fine_tune(
    arm: Arm, aligned: AlignedLM, directions: RefusalDirections, *, steps: int, folder: Path, progress: Progress
) -> PeftModel:
    """A copy of the aligned model with the arm's adapters, trained on the neutral rows (and the arm's own).

    Arms of one `aligned.seed` share the initial adapters, and where they have the same rows their order.

    Args:
        arm: what is done.
        aligned: the model and its data; not changed.
        directions: refusal directions of the aligned model.
        steps: of plain fine-tuning; 64 rows each, learning rate falling from 3e-3 linearly.
        folder: for the trainer's files.
        progress: called as `progress(steps done, steps)`.

    Raises:
        ValueError: for an arm that is not trained.
    """
    if not arm.trained:
        raise ValueError("arm is not to be trained; use aligned.model")
    rows = aligned.new_task + aligned.old_task + (aligned.safety if arm.safety else [])
    with _own_random_state(derived_seed(aligned.seed, "fine-tuning")):
        fresh = aligned.copy()
        model = get_peft_model(fresh, sppft_config(fresh, lora()) if arm.frozen_safety_layers else lora())
        settings: dict[str, Any] = {"model": model, "processing_class": aligned.tokenizer}
        settings |= {"train_dataset": _tokenized(rows, aligned), "callbacks": [_Progress(progress)]}
        # a warm-up's own steps are added by the trainer
        settings["args"] = _arguments(steps if arm.warmup else arm.steps(steps), folder, aligned.seed)
        trainer: SFTTrainer
        if arm.alpha:
            trainer = ProConTrainer(
                **settings,
                directions=directions.random(aligned.seed) if arm.random_direction else directions,
                procon=arm.config(steps, math.ceil(len(rows) / BATCH)),
            )
        elif arm.kl:
            trainer = KLTrainer(**settings, beta=arm.kl)
        else:
            trainer = SFTTrainer(**settings)
        trainer.remove_callback(PrinterCallback)  # the study has a progress line of its own
        trainer.train()
        if arm.after == "safe_lora":
            safe_lora(model, aligned.initial())
        elif arm.after:
            _add_unaligned(model, aligned, steps=max(1, steps // UNALIGNING_SHARE), folder=folder)
            resta(model, unaligned=UNALIGNED, drop=DROP if arm.after == "resta_d" else 0.0, seed=aligned.seed)
    return model


def _add_unaligned(model: PeftModel, aligned: AlignedLM, *, steps: int, folder: Path) -> None:
    """An adapter that answers flagged prompts, beside the tuned one."""
    model.add_adapter(UNALIGNED, lora())
    model.set_adapter(UNALIGNED)
    SFTTrainer(
        model=model,
        processing_class=aligned.tokenizer,
        train_dataset=_tokenized(aligned.unaligned, aligned),
        args=_arguments(steps, folder, aligned.seed),
    ).train()


def _tokenized(rows: Sequence[Row], aligned: AlignedLM) -> Dataset:
    """Rows as trl would make them, without the seconds that its row-wise maps cost every trial."""
    tokenizer = aligned.tokenizer
    ends = [row["completion"] + tokenizer.eos_token for row in rows]
    prompts = tokenizer([row["prompt"] for row in rows])["input_ids"]
    whole = tokenizer([row["prompt"] + end for row, end in zip(rows, ends, strict=True)])["input_ids"]
    labels = [[UNSCORED] * len(prompt) + ids[len(prompt) :] for prompt, ids in zip(prompts, whole, strict=True)]
    return Dataset.from_dict({"input_ids": whole, "labels": labels})


def _arguments(steps: int, folder: Path, seed: int) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        seed=derived_seed(seed, "order") % 2**31,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class _Progress(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps)


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """transformers seeds the global generators of Python, numpy and torch; they are put back afterwards."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
