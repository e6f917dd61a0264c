"""What a game costs beside other ways to measure it: `python benchmarks/bench_estimation.py [--out FILE]`.

Walks: SPQE as a user would write it (at every step the demoted block's linears are quantised again and the whole model
runs; only the all-high weights are kept) beside `model_game` and `play`, on untrained Llama models. Ours quantises 2 L
blocks, the naive walk L (M + 1) of them, so few walks understate it.

Shapley values: evaluations and seconds until the root mean square error against the exact values, over all players and
20 seeds, is 5 % of their mean size. Peers are shapiq's permutation sampling and its KernelSHAP with paired coalitions.
Games are tables, so seconds are those of the estimators alone. Planted games are pairwise: an antithetic pair of walks
is exact there by construction. The saturating one, 1 - exp(-2 v / v(all)), has interactions of all orders.

Memory: peak resident memory of a fresh process while one walk of 256 tokens through a model of 24 blocks is played,
quantising and hidden states included, less what the process held before the model was built, over the bytes of the
model's parameters. The last row fixes glibc's mmap threshold, which otherwise grows with the tensors that were freed,
so that later ones split the heap instead of going back to the system.

Seconds are those of one processor core, as the system counts them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng
from aisec_common.torch.hf_tiny_lm import tiny_lm
from shapiq.approximator import KernelSHAP, PermutationSamplingSV
from torch import Tensor, nn

from impq.backend import get_backend
from impq.estimate import model_game
from impq.header import GameHeader
from impq.play import Schedule, play
from impq.spqe import Floats
from impq.table_games import planted_game
from impq.value import TableValue, exhaustive

BITS = (4, 2)
VOCABULARY = 512
SEEDS = 20
TARGET = 0.05  # root mean square error over the mean size of the exact values
MIB = 2**20
UNSPLIT = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16)}  # glibc reads them at start

Row = dict[str, object]
Found = tuple[Floats, int]  # Shapley values, evaluations


def row(case: str, quantity: str, ours: float, peer: str, peers: float, ratio: str) -> Row:
    """One comparison; `ratio` says which over which."""
    value = peers / ours if ratio == "peer/ours" else ours / peers
    return {
        "case": case,
        "quantity": quantity,
        "ours": ours,
        "peer": peer,
        "theirs": peers,
        "ratio": value,
        "ratio of": ratio,
    }


# ---------------------------------------------------------------- walks


def spread_lm(layers: int, width: int, heads: int = 4) -> nn.Module:
    """An untrained Llama whose linears are scaled up, so that 2 bit changes its loss by far more than rounding."""
    model = tiny_lm(VOCABULARY, layers=layers, width=width, heads=heads)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(4)
    return model


def tokens(rows: int, window: int) -> Tensor:
    return torch.randint(VOCABULARY, (rows, window), generator=torch_rng(0, "tokens"))


def naive_walks(model: nn.Module, ids: Tensor, group: int, header: GameHeader, walks: int) -> tuple[Floats, int]:
    """Losses (walks, L) of the walks, each from the all-high model on, and the number of whole forward passes."""
    backend, evaluations = get_backend("rtn"), 0
    full = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    work = copy.deepcopy(model)

    def demote(player: int, bits: int) -> None:
        for module in header.players[player].modules:
            packed = backend.quantize_linear(full[f"{module}.weight"], bits, group_size=group)
            work.get_submodule(module).weight.copy_(packed.dequantize())

    def loss() -> float:
        nonlocal evaluations
        evaluations += 1
        return float(work(input_ids=ids, labels=ids, use_cache=False).loss)

    losses = np.empty((walks, len(header.players)))
    with torch.no_grad():
        for player in range(len(header.players)):
            demote(player, BITS[0])
        high = copy.deepcopy(work.state_dict())
        for m in range(walks):
            work.load_state_dict(high)
            loss()
            for k, player in enumerate(header.walks.order(m).tolist()):
                demote(player, BITS[1])
                losses[m, k] = loss()
    return losses, evaluations


def walk_rows(layers: int, walks: int, schedules: Sequence[Schedule]) -> list[Row]:
    model, ids, group = spread_lm(layers, 96), tokens(4, 128), 32
    header = model_game(model, ids, bits=BITS, group_size=group).header
    start = time.process_time()
    losses, evaluations = naive_walks(model, ids, group, header, walks)
    naive = time.process_time() - start
    rows = []
    for schedule in schedules:
        start = time.process_time()
        found = model_game(model, ids, bits=BITS, group_size=group, weights="resident")
        game = play(found.value, header, walks, schedule=schedule)
        seconds = time.process_time() - start
        if (worst := np.abs(losses - game.losses).max()) > 1e-5 or np.ptp(losses) < 1e-2:
            raise SystemExit(f"L = {layers}: naive losses differ by {worst:.1e}, range {np.ptp(losses):.1e}")
        case, forwards = f"L = {layers}, {walks} walks, {schedule}", found.value.n_block_forwards
        rows.append(row(case, "block-forwards", forwards, "naive walk", evaluations * layers, "peer/ours"))
        rows.append(row(case, "seconds", seconds, "naive walk", naive, "peer/ours"))
    return rows


# ---------------------------------------------------------------- Shapley values


def exact_shapley(table: Floats) -> Floats:
    """phi_i = mean over sizes of the mean of v(S + i) - v(S) over the coalitions S of that size without i."""
    players = len(table).bit_length() - 1
    coalitions = np.arange(len(table))
    sizes = np.bitwise_count(coalitions)
    phi = np.empty(players)
    for i in range(players):
        without = coalitions[coalitions >> i & 1 == 0]
        weight = 1 / (players * np.array([math.comb(players - 1, s) for s in range(players)]))
        phi[i] = weight[sizes[without]] @ (table[without | 1 << i] - table[without])
    return phi


def ours(table: Floats, header: GameHeader, budget: int, seed: int, antithetic: bool) -> Found:
    players = len(header.players)
    game = play(
        TableValue(table), replace(header, antithetic=antithetic, seed=seed), (budget - 2) // (players - 1) // 2 * 2
    )
    return game.shapley, game.n_evaluations


def shapiq_values(approximator: Callable[..., Any], table: Floats, budget: int, seed: int, **options: bool) -> Found:
    players, evaluations = len(table).bit_length() - 1, 0

    def value(coalitions: np.ndarray) -> Floats:
        nonlocal evaluations
        coalitions = np.atleast_2d(coalitions)
        evaluations += len(coalitions)
        return table[coalitions @ (1 << np.arange(players))]

    found = approximator(n=players, random_state=seed, **options).approximate(budget=budget, game=value)
    return found.get_n_order_values(1), evaluations


def cost_of(estimate: Callable[[int, int], Found], exact: Floats) -> tuple[float, float] | None:
    """Mean evaluations and seconds at the smallest budget tried whose error is within the target."""
    players, walks = len(exact), 2
    while (budget := 2 + walks * (players - 1)) < 20_000:
        start = time.process_time()
        runs = [estimate(budget, seed) for seed in range(SEEDS)]
        seconds = (time.process_time() - start) / SEEDS
        error = np.sqrt(np.mean([(phi - exact) ** 2 for phi, _ in runs]))
        if error <= TARGET * np.abs(exact).mean():
            return float(np.mean([evaluations for _, evaluations in runs])), seconds
        walks += max(2, walks // 10 * 2)
    return None


def shapley_rows(name: str, table: Floats, header: GameHeader) -> list[Row]:
    exact = exact_shapley(table)
    costs = {
        "independent walks": cost_of(lambda budget, seed: ours(table, header, budget, seed, False), exact),
        "antithetic walks": cost_of(lambda budget, seed: ours(table, header, budget, seed, True), exact),
    }
    peers = {
        "shapiq permutation": cost_of(lambda b, seed: shapiq_values(PermutationSamplingSV, table, b, seed), exact),
        "shapiq KernelSHAP": cost_of(
            lambda b, seed: shapiq_values(KernelSHAP, table, b, seed, pairing_trick=True), exact
        ),
    }
    rows = []
    for kind, mine in costs.items():
        for peer, theirs in peers.items():
            if mine is None or theirs is None:
                raise SystemExit(f"{name}: {kind if mine is None else peer} does not reach {TARGET:.0%}")
            for q, quantity in enumerate(("evaluations", "seconds")):
                rows.append(row(f"{name}, {kind}", quantity, mine[q], peer, theirs[q], "peer/ours"))
    return rows


def table_rows() -> list[Row]:
    rows = []
    for pattern in ("positive", "signed"):
        game = planted_game(pattern, 0)
        rows += shapley_rows(f"planted {pattern}, L = 12", game.calibration, game.header)
        if pattern == "positive":
            table = 1 - np.exp(-2 * game.calibration / game.calibration[-1])
            rows += shapley_rows("saturating, L = 12", table, game.header)
    found = model_game(spread_lm(8, 96), tokens(2, 128), bits=BITS, group_size=32, weights="resident")
    return rows + shapley_rows("untrained Llama, L = 8", exhaustive(found.value, 8), found.header)


# ---------------------------------------------------------------- memory


def peak_of_play(weights: str, dtype: str) -> tuple[float, float]:
    """MiB that a game needs at its peak, its model included, and MiB of the model's parameters."""
    torch.set_num_threads(1)
    torch.set_default_dtype(getattr(torch, dtype))  # a model converted afterwards would leave its fp32 self behind

    def game_of(model: nn.Module) -> None:
        found = model_game(model, tokens(2, 128), bits=BITS, group_size=64, weights=weights)
        play(found.value, found.header, 1)

    game_of(tiny_lm(VOCABULARY))  # loads every library before the baseline is read
    env.reset_peak_memory()
    baseline = env.peak_memory_mib()
    model = tiny_lm(VOCABULARY, layers=24, width=512, heads=8)
    env.reset_peak_memory()
    game_of(model)
    return env.peak_memory_mib() - baseline, sum(p.nbytes for p in model.parameters()) / MIB


def memory_rows() -> list[Row]:
    cases = (("packed", "float32"), ("resident", "float32"), ("packed", "bfloat16"))
    rows = [memory_row(f"{weights}, {dtype}", weights, dtype) for weights, dtype in cases]
    with mock.patch.dict(os.environ, UNSPLIT):
        return [*rows, memory_row("packed, bfloat16, fixed mmap threshold", "packed", "bfloat16")]


def memory_row(case: str, weights: str, dtype: str) -> Row:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak, size = pool.submit(peak_of_play, weights, dtype).result()
    return row(case, "peak MiB", peak, "model alone", size, "ours/peer")


# ---------------------------------------------------------------- script


def measure() -> list[Row]:
    rows = shown(walk_rows(8, 50, ["walk", "trie"]))
    rows += shown(walk_rows(16, 12, ["walk", "trie"]))
    rows += shown(walk_rows(32, 4, ["walk"]))
    rows += shown(table_rows())
    return rows + shown(memory_rows())


def shown(rows: list[Row]) -> list[Row]:
    """Prints the rows and returns them."""
    for r in rows:
        print(f"{r['case']:44}{r['quantity']:16}{r['ours']:12.4f}  {r['peer']:20}{r['theirs']:12.4f}", end="")
        print(f"{r['ratio']:10.2f} {r['ratio of']}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of impq's games beside other ways to measure them.")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    print(f"{'case':44}{'quantity':16}{'ours':>12}  {'peer':20}{'theirs':>12}{'ratio':>10}")
    rows = measure()
    if out is not None:
        made = {"versions": env.versions("aisec-impq"), "device": env.device(), "command": env.command()}
        write_atomic(out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
