"""Two small Llama models trained in place: one reads Python's documentation, one looks facts up in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from aisec_common.seeding import numpy_rng
from aisec_common.study import content_hash
from aisec_common.torch.hf_tiny_lm import tiny_lm, train_tiny_lm
from aisec_common.torch.hf_tokenizer import bpe_tokenizer
from aisec_common.torch.trained import trained
from torch import Tensor
from transformers import PreTrainedModel

from impq.corpus import Part, python_documentation
from impq.hf_model import batches_of
from impq.runner import Batch

RECIPE = 1  # raise it when the training below changes: cached models of the old one are then left alone
LAYERS = 8
WINDOW = 128
SYMBOLS = 20
FACTS = 10  # per sequence of the look-up task
UNSCORED = -100

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class EmbeddedTask:
    """A trained model with the tokens its game is estimated on, more of that kind, and those plans are judged on."""

    name: str
    model: PreTrainedModel
    calibration: list[Batch]
    calibration_long: list[Batch]
    held_out: list[Batch]


def text_task(seed: int, *, steps: int = 600, windows: int = 16, progress: Progress | None = None) -> EmbeddedTask:
    """A 985k-parameter `LlamaForCausalLM` (8 blocks, width 96) trained on the training pages, byte-level BPE of 512.

    Args:
        seed: of the weights and of the order of windows.
        steps: of 16 windows of 128 tokens; AdamW at 3e-3 with warm-up over a tenth, weight decay .1.
        windows: of 128 calibration tokens; twice as many are held out.
        progress: called as `progress(steps done, steps)` while it trains; a cached model trains nothing.
    """
    texts = python_documentation()
    tokenizer = bpe_tokenizer([texts["train"]], 512)

    ids: dict[Part, Tensor] = {part: tokenizer(text, return_tensors="pt").input_ids[0] for part, text in texts.items()}

    def batches() -> Iterator[dict[str, Tensor]]:
        rng = numpy_rng(seed, "text", "batches")
        windows = ids["train"].unfold(0, WINDOW, 1)
        while True:
            rows = windows[torch.from_numpy(rng.integers(len(windows), size=16))]
            yield {"input_ids": rows, "labels": rows}

    model = tiny_lm(tokenizer, layers=LAYERS, width=96, context=WINDOW, seed=seed)
    recipe = {
        "layers": LAYERS,
        "width": 96,
        "steps": steps,
        "seed": seed,
        "data": content_hash("\0".join(texts.values())),
        "recipe": RECIPE,
    }

    def train() -> None:
        train_tiny_lm(
            model, batches(), steps=steps, learning_rate=3e-3, weight_decay=0.1, warmup=0.1, progress=progress
        )

    trained(model, "impq-text", recipe, train)
    return EmbeddedTask(
        name="text",
        model=model,
        calibration=batches_of(model, _spread(ids["calibration"], windows)),
        calibration_long=batches_of(model, ids["calibration"].unfold(0, WINDOW, WINDOW)),
        held_out=batches_of(model, _spread(ids["test"], 2 * windows)),
    )


def lookup_task(seed: int, *, steps: int = 800, answers: int = 2200, progress: Progress | None = None) -> EmbeddedTask:
    """An 8-block `LlamaForCausalLM` of width 64 that knows a fixed random 20 x 20 table; only answers are scored.

    A sequence is ten facts (a, 20 + b, 40 + table[a, b]); a, b uniform.

    Args:
        seed: of the table, the weights and the facts drawn.
        steps: of 32 sequences; AdamW at 3e-3 with warm-up over a tenth.
        answers: scored in calibration and again, freshly drawn, in the held-out set.
        progress: called as `progress(steps done, steps)` while it trains.
    """
    table = numpy_rng(seed, "lookup", "table").integers(SYMBOLS, size=(SYMBOLS, SYMBOLS))

    def draw(rng: np.random.Generator, rows: int) -> dict[str, Tensor]:
        a, b = rng.integers(SYMBOLS, size=(2, rows, FACTS))
        facts = np.stack([a, SYMBOLS + b, 2 * SYMBOLS + table[a, b]], axis=-1)
        labels = np.where(np.arange(3) == 2, facts, UNSCORED)
        return {
            name: torch.from_numpy(array.reshape(rows, 3 * FACTS))
            for name, array in (("input_ids", facts), ("labels", labels))
        }

    def batches() -> Iterator[dict[str, Tensor]]:
        rng = numpy_rng(seed, "lookup", "batches")
        while True:
            yield draw(rng, 32)

    model = tiny_lm(3 * SYMBOLS, layers=LAYERS, width=64, context=3 * FACTS, seed=seed)
    recipe = {"layers": LAYERS, "width": 64, "steps": steps, "seed": seed, "recipe": RECIPE}

    def train() -> None:
        train_tiny_lm(model, batches(), steps=steps, learning_rate=3e-3, warmup=0.1, progress=progress)

    trained(model, "impq-lookup", recipe, train)
    rows = answers // FACTS

    def fresh(part: str, rows: int) -> list[Batch]:
        return batches_of(model, draw(numpy_rng(seed, "lookup", part), rows), batch_rows=rows)

    return EmbeddedTask(
        name="lookup",
        model=model,
        calibration=fresh("calibration", rows),
        calibration_long=fresh("calibration", 8 * rows),
        held_out=fresh("test", rows),
    )


def _spread(ids: Tensor, rows: int) -> Tensor:
    """`rows` windows at even distances, so that every page has its share."""
    windows = ids.unfold(0, WINDOW, WINDOW)
    return windows[torch.linspace(0, len(windows) - 1, rows).round().long()]
