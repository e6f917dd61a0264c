"""What a step of ProConTrainer costs beside one of trl's SFTTrainer: `python benchmarks/bench_step.py [--out FILE]`.

Seconds: processor time of a training of STEPS steps, by step, after one warm-up training; the trainings of all kinds
take turns, and medians are compared. The pre-pass of reference="cache" is made before and told apart, by batch, over
trl's step. Memory: peak resident memory of a fresh process over one training, less what the process held before the
model was built. `--model tiny NAME` takes a real checkpoint as well, `--device cuda` a GPU. About 3 minutes on one
core for the tiny model, 15 for SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng
from aisec_common.torch.blocks import find_blocks
from aisec_common.torch.device import resolve_device
from aisec_common.torch.hf_load import load_causal_lm
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from aisec_common.torch.model_hash import model_hash
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from procon import ProConConfig, ProConTrainer, RefusalDirections

TINY = "tiny"
KINDS = ("sft", "cache", "adapter_off", "model")
TURNS, STEPS, ROWS, TOKENS, PROMPT = 3, 5, 8, 96, 32
PEAK_STEPS = 2
VOCABULARY = 512


def model_of(name: str, device: str) -> Any:
    if name == TINY:
        model: nn.Module = tiny_lm(VOCABULARY, layers=8, width=256, heads=4)
    else:
        model, _ = load_causal_lm(name, device=device, dtype=torch.float32)
    return model.to(resolve_device(device))


def directions_of(model: Any) -> RefusalDirections:
    _, blocks = find_blocks(model)
    width = model.config.get_text_config().hidden_size
    vectors = torch.nn.functional.normalize(torch.randn(len(blocks), width, generator=torch_rng(0, "r")), dim=-1)
    return RefusalDirections(
        vectors=vectors, layers=tuple(range(len(blocks))), model_name="", model_hash=model_hash(model)
    )


def trainer_of(kind: Any, name: str, device: str, folder: str, steps: int = STEPS) -> Any:
    model = model_of(name, device)
    ids = torch.randint(4, VOCABULARY, (STEPS * ROWS, TOKENS), generator=torch_rng(0, "rows")).tolist()
    rows = {"input_ids": ids, "labels": [[-100] * PROMPT + row[PROMPT:] for row in ids]}
    args = SFTConfig(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=ROWS,
        max_length=None,
        activation_checkpointing=False,
        use_cpu=device == "cpu",
        bf16=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    shared = {"train_dataset": Dataset.from_dict(rows), "peft_config": lora}
    shared["processing_class"] = word_tokenizer(["a"])  # the rows are tokens already
    if kind == "sft":
        trainer: Any = SFTTrainer(model, args, **shared)
    else:
        procon = ProConConfig(reference=kind)
        trainer = ProConTrainer(model, args, directions=directions_of(model), procon=procon, **shared)
    trainer.remove_callback(PrinterCallback)
    return trainer


def seconds(work: Any, device: str) -> float:
    start = time.process_time() if device == "cpu" else time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.process_time() if device == "cpu" else time.perf_counter()) - start


def times(name: str, device: str, folder: str) -> dict[str, float]:
    """Seconds of a step of each kind, and of a batch of the pre-pass."""
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    trainer_of("sft", name, device, folder, steps=2).train()
    gc.freeze()  # every training begins with a collection; walking all libraries would count as time of its steps
    pre_pass = seconds(trainer_of("cache", name, device, folder, steps=0)._prepare_reference, device)
    for _ in range(TURNS):
        for kind in KINDS:
            trainer = trainer_of(kind, name, device, folder)
            taken[kind].append(seconds(trainer.train, device) / STEPS)
    return {kind: statistics.median(found) for kind, found in taken.items()} | {"pre-pass": pre_pass / STEPS}


def peak(kind: str, name: str, device: str) -> float:
    """MiB that one training needs at its peak, its model included."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer_of(kind, TINY, device, folder, steps=1).train()  # loads every library before the baseline is read
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else the training would live in what the first one left behind
    env.reset_peak_memory()
    baseline = env.peak_memory_mib()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(kind, name, device, folder, steps=PEAK_STEPS)
        trainer.train()
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return env.peak_memory_mib() - baseline


def measure(name: str, device: str) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        taken = times(name, device, folder)
    peaks = {}
    for kind in KINDS:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peaks[kind] = pool.submit(peak, kind, name, device).result()
    compared = [(kind, "seconds a step", taken[kind], taken["sft"]) for kind in KINDS[1:]]
    compared += [("cache", "seconds a batch of the pre-pass", taken["pre-pass"], taken["sft"])]
    compared += [(kind, "peak MiB", peaks[kind], peaks["sft"]) for kind in KINDS[1:]]
    rows: list[dict[str, object]] = []
    for kind, quantity, ours, trl in compared:
        row = {"model": name, "reference": kind, "quantity": quantity, "ours": ours, "trl": trl}
        rows.append(row | {"ratio": ours / trl})
        print(f"{name:24}{kind:14}{quantity:34}{ours:12.4f}{trl:12.4f}{ours / trl:8.3f}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Step time and peak memory of ProConTrainer over SFTTrainer.")
    parser.add_argument("--model", nargs="+", default=[TINY], help="checkpoints' names, or tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':24}{'reference':14}{'quantity':34}{'ours':>12}{'trl':>12}{'ratio':>8}")
    rows = [row for name in given.model for row in measure(name, given.device)]
    if given.out is not None:
        made = {"versions": env.versions("aisec-procon"), "device": env.device(), "command": env.command()}
        write_atomic(given.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
