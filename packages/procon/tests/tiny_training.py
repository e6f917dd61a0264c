"""A tiny model, tokenized rows of uneven lengths, and trainers on them."""

from __future__ import annotations

import torch
from aisec_common.seeding import torch_rng
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from aisec_common.torch.model_hash import model_hash
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig

from procon.config import ProConConfig
from procon.direction import RefusalDirections
from procon.trl_trainer import ProConTrainer

LAYERS, WIDTH = 2, 32
TOKENIZER = word_tokenizer([f"w{i}" for i in range(40)])
WEIGHTS = [f"model.layers.{k}.self_attn.{name}_proj" for k in range(LAYERS) for name in "qv"]


def rows(number=8, seed=0):
    """Prompts of 1-6 tokens and responses of 1-5, so that per-row means and per-token means differ."""
    rng = torch_rng(seed, "rows")
    made = []
    for _ in range(number):
        prompt, response = (int(torch.randint(1, top, (1,), generator=rng)) for top in (7, 6))
        ids = torch.randint(4, len(TOKENIZER), (prompt + response,), generator=rng).tolist()
        made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return made


def lm(**settings):
    return tiny_lm(TOKENIZER, layers=LAYERS, width=WIDTH, heads=2, **settings)


def directions_of(model, seed=0):
    drawn = torch.randn(LAYERS, WIDTH, generator=torch_rng(seed, "directions"))
    return RefusalDirections(
        vectors=torch.nn.functional.normalize(drawn, dim=-1),
        layers=tuple(range(LAYERS)),
        model_name="tiny",
        model_hash=model_hash(model),
    )


def arguments(folder, **settings):
    given = {"per_device_train_batch_size": 8, "num_train_epochs": 1, "learning_rate": 1e-2, "logging_steps": 1}
    given |= {"save_strategy": "no", "max_length": None, "activation_checkpointing": False, "optim": "adamw_torch"}
    quiet = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    return SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, **{**given, **quiet, **settings})


def make(folder, kind=ProConTrainer, *, data=None, model=None, lora=True, procon=None, moved=False, args=None, **more):
    """A trainer of `kind`; `moved` takes the adapter away from its start, so that the term is not 0."""
    model = lm() if model is None else model
    if issubclass(kind, ProConTrainer):
        more = {"directions": directions_of(model), "procon": ProConConfig(**procon or {}), **more}
    if lora:
        more["peft_config"] = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    trainer = kind(
        model,
        arguments(folder, **args or {}),
        train_dataset=Dataset.from_list(rows() if data is None else data),
        processing_class=TOKENIZER,
        **more,
    )
    if moved:
        move(trainer.model)
    return trainer


def move(model):
    rng = torch_rng(0, "move")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng))


def trained_weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def padded(examples, side="right"):
    longest = max(len(row["input_ids"]) for row in examples)
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for row in examples:
        gap = longest - len(row["input_ids"])
        for name, values, fill in (
            ("input_ids", row["input_ids"], 0),
            ("labels", row["labels"], -100),
            ("attention_mask", [1] * len(row["input_ids"]), 0),
        ):
            batch[name].append([fill] * gap + values if side == "left" else values + [fill] * gap)
    return {name: torch.tensor(values) for name, values in batch.items()}


def packed(examples):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(examples)


def losses(trainer):
    """What was logged at every step."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]
