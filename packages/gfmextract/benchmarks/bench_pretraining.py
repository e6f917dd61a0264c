"""A step of pretraining over a step of extraction: `python benchmarks/bench_pretraining.py [--batch 32] [--out FILE]`.

Both steps move the same encoder on the same ego graphs: pretraining by the contrast with text vectors (once plainly,
once with three perturbed passes, once with the summaries encoded in every step in place of once), extraction by the
squared distance to answers. Processor seconds a step, lowest of three rounds. Half a minute on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng
from torch.nn.functional import mse_loss

from gfmextract.hf_text_tower import TextTower
from gfmextract.pretraining import PretrainingConfig, contrast
from gfmextract.pyg_ego import EgoGraphs, ego_graphs
from gfmextract.pyg_graph_clip import GraphClip, GraphClipConfig
from gfmextract.synthetic import World, summaries
from gfmextract.victim import encode_egos

ROUNDS, STEPS = 3, 10


def seconds(step: Callable[[torch.Tensor], object], parts: list[torch.Tensor]) -> float:
    """Processor seconds a step, the optimizer's included."""
    step(parts[0])
    rounds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for part in parts:
            step(part)
        rounds.append((time.process_time() - begin) / len(parts))
    return min(rounds)


def steps_of(world: World, egos: EgoGraphs, told: list[str], width: int) -> dict[str, Callable[[torch.Tensor], object]]:
    """What is timed, by name; each has an encoder of its own."""
    config = GraphClipConfig(width=width)
    texts = world.tower.encode(told)
    answers = encode_egos(GraphClip(config, features=64, tower=world.tower), egos)

    def contrastive(perturbed: int, again: bool) -> Callable[[torch.Tensor], object]:
        encoder = GraphClip(config, features=64, tower=world.tower, seed=1).train()
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
        settings = PretrainingConfig(perturbation_steps=perturbed)
        rng = torch_rng(0, "augmentations")

        def step(rows: torch.Tensor) -> None:
            some = texts[rows]
            if again:
                fresh = TextTower(world.tower.model, world.tower.tokenizer)
                some = fresh.encode([told[row] for row in rows.tolist()])
            optimizer.zero_grad()
            contrast(encoder, egos[rows].batch(), some, settings, rng)
            optimizer.step()

        return step

    student = GraphClip(config, features=64, tower=world.tower, seed=2).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)

    def regression(rows: torch.Tensor) -> None:
        optimizer.zero_grad()
        mse_loss(student(egos[rows].batch()), answers[rows]).backward()
        optimizer.step()

    return {
        "regression": regression,
        "contrast": contrastive(0, False),
        "contrast, 3 perturbed passes": contrastive(3, False),
        "contrast, texts encoded anew": contrastive(0, True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A pretraining step over an extraction step.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    world = World.of(0)
    (graph,) = world.domain(0)
    egos = ego_graphs(graph, torch.arange(len(graph)))
    told = summaries(graph, egos)
    order = torch_rng(0, "order")
    parts = [torch.randperm(len(egos), generator=order)[: given.batch] for _ in range(STEPS)]
    rows: list[dict[str, object]] = []
    print(f"{'width':>6}  {'step':30}{'ms':>8}{'over regression':>17}")
    for width in given.width:
        found = {name: seconds(step, parts) for name, step in steps_of(world, egos, told, width).items()}
        for name, each in found.items():
            ratio = each / found["regression"]
            print(f"{width:6}  {name:30}{each * 1e3:8.1f}{ratio:17.2f}", flush=True)
            rows.append({"width": width, "step": name, "seconds": each, "ratio": ratio})
    if given.out is not None:
        made = {"versions": env.versions("aisec-gfmextract"), "device": env.device(), "command": env.command()}
        write_atomic(given.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
