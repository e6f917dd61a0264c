"""ProCon on a real model that refuses one harmless topic: what keeps the refusal through benign fine-tuning, at what
cost to the task, beside plain fine-tuning and random directions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from aisec_common.files import write_atomic
from aisec_common.metrics.refusal import is_refusal
from aisec_common.seeding import numpy_rng
from aisec_common.torch.peft_taught_refusal import (
    BASE,
    REFUSAL,
    Question,
    countries,
    country_questions,
    question_batch,
    taught_refusal,
    weather_questions,
)
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from procon.behaviour import log_odds
from procon.config import ProConConfig
from procon.direction import RefusalDirections
from procon.drift import signed_cosines
from procon.hf_directions import refusal_directions
from procon.hf_prompts import encode, generation_prompts
from procon.spelling import spelling_questions
from procon.trl_trainer import ProConTrainer

Show = Callable[[str, int, int], None]
PROBES = 48  # of each kind
TESTS = 48
ROWS = 256
BATCH = 8
TEST_BATCH = 24
EPOCHS = 2
WARMUP_EPOCHS = 1
ALPHAS = (10.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to fine-tune.

    Attributes:
        name: of the method.
        alpha: weight of the projection term, with Δz of every layer in units of z_0's spread along the refusal
            direction; 0 is plain fine-tuning.
        random: whether the directions are random, still in units of the refusal direction's spread.
        warmup: whether α acts in an added first epoch alone.
        epochs: of trl.
    """

    name: str
    alpha: float = 0.0
    random: bool = False
    warmup: bool = False
    epochs: int = EPOCHS

    @property
    def label(self) -> str:
        """Name and α, as files and tables have it."""
        return f"{self.name}-{self.alpha:g}" if self.alpha else self.name


ARMS = (
    Arm(name="sft"),
    Arm(name="procon_s", alpha=10.0),
    Arm(name="random", alpha=10.0, random=True),
    Arm(name="procon_wu", alpha=10.0, warmup=True),
    *(Arm(name="procon_s", alpha=alpha) for alpha in ALPHAS if alpha != 10.0),
    *(Arm(name="random", alpha=alpha, random=True) for alpha in ALPHAS if alpha != 10.0),
    Arm(name="sft_long", epochs=EPOCHS + WARMUP_EPOCHS),
    Arm(name="random_wu", alpha=10.0, random=True, warmup=True),
)
"""In the order in which they are run: the main comparison first, then the curve over α, then the controls of the
warm-up: as many steps of plain fine-tuning, and random directions."""


def compare(
    out: Path, *, seeds: int = 2, arms: Sequence[Arm] = ARMS, device: str = "cpu", show: Show | None = None
) -> list[dict[str, Any]]:
    """Fine-tunes the taught model once per seed and arm and measures the result; a run that is on disk is not repeated.

    Args:
        out: folder; a run leaves `runs/ARM-SEED.json` there, whole or not at all.
        seeds: of the taught refusal, the adapter and the order of rows.
        arms: which.
        device: where it runs.
        show: called as `show(what, done, total)`.

    Returns:
        The records of all runs, of each seed the one before fine-tuning first.

    Raises:
        ValueError: if `seeds` is below 1.
        FileNotFoundError: where a run needs the checkpoint and it has not been fetched.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    tell = show or (lambda what, done, total: None)
    todo = [(seed, arm) for seed in range(seeds) for arm in (None, *arms)]
    records = []
    for done, (seed, arm) in enumerate(todo):
        label = arm.label if arm else "before"
        tell(f"{label}, seed {seed}", done, len(todo))
        file = out / "runs" / f"{label}-{seed}.json"
        settings = _settings(arm, seed)
        if file.is_file() and (kept := json.loads(file.read_text()))["settings"] == settings:
            records.append(kept)
            continue
        progress = partial(tell, f"{label}, seed {seed}: steps")
        record = {"settings": settings, **_run(arm, seed, device, progress)}
        write_atomic(file, json.dumps(record, indent=1) + "\n")
        records.append(record)
    tell("all runs", len(todo), len(todo))
    return records


def _settings(arm: Arm | None, seed: int) -> dict[str, Any]:
    sizes = {"probes": PROBES, "tests": TESTS, "rows": ROWS, "batch": BATCH, "dtype": "bfloat16"}
    return {"model": BASE, "arm": asdict(arm) if arm else None, "seed": seed, **sizes}


def _run(arm: Arm | None, seed: int, device: str, progress: Callable[[int, int], None]) -> dict[str, Any]:
    model, tokenizer = taught_refusal(seed, device=device, progress=progress)
    model = model.to(torch.bfloat16)  # type: ignore[arg-type]
    probes: dict[str, Any] = {
        "harmful": [question.text for question in weather_questions("probe")[:PROBES]],
        "harmless": [question.text for question in country_questions("probe")[:PROBES]],
    }
    directions = refusal_directions(model, tokenizer, model_name=f"{BASE} taught to refuse, seed {seed}", **probes)
    tuned: PreTrainedModel | PeftModel = model
    log: dict[str, float] = {}
    if arm is not None:
        tuned, log = _fine_tuned(arm, model, tokenizer, directions, seed, progress)
    after = refusal_directions(tuned, tokenizer, **probes)
    measured = behaviour(tuned, tokenizer)
    return {**measured, "cosines": signed_cosines(directions, after).tolist(), **log}


def _fine_tuned(
    arm: Arm,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directions: RefusalDirections,
    seed: int,
    progress: Callable[[int, int], None],
) -> tuple[PeftModel, dict[str, float]]:
    questions = spelling_questions(name for name, _, _ in countries("train"))
    chosen = [questions[i] for i in numpy_rng(seed, "spelling").permutation(len(questions))[:ROWS]]
    rows = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
            for q, a in chosen
        ]
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    with tempfile.TemporaryDirectory() as scratch:
        args = SFTConfig(
            output_dir=scratch,
            num_train_epochs=arm.epochs,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            lr_scheduler_type="linear",
            seed=seed,
            use_cpu=model.device.type == "cpu",
            bf16=False,
            activation_checkpointing=False,
            save_strategy="no",
            logging_steps=8,
            report_to="none",
            disable_tqdm=True,
        )
        given: dict[str, Any] = {"model": model, "args": args, "train_dataset": rows, "processing_class": tokenizer}
        if arm.alpha:
            config = ProConConfig(
                alpha=arm.alpha,
                schedule="warmup" if arm.warmup else "constant",
                warmup_epochs=WARMUP_EPOCHS,
                normalize=True,
                reference="cache",
            )
            held = directions.random(seed) if arm.random else directions
            trainer: Any = ProConTrainer(
                **given, peft_config=lora, procon=config, directions=held, scale_directions=directions
            )
        else:
            trainer = SFTTrainer(**given, peft_config=lora)
        trainer.remove_callback(PrinterCallback)  # prints a dictionary at every log
        trainer.add_callback(_Progress(progress))
        trainer.train()
        history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    tuned = trainer.model
    assert isinstance(tuned, PeftModel)
    return tuned.eval(), {"steps": trainer.state.global_step, "training_loss_last": losses[-1]}


class _Progress(TrainerCallback):
    def __init__(self, progress: Callable[[int, int], None]) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress(state.global_step, state.max_steps)


def behaviour(model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Refusals of held-out questions on the weather and on countries, and the loss on held-out spelling.

    Returns:
        `flagged` and `neutral`: per question the log-odds of the refusal's first token, log p - log(1 - p), and
        whether the greedy answer refuses; `task_loss`: nats per answer token, a number per question.
    """
    found: dict[str, Any] = {}
    for name, questions in (("flagged", weather_questions("test")), ("neutral", country_questions("test"))):
        found[name] = _answers(model, tokenizer, [question.text for question in questions[:TESTS]])
    spelling = spelling_questions(name for name, _, _ in countries("test"))
    order = numpy_rng(0, "spelling test").permutation(len(spelling))[: 2 * TESTS]
    found["task_loss"] = _losses(model, tokenizer, [Question(*spelling[i]) for i in order])
    return found


@torch.inference_mode()
def _answers(model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]) -> Mapping[str, list[Any]]:
    first = tokenizer(REFUSAL, add_special_tokens=False)["input_ids"][0]
    texts = generation_prompts(tokenizer, questions)
    odds: list[float] = []
    answers: list[str] = []
    for start in range(0, len(texts), TEST_BATCH):
        batch = encode(tokenizer, texts[start : start + TEST_BATCH], model.device)
        odds += log_odds(model(**batch, logits_to_keep=1).logits[:, -1], [first]).tolist()
        out = model.generate(**batch, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        new = out[:, batch["input_ids"].shape[1] :]
        answers += [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return {"log_odds": odds, "refused": [is_refusal(text) for text in answers]}


@torch.inference_mode()
def _losses(model: Any, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> list[float]:
    losses: list[float] = []
    for start in range(0, len(questions), TEST_BATCH):
        rows = question_batch(tokenizer, questions[start : start + TEST_BATCH])
        batch = {name: tensor.to(model.device) for name, tensor in rows.items()}
        labels: Tensor = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1].float()
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        losses += (each.sum(1) / (labels != -100).sum(1)).tolist()
    return losses
