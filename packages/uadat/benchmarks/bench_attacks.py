"""Our PGD and EOT steps beside those of torchattacks and ART: `python benchmarks/bench_attacks.py [--out FILE]`.

All attack one model with the same images, eps, steps and step size, from the clean images, so that they should break
the same ones: accuracies more than 1 pp apart stop the benchmark. EOT-PGD is exempt from that, because each draws
noise of its own: Gaussian on the input, 8 draws a step; the peer passes them one at a time, and ART has no such attack
for images. `early stop` leaves broken images alone, which only we do. Seconds are those of one processor core (on an
accelerator: of the clock); all attacks take turns, and a ratio is the median over the rounds. Throughput is images
times steps a second.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch
import torchattacks
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.seeding import torch_rng
from aisec_common.torch.device import resolve_device
from aisec_common.torch.linf_pgd import linf_pgd
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn

EPS, STEPS, DRAWS, SPREAD = 0.1, 20, 8, 0.1
RUNS, OURS = 9, "ours"
POINT = 0.01
Attack = Callable[[], Tensor]
Row = dict[str, object]


class Noisy(nn.Module):
    """Adds Gaussian noise to the input of `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + SPREAD * torch.randn_like(images))


def trained(width: int, images: Tensor, labels: Tensor) -> nn.Module:
    """Five convolutions of `width` and 2 `width` channels, a few epochs of PGD training."""
    sizes = [
        (1, width, 1),
        (width, width, 1),
        (width, 2 * width, 2),
        (2 * width, 2 * width, 1),
        (2 * width, 2 * width, 1),
    ]
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride=stride, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b, stride in sizes
    ]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            block[0].reset_parameters()
        head = nn.Linear(2 * width, 10)
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).to(images.device)
    optimizer, rng = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), torch_rng(0, "train")
    for _ in range(15):
        for part in torch.randperm(len(images), generator=rng).split(100):
            x = linf_pgd(net, images[part], labels[part], eps=EPS, steps=2, generator=rng)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), labels[part]).backward()
            optimizer.step()
    return net.eval()


def seconds(attacks: Mapping[str, Attack], device: torch.device) -> dict[str, list[float]]:
    """Of each attack, its seconds in every round; all take turns, so that a busy machine slows all of them alike."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    spent: dict[str, list[float]] = {name: [] for name in attacks}
    for turn in range(RUNS + 1):
        for name, attack in attacks.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = clock()
            attack()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first only warms up
                spent[name].append(clock() - begin)
    return spent


def art_pgd(model: nn.Module, images: Tensor, labels: Tensor) -> Attack:
    classifier = PyTorchClassifier(
        copy.deepcopy(model),  # ART leaves a model in another mode
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if images.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=EPS, eps_step=EPS / 4, max_iter=STEPS, batch_size=len(images), verbose=False
    )
    x, y = images.cpu().numpy(), labels.cpu().numpy()
    return lambda: torch.tensor(attack.generate(x, y)).to(images)


def cases(model: nn.Module, images: Tensor, labels: Tensor) -> list[tuple[str, Attack, dict[str, Attack]]]:
    """Case, our attack, the peers'."""
    noisy = Noisy(model).eval()
    ours = {"eps": EPS, "steps": STEPS, "start": "zero"}
    peer = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=STEPS, random_start=False)
    eot = torchattacks.EOTPGD(noisy, eps=EPS, alpha=EPS / 4, steps=STEPS, eot_iter=DRAWS, random_start=False)
    peers = {"torchattacks": lambda: peer(images, labels), "art": art_pgd(model, images, labels)}
    pooled = {"torchattacks": lambda: eot(images, labels)}
    return [
        ("PGD", lambda: linf_pgd(model, images, labels, **ours), peers),
        ("PGD, early stop", lambda: linf_pgd(model, images, labels, early_stop=True, **ours), peers),
        ("EOT-PGD", lambda: linf_pgd(noisy, images, labels, draws=DRAWS, **ours), pooled),
    ]


def measure(width: int, batches: list[int], device: torch.device) -> list[Row]:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32, device=device)[:, None] / 16
    labels = torch.tensor(data.target, device=device)
    model = trained(width, images[:1000], labels[:1000])
    rows = []
    for batch in batches:
        x, y = images[1000:][:batch], labels[1000:][:batch]
        for case, ours, peers in cases(model, x, y):
            attacks = {OURS: ours, **peers}
            left = {name: accuracy(model, attack(), y) for name, attack in attacks.items()}
            spent = seconds(attacks, device)
            for name in peers:
                if case != "EOT-PGD" and abs(left[OURS] - left[name]) > POINT:
                    raise SystemExit(
                        f"{case}, batch {batch}: accuracy {left[OURS]:.3f} under ours, {left[name]:.3f} under {name}"
                    )
                rows.append(row(f"{case}, width {width}, batch {batch}", name, spent, left, batch))
                told = f"accuracy {left[OURS]:.3f} / {left[name]:.3f}"
                print(f"{rows[-1]['case']:40} {name:13} x {rows[-1]['ratio']:.2f}  {told}", flush=True)
    return rows


def row(case: str, peer: str, spent: Mapping[str, list[float]], left: Mapping[str, float], batch: int) -> Row:
    ours, theirs = spent[OURS], spent[peer]
    return {
        "case": case,
        "quantity": "image steps a second",
        "ours": batch * STEPS / median(ours),
        "peer": peer,
        "theirs": batch * STEPS / median(theirs),
        "ratio": median(b / a for a, b in zip(ours, theirs, strict=True)),
        "ratio of": "ours/peer",
        "accuracy under ours": left[OURS],
        "accuracy under peer": left[peer],
    }


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="PGD and EOT steps beside torchattacks and ART.")
    parser.add_argument("--width", type=int, nargs="+", default=[16], help="channels of the first convolutions")
    parser.add_argument("--batch", type=int, nargs="+", default=[50, 300], help="images attacked together, 797 at most")
    parser.add_argument("--device", default="cpu", help="'auto', 'cpu', 'cuda'")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    torch.set_num_threads(1)
    rows = [found for width in arguments.width for found in measure(width, arguments.batch, device)]
    if arguments.out is not None:
        made = {
            "versions": env.versions("aisec-uadat")
            | env.versions("torchattacks")
            | env.versions("adversarial-robustness-toolbox"),
            "device": str(device) if device.type != "cpu" else env.device(),
            "command": env.command(),
        }
        write_atomic(arguments.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
