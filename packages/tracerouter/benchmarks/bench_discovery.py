"""Zero-outs per second, batched over one at a time, and what tracing costs: `bench_discovery.py [--model NAME]`.

A zero-out is one prompt run with one source unit zeroed, read at every later layer. The loop runs one of them at a
time; `TraceRouter.edges` stacks units and prompts. Both give the influence of every source unit on every unit of the
path, which must agree to 1e-5 of the largest. Tracing (both passes, autoencoders given) is set beside one plain forward
pass over the same prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng
from aisec_common.torch.device import resolve_device
from aisec_common.torch.hf_load import load_causal_lm
from aisec_common.torch.hf_tiny_lm import tiny_lm
from aisec_common.torch.hf_tokenizer import word_tokenizer
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder

from tracerouter.hf_router import TraceRouter
from tracerouter.pairs import Pair
from tracerouter.path import Trace, hidden_size
from tracerouter.suppression import cut_units

TOPICS = ("rain", "beer")
WORDS = ("answer", "this", "in", "the", "morning", "long", "walk", "by", "sea", "and", "hill", "many", "small", "birds")


def made_pairs(count: int) -> list[Pair]:
    """Prompts of twelve words in which one of them differs."""
    rng = torch_rng(0, "prompts")
    drawn = torch.randint(len(WORDS), (count, 11), generator=rng).tolist()
    rests = [" ".join(WORDS[i] for i in row) for row in drawn]
    return [Pair(sensitive=f"{TOPICS[0]} {rest}", matched=f"{TOPICS[1]} {rest}") for rest in rests]


def one_at_a_time(router: TraceRouter, trace: Trace, pairs: list[Pair]) -> dict[Any, torch.Tensor]:
    """The edges of the path by a forward pass for each prompt and source unit."""
    (start,) = [key for key in trace.path if key[0] == trace.onset]
    ends = [key for key, units in trace.path.items() if key[0] > trace.onset and len(units)]
    total = {end: torch.zeros(len(trace.path[start]), len(trace.path[end]), dtype=torch.float64) for end in ends}
    tokens = 0
    for pair in pairs:
        clean = {end: trace.saes[end].encode(rows) for end, rows in router.read([pair.sensitive], ends).items()}
        tokens += len(clean[ends[0]])
        for s, unit in enumerate(trace.path[start]):
            change = {start: cut_units(trace.unit, trace.saes.get(start), unit.view(1))}
            cut = router.read([pair.sensitive], ends, change)
            for end in ends:
                moved = (clean[end] - trace.saes[end].encode(cut[end])).abs().double().sum(0).cpu()
                total[end][s] += moved[trace.path[end]]
    return {(start, end): moved / tokens for end, moved in total.items()}


def measure(name: str, model: Any, tokenizer: Any, prompts: int, units: int, stack: int) -> list[dict[str, object]]:
    pairs, d = made_pairs(prompts), hidden_size(model)
    blocks = TraceRouter(model, tokenizer).blocks
    onset = blocks // 3
    saes = {(layer, "resid"): SparseAutoencoder(d, 4 * d, k=32, seed=layer) for layer in range(onset, blocks)}
    router = TraceRouter(model, tokenizer, onset=onset, saes=saes, k=units, batch_size=8)

    start = time.perf_counter()
    for side in ("sensitive", "matched"):
        for first in range(0, prompts, 8):
            router.read([getattr(pair, side) for pair in pairs[first : first + 8]], [(0, "resid")])
    forward = time.perf_counter() - start
    start = time.perf_counter()
    trace = router.fit(pairs)
    fit = time.perf_counter() - start

    count = prompts * len(trace.path[onset, "resid"])
    start = time.perf_counter()
    batched = router.edges(trace, pairs, stack=stack)
    fast = count / (time.perf_counter() - start)
    start = time.perf_counter()
    looped = one_at_a_time(router, trace, pairs)
    slow = count / (time.perf_counter() - start)
    largest = max(moved.max().item() for moved in looped.values())
    apart = max((batched[key].cpu() - looped[key]).abs().max().item() for key in looped) / largest
    if apart > 1e-5:
        raise SystemExit(f"batched and one-at-a-time influence differ by {apart:.1e} of the largest")
    print(f"{name}\nzero-outs per second: batched {fast:.1f}, one at a time {slow:.1f}, ratio {fast / slow:.2f}")
    print(f"largest difference of the two: {apart:.1e} of the largest influence, {largest:.3g}")
    print(f"tracing {fit:.2f} s, plain forward over the same prompts {forward:.2f} s, ratio {fit / forward:.2f}")
    cases = (
        ("zero-outs per second", fast, "one at a time", slow, fast / slow),
        ("tracing, s", fit, "plain forward, s", forward, fit / forward),
        ("difference of the influences", apart, "of the largest", 1.0, apart),
    )
    return [
        {"model": name, "case": case, "ours": ours, "peer": peer, "theirs": theirs, "ratio": ratio}
        for case, ours, peer, theirs, ratio in cases
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Zero-outs per second, batched over one at a time.")
    parser.add_argument("--model", help="also measure this checkpoint, folder or org/name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--units", type=int, default=16, help="source units, and units of the path at each layer")
    parser.add_argument("--stack", type=int, default=8, help="source units zeroed in one forward pass")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer: Any = word_tokenizer([*TOPICS, *WORDS])
    model: Any = tiny_lm(tokenizer, layers=6, width=256, heads=4)
    sizes = (given.prompts, given.units, given.stack)
    rows = measure("random Llama, 6 blocks, d = 256", model.to(resolve_device(given.device)), tokenizer, *sizes)
    if given.model:
        model, tokenizer = load_causal_lm(given.model, device=given.device, dtype=torch.float32)
        rows += measure(given.model, model, tokenizer, *sizes)
    if given.out is not None:
        made = {"versions": env.versions("aisec-tracerouter"), "device": env.device(), "command": env.command()}
        write_atomic(given.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
