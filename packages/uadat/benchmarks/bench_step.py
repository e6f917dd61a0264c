"""Time of a training step beside plain TRADES: `python benchmarks/bench_step.py [--out FILE]`.

Every row is one method's step (attack, loss, backward, SGD) on the same network and batch, as a ratio to a plain TRADES
step written out here; the order is shuffled anew each round and the median over rounds is taken, of CPU seconds on a
CPU (others may be at work there) and of wall-clock seconds on a GPU. ART's trainer takes a whole epoch at a time: its
row is the epoch of one batch. Rows of logits and of their gradients are counted, too.

The share of misclassified images, which refinement pays for, is given. The small network has learned a little first
(TRADES, ten epochs on digits). The ResNet-18 has random weights and noise for images, EfficientNet-Lite0 those of
ImageNet and crops of photographs (`aisec data fetch efficientnet-lite0`, or there are no rows of it); of these two's
images one in sixteen is labelled otherwise than they say.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from aisec_common import env
from aisec_common.files import write_atomic
from aisec_common.torch.device import resolve_device
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from uadat.awp import AWP
from uadat.baselines import ATLoss, MARTLoss, TRADESLoss
from uadat.loss import UADLoss
from uadat.network import small_resnet
from uadat.passes import counted
from uadat.photographs import photographs
from uadat.robust_loss import RobustLoss
from uadat.timm_classifier import pretrained_lite0
from uadat.torchvision_resnet import SmallImageResNet18

LITE = "efficientnet-lite0"
EPS, STEPS = {"digits": 0.15, "resnet18": 8 / 255, LITE: 4 / 255}, 10
LAYER = {"digits": "stage2", "resnet18": "layer2", LITE: "blocks.2"}
BATCH = {"digits": 100, "resnet18": 16, LITE: 16}
ROUNDS = {"digits": 40, "resnet18": 5, LITE: 5}  # a round of the large ones takes a minute on one core
Step = Callable[[], None]


def plain_trades(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, optimizer: torch.optim.Optimizer
) -> Step:
    """The published loop: attack on the divergence in eval mode, two training passes."""

    def step() -> None:
        model.eval()
        clean = model(images).softmax(1).detach()
        adversarial = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(STEPS):
            adversarial.requires_grad_()
            loss = F.kl_div(model(adversarial).log_softmax(1), clean, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, adversarial)
            adversarial = adversarial.detach() + eps / 4 * gradient.sign()
            adversarial = torch.min(torch.max(adversarial, images - eps), images + eps).clamp(0, 1)
        model.train()
        optimizer.zero_grad()
        logits = model(images)
        divergence = F.kl_div(model(adversarial).log_softmax(1), logits.softmax(1), reduction="batchmean")
        (F.cross_entropy(logits, labels) + 6 * divergence).backward()
        optimizer.step()

    return step


def ours(loss: RobustLoss, model: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> Step:
    def step() -> None:
        optimizer.zero_grad()
        loss(model, images, labels).total.backward()
        optimizer.step()

    return step


def art_trades(model: nn.Module, images: Tensor, labels: Tensor, eps: float, optimizer: torch.optim.Optimizer) -> Step:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainerTRADESPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        input_shape=tuple(images.shape[1:]),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="gpu" if images.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=eps,
        eps_step=eps / 4,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=len(images),
        verbose=False,
    )
    trainer = AdversarialTrainerTRADESPyTorch(classifier, attack, beta=6.0)
    x, y = images.cpu().numpy(), labels.cpu().numpy()

    def step() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for each epoch, that is step
            trainer.fit(x, y, batch_size=len(x), nb_epochs=1)

    return step


def losses(eps: float, layer: str) -> dict[str, RobustLoss]:
    off = {"samples": 0, "refine": False, "stat": 0.0, "iga": 0.0}
    return {
        "AT": ATLoss(eps, STEPS),
        "TRADES": TRADESLoss(eps, steps=STEPS),
        "MART": MARTLoss(eps, steps=STEPS),
        "TRADES + AWP": AWP(TRADESLoss(eps, steps=STEPS)),
        "UAD, all off": UADLoss(eps, layer, warmup=0.0, **off),
        "+ dist": UADLoss(eps, layer, warmup=0.0, **{**off, "samples": 2}),
        "+ ref": UADLoss(eps, layer, warmup=0.0, **{**off, "refine": True}),
        "+ stat": UADLoss(eps, layer, warmup=0.0, **{**off, "stat": 0.1}),
        "+ iga": UADLoss(eps, layer, warmup=0.0, **{**off, "iga": 0.2}),
        "+ iga indirect": UADLoss(eps, layer, warmup=0.0, **{**off, "iga": 0.2}, iga_mode="indirect"),
        "UAD": UADLoss(eps, layer, warmup=0.0),
        "UAD indirect": UADLoss(eps, layer, warmup=0.0, iga_mode="indirect"),
    }


def learned_digits(network: str, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:500, None].to(device) / 16
    y = torch.tensor(data.target)[:500].to(device)
    model = small_resnet(10, seed=0).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(10):
        for rows in torch.randperm(500, generator=torch.Generator().manual_seed(epoch)).split(100):
            ours(TRADESLoss(EPS[network], steps=STEPS), model, x[rows], y[rows], optimizer)()
    return model, x, y


def labelled_by_the_model(network: str, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    if network == LITE:
        model, crops = pretrained_lite0(9), photographs(0, size=96, train=2, validation=9, test=1).train
        x = torch.stack([crops[index][0] for index in range(BATCH[network])])
    else:
        model = SmallImageResNet18(10)
        x = torch.rand(BATCH[network], 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model, x = model.to(device), x.to(device)
    model.train()(x)  # BatchNorm statistics of these images
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    y[::16] = (y[::16] + 1) % 9
    return model, x, y


def measure(network: str, device: torch.device) -> list[dict[str, object]]:
    torch.manual_seed(0)
    eps, batch, rounds = EPS[network], BATCH[network], ROUNDS[network]
    model, x, y = (learned_digits if network == "digits" else labelled_by_the_model)(network, device)
    images, labels = x[:batch], y[:batch]
    steps: dict[str, tuple[nn.Module, Step]] = {}

    def add(name: str, make: Callable[[nn.Module, torch.optim.Optimizer], Step]) -> None:
        own = copy.deepcopy(model).train()
        for part in own.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.0  # or predictions, and with them the images to refine, would drift from step to step
        steps[name] = own, make(own, torch.optim.SGD(own.parameters(), lr=1e-6, momentum=0.9))

    add("plain TRADES", lambda own, sgd: plain_trades(own, images, labels, eps, sgd))
    for name, loss in losses(eps, LAYER[network]).items():
        loss.to(device)
        add(name, lambda own, sgd, loss=loss: ours(loss, own, images, labels, sgd))
    try:
        add("ART TRADES", lambda own, sgd: art_trades(own, images, labels, eps, sgd))
    except ImportError:
        print("adversarial-robustness-toolbox is not installed: no row for it")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    passes: dict[str, tuple[float, float]] = {}
    for name, (own, step) in steps.items():  # not timed: first calls allocate
        with counted(own) as found:
            step()
        passes[name] = found.forward / batch, found.backward / batch
    order = list(steps)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            begin = clock()
            steps[name][1]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - begin)
    plain = statistics.median(seconds["plain TRADES"])
    model.eval()
    with torch.no_grad():
        wrong = float((model(images).argmax(1) != labels).float().mean())
    print(f"{network}: batch {batch}, {wrong:.0%} misclassified, plain TRADES {plain * 1e3:.1f} ms")
    rows: list[dict[str, object]] = []
    for name in steps:
        median = statistics.median(seconds[name])
        forward, backward = passes[name]
        row = {"network": network, "method": name, "seconds": median, "ratio": median / plain}
        rows.append(row | {"forward": forward, "backward": backward, "misclassified": wrong, "batch": batch})
        print(f"  {name:16} {median * 1e3:8.1f} ms  {median / plain:5.2f}  {forward:5.1f} fwd {backward:5.1f} bwd")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a training step beside plain TRADES.")
    parser.add_argument("--networks", nargs="+", default=list(EPS), choices=list(EPS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # ART's imports
    device = resolve_device(arguments.device)
    torch.set_num_threads(1)  # threads that wait for each other would count as work
    rows: list[dict[str, object]] = []
    for network in arguments.networks:
        try:
            rows += measure(network, device)
        except FileNotFoundError as missing:
            print(f"{network}: {missing}")
    if arguments.out is not None:
        made = {"versions": env.versions("aisec-uadat"), "device": env.device(), "command": env.command()}
        write_atomic(arguments.out, json.dumps({"rows": rows, **made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
