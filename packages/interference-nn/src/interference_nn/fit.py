"""Training an interference network: heads first, then all weights, one forward and backward pass a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from aisec_common.study import content_hash
from aisec_common.torch.linf_pgd import evaluating, linf_pgd
from torch import Tensor

from interference_nn.draws import random_draws
from interference_nn.loss import check_labels, extra_class_loss, interference_loss
from interference_nn.net import InterferenceNet
from interference_nn.settings import ALPHA_RANGE
from interference_nn.training import Epoch, Loader, Objective, Parallel, Progress, Recipe, train

HEADS, ALL = "heads", "all"


def fit(
    net: InterferenceNet,
    loader: Loader,
    *,
    head_epochs: int = 1,
    finetune_epochs: int = 3,
    head_lr: float = 1e-3,
    lr: float = 1e-3,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    schedule: Literal["cosine", "onecycle", "constant"] = "cosine",
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.1,
    adversarial: bool = False,
    eps: float = 8 / 255,
    attack_steps: int = 2,
    seed: int = 0,
    folder: Path | None = None,
    accelerator: Parallel | None = None,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """Trains a network in place, in two stages, and leaves it in eval mode.

    Stage "heads": backbone frozen, BatchNorm in eval mode, the heads by AdamW at a constant rate. Stage "all": every
    weight. Each sample gets one background, drawn uniformly in every mode of inference.

    Args:
        net: to be trained, on its own device.
        loader: batches (images in [0, 1] of the bank's size, labels in 0..K-1); normalisation is the network's.
        head_epochs, head_lr: of the first stage.
        finetune_epochs, lr, optimizer, schedule, weight_decay: of the second.
        label_smoothing: of the target task, in both.
        adversarial: in the second stage, replace images by PGD ones that know the background of the step.
        eps: radius of those, in units of the images.
        attack_steps: 1-3 steps of PGD, of size eps / 2 (eps for one step).
        seed: of draws and order.
        folder: for `heads.pt` and `all.pt`, to resume from after a kill; what they hold must be of the same data, bank
            and settings, those of inference (mode, draws) apart.
        accelerator: an `accelerate.Accelerator`, for several processes.
        progress: called with (stage, steps done, steps in all).

    Returns:
        All epochs, with losses and counted passes of the backbone.

    Raises:
        ValueError: for labels or images out of range, an empty loader, a loss that is not finite, settings out of
            their range, or a folder of another training.

    Source: two stages as the paper's "pre-trained ResNet-152 makes training cheap" suggests; the numbers are ours.

    >>> from torch import nn
    >>> from interference_nn import ProceduralBackgrounds
    >>> bank = ProceduralBackgrounds(n=8, classes=4, size=4)
    >>> net = InterferenceNet.from_backbone(nn.Flatten(), classes=3, bank=bank)
    >>> history = fit(net, [(torch.rand(6, 3, 4, 4), torch.arange(6) % 3)], head_epochs=2, finetune_epochs=1)
    >>> [epoch.stage for epoch in history]
    ['heads', 'heads', 'all']
    """
    if adversarial and not (eps > 0 and 1 <= attack_steps <= 3):
        raise ValueError(f"eps must be positive and attack_steps 1, 2 or 3, not {eps} and {attack_steps}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
    heads = Recipe(epochs=head_epochs, lr=head_lr, optimizer="adamw", schedule="constant", weight_decay=weight_decay)
    whole = Recipe(epochs=finetune_epochs, lr=lr, optimizer=optimizer, schedule=schedule, weight_decay=weight_decay)

    made = {} if folder is None else {**_made_of(net), "label_smoothing": label_smoothing}

    def run(recipe: Recipe, stage: str, attack: _Attack | None = None, **settings: Any) -> tuple[Epoch, ...]:
        return train(
            net,
            loader,
            _objective(net, label_smoothing, attack),
            recipe,
            stage=stage,
            frozen=(net.backbone,) if stage == HEADS else (),
            count=net.backbone,
            seed=seed,
            folder=folder,
            settings={**made, **settings},
            accelerator=accelerator,
            progress=progress,
        )

    with evaluating(net.backbone):
        first = run(heads, HEADS)
    attack = _Attack(net, eps, attack_steps) if adversarial else None
    attacked = {"eps": eps, "attack_steps": attack_steps} if adversarial else {}
    # the second stage goes on from the weights of the first
    begun = {"head_epochs": head_epochs, "head_lr": head_lr}
    history = first + run(whole, ALL, attack, **begun, adversarial=adversarial, **attacked)
    net.eval()
    return history


def _made_of(net: InterferenceNet) -> dict[str, Any]:
    """What a training depends on of the network: not how it draws and averages at inference."""
    settings, bank = net.settings, net.bank
    return {
        "backbone": net.backbone.source,
        "weights": net.backbone.weights,
        "interference": settings.interference,
        "alpha": settings.alpha,
        "head": settings.head,
        "weight": settings.weight,
        "bank": content_hash(bank.images.cpu().numpy()) + content_hash(bank.labels.cpu().numpy()),
    }


class _Attack:
    """PGD on the image, through the background that this step draws."""

    def __init__(self, net: InterferenceNet, eps: float, steps: int) -> None:
        self.net, self.eps, self.steps = net, eps, steps

    def __call__(self, images: Tensor, labels: Tensor, run: _Run, generator: torch.Generator) -> Tensor:
        with evaluating(self.net):
            return linf_pgd(
                lambda seen: run(seen)[0],
                images,
                labels,
                eps=self.eps,
                steps=self.steps,
                step_size=self.eps if self.steps == 1 else self.eps / 2,
                generator=generator,
                max_batch=len(images),  # the backgrounds are those of the whole batch, in order
            )


class _Run:
    """The network through backgrounds that were drawn once for a batch."""

    def __init__(self, net: InterferenceNet, batch: int, generator: torch.Generator) -> None:
        self.net = net
        self.draws = random_draws(batch, 1, len(net.bank_images), generator=generator)
        self.alpha: Tensor | None = None
        if net.settings.alpha == "random":
            low, high = ALPHA_RANGE
            self.alpha = low + (high - low) * torch.rand(batch, generator=generator)
        self.labels = net.bank_labels[self.draws.backgrounds[:, 0].to(net.bank_labels.device)]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        target, background = self.net.logits_of(images, self.draws, self.alpha)
        return target[:, 0], background[:, 0]


def _objective(net: InterferenceNet, label_smoothing: float, attack: _Attack | None) -> Objective:
    settings = net.settings

    def superposed(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        check_labels(labels, net.classes)
        run = _Run(net, len(images), generator)
        if attack is not None:
            images = attack(images, labels, run, generator)
        target, background = run(images)
        yield interference_loss(
            target,
            background,
            labels,
            run.labels,
            weight=settings.weight,
            head=settings.head,
            label_smoothing=label_smoothing,
        )

    def extra_class(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        check_labels(labels, net.classes)
        run = _Run(net, len(images), generator)
        if attack is not None:
            images = attack(images, labels, run, generator)
        added = round(settings.weight * len(images))
        chosen = torch.randint(len(net.bank_images), (added,), generator=generator).to(net.bank_images.device)
        samples = torch.cat([images, net.bank_images[chosen].to(images)])
        wanted = torch.cat([labels, net.classes + net.bank_labels[chosen]])
        target, background = net.logits_of(samples, random_draws(len(samples), 1, 1, generator=generator))
        both = torch.cat([target[:, 0], background[:, 0]], dim=1) if added else target[:, 0]
        yield extra_class_loss(both, wanted, len(images), label_smoothing=label_smoothing)

    return extra_class if settings.head == "extra_class" else superposed
