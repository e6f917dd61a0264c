"""What interference costs: `python benchmarks/bench_inference.py [--out FILE]`.

Ratios of seconds in one process, medians over repeats that take turns (seconds of the processor where the device is
one, which other load on the machine does not change; else of the clock):

- inference: an M-draw call over a plain call on the same images. The draws are rows of one batch, so that it should be
  close to M; a loop of M calls stands beside it.
- eot: an EOT gradient over E draws in one batch over E separate passes and backward passes.
- epoch: a training epoch by PGD-7 adversarial training over one of the interference network, same data and optimiser,
  beside the ratio of counted forward and backward passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.torch.linf_pgd import evaluating, input_gradient

from interference_nn import InterferenceNet, ProceduralBackgrounds, fit
from interference_nn.baselines import fit_baseline
from interference_nn.network import Classifier, conv_backbone
from interference_nn.training import Recipe

DRAWS = 8
CLASSES = 10

Row = dict[str, object]


def seconds(*calls: Callable[[], Any], repeats: int, device: torch.device) -> list[float]:
    """Medians of the calls, which take turns."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, times in zip(calls, taken, strict=True):
            start = clock()
            call()
            times.append(clock() - start)
    return [statistics.median(times) for times in taken]


def network(side: int, channels: int, width: int, device: str) -> tuple[InterferenceNet, torch.Tensor, torch.Tensor]:
    bank = ProceduralBackgrounds(n=64, classes=8, size=side, channels=channels)
    backbone = conv_backbone(channels=channels, width=width).to(device)
    net = InterferenceNet.from_backbone(backbone, classes=CLASSES, bank=bank, draws=DRAWS).eval()
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(128, channels, side, side, generator=rng).to(device)
    return net, images, torch.arange(128, device=device) % CLASSES


def inference(net: InterferenceNet, images: torch.Tensor, repeats: int) -> list[Row]:
    with evaluating(net), torch.no_grad():
        plain, folded, looped = seconds(
            lambda: net.without_interference(images).sum().item(),
            lambda: net(images).sum().item(),
            lambda: [net.once(images).sum().item() for _ in range(DRAWS)],
            repeats=repeats,
            device=images.device,
        )
    case = f"inference, M = {DRAWS}"
    return [row(case, folded, "plain call", plain, "ours/peer"), row(case, folded, "M calls", looped, "peer/ours")]


def eot(net: InterferenceNet, images: torch.Tensor, labels: torch.Tensor, repeats: int) -> list[Row]:
    few, few_labels = images[:32], labels[:32]
    with evaluating(net):
        folded, separate = seconds(
            lambda: input_gradient(net.once, few, few_labels, draws=DRAWS)[0].sum().item(),
            lambda: [input_gradient(net.once, few, few_labels)[0].sum().item() for _ in range(DRAWS)],
            repeats=repeats,
            device=images.device,
        )
    return [row(f"EOT gradient, E = {DRAWS}", folded, "E passes", separate, "peer/ours")]


def epoch(net: InterferenceNet, images: torch.Tensor, labels: torch.Tensor, repeats: int) -> list[Row]:
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    plain = Classifier(net.backbone, net.backbone.dim, CLASSES).to(images.device)
    recipe = Recipe(epochs=1, lr=1e-4, optimizer="adamw")
    passes: dict[str, float] = {}

    def ours() -> None:
        history = fit(net, batches, head_epochs=0, finetune_epochs=1, lr=1e-4, optimizer="adamw")
        passes["ours"] = history[0].passes_per_image

    def at() -> None:
        history = fit_baseline(plain, batches, "at", recipe, eps=8 / 255, steps=7)
        passes["at"] = history[0].passes_per_image

    mine, theirs = seconds(ours, at, repeats=repeats, device=images.device)
    peer = f"PGD-7 training, {passes['at'] / passes['ours']:.0f} times the passes"
    return [row("epoch of training", mine, peer, theirs, "peer/ours")]


def row(case: str, ours: float, peer: str, theirs: float, ratio: str) -> Row:
    return {
        "case": case,
        "s": ours,
        "peer": peer,
        "peer's s": theirs,
        "ratio": ours / theirs if ratio == "ours/peer" else theirs / ours,
        "ratio of": ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    rows: list[Row] = []
    for side, channels, width in ((8, 1, 24), (32, 3, 32)):
        net, images, labels = network(side, channels, width, given.device)
        measured = inference(net, images, given.repeats)
        measured += eot(net, images, labels, given.repeats)
        measured += epoch(net, images, labels, given.repeats)
        rows += [{"pixels": side, "width": width, **each} for each in measured]
    for each in rows:
        print(*(f"{value:.4g}" if isinstance(value, float) else value for value in each.values()), sep="\t")
    if given.out:
        made = {"versions": env.versions("aisec-interference-nn"), "device": env.device(), "command": env.command()}
        threads = torch.get_num_threads()
        write_atomic(given.out, json.dumps({"rows": rows, "threads": threads, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
