"""Greedy generation with the path cut over generation without: `bench_generation.py [--model NAME] [--out FILE]`.

The cuts are of random units and untrained autoencoders: what a cut costs depends on sizes alone. Latent cuts add one
encoder of d x width to every edited layer, so that their ratio is shown beside that of the multiply-accumulates,
1 + sum over edited layers of width d / those of the model per token. Runs with and without alternate; the ratio is that
of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.torch.device import resolve_device
from aisec_common.torch.hf_load import load_causal_lm
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.model_hash import model_hash
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder

from tracerouter.activity import Activity
from tracerouter.path import Trace, hidden_size
from tracerouter.sites import DECODER
from tracerouter.suppression import Suppression

UNITS = 32  # cut at every edited layer
WIDTH = 8  # latents of an autoencoder, in units of d
TOP_K = 32


def multiply_accumulates(model: torch.nn.Module) -> int:
    """Those of one token: the entries of all matrices but the embedding, which is looked up."""
    looked_up = model.get_input_embeddings()
    matrices = [m for m in model.modules() if m is not looked_up and getattr(m, "weight", torch.empty(0)).ndim == 2]
    return sum(m.weight.numel() for m in matrices)


def random_trace(model: torch.nn.Module, digest: str, form: str, layers: int) -> Trace:
    """A path through the last `layers` blocks (but the first is where the source lies)."""
    blocks, d = len(DECODER.blocks(model)), hidden_size(model)
    keys = [(layer, "resid") for layer in range(blocks - layers, blocks)]
    units = d if form == "coordinate" else WIDTH * d
    k = TOP_K if form == "TopK" else None
    saes = {} if form == "coordinate" else {key: SparseAutoencoder(d, units, k=k).requires_grad_(False) for key in keys}
    rng = torch.Generator().manual_seed(0)
    activity = {key: Activity(units) for key in keys}
    return Trace(
        onset=keys[0][0],
        sites=("resid",),
        unit="coordinate" if form == "coordinate" else "latent",
        path={key: torch.randperm(units, generator=rng)[:UNITS] for key in keys},
        saes=saes,
        plus=activity,
        minus=activity,
        delta={},
        blocks=blocks,
        width=d,
        model_hash=digest,
    )


def compared(model: Any, cut: Suppression, batch: int, new_tokens: int, repeats: int) -> tuple[float, float]:
    """Median seconds with and without the cut."""
    prompt = torch.randint(4, model.config.vocab_size, (batch, 32), generator=torch.Generator().manual_seed(0))
    prompt = prompt.to(model.device)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(repeats + 1):
        for with_cut in (True, False):
            with cut if with_cut else nullcontext():
                start = time.perf_counter()
                model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=new_tokens,
                    min_new_tokens=new_tokens,
                    do_sample=False,
                )
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                taken = time.perf_counter() - start
            if repeat:  # the first one warms up
                seconds[with_cut].append(taken)
    return statistics.median(seconds[True]), statistics.median(seconds[False])


def measure(name: str, model: Any, batch: int, new_tokens: int, repeats: int) -> list[dict[str, object]]:
    blocks, d, macs = len(DECODER.blocks(model)), hidden_size(model), multiply_accumulates(model)
    digest, rows = model_hash(model), []
    model.generation_config.pad_token_id = 0
    print(name)
    print(f"{'units':12}{'edited layers':>14}{'with, s':>10}{'without, s':>12}{'ratio':>8}{'MAC ratio':>11}", end="")
    print(f"{'ratio/MAC':>11}")
    for form in ("coordinate", "ReLU", "TopK"):
        for layers in sorted({2, blocks * 2 // 3}):
            cut = Suppression(model, random_trace(model, digest, form, layers))
            on, off = compared(model, cut, batch, new_tokens, repeats)
            added = {"coordinate": 0, "ReLU": 2 * UNITS, "TopK": WIDTH * d + UNITS}[form] * d  # W_dec of the units too
            bound = 1 + layers * added / macs
            row = {"model": name, "units": form, "edited layers": layers, "with_s": on, "without_s": off}
            rows.append(row | {"ratio": on / off, "mac_ratio": bound, "ratio_over_mac": on / off / bound})
            cells = f"{form:12}{layers:14}{on:10.3f}{off:12.3f}{on / off:8.3f}{bound:11.3f}{on / off / bound:11.3f}"
            print(cells, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of generation with the path cut, over seconds without.")
    parser.add_argument("--model", help="also measure this checkpoint, folder or org/name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1, help="prompts at once")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = tiny_lm(4096, layers=6, width=256, heads=4)
    sizes = (given.batch, given.new_tokens, given.repeats)
    rows = measure("random Llama, 6 blocks, d = 256", model.to(resolve_device(given.device)), *sizes)
    if given.model:
        model, _ = load_causal_lm(given.model, device=given.device, dtype=torch.float32)
        rows += measure(given.model, model, *sizes)
    if given.out is not None:
        made = {"versions": env.versions("aisec-tracerouter"), "device": env.device(), "command": env.command()}
        write_atomic(given.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
