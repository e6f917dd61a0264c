"""Refined references: what the adversary's predictions are aligned with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from aisec_common.torch.attack_schedule import attack_start
from aisec_common.torch.linf_pgd import Loss, evaluating, linf_pgd
from torch import Tensor, nn
from torch.nn import functional as F

from uadat.adversary import divergence_from, kl_adversary
from uadat.split import INPUT, split_pass
from uadat.statistics import ClassGaussians, instance_means

STEPS = 3


def adversary_and_reference(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    clean_logits: Tensor,
    *,
    eps: float,
    steps: int = 10,
    step_size: float | None = None,
    start: Literal["uniform", "normal", "zero"] | Tensor = "uniform",
    generator: torch.Generator | None = None,
    layer: str = INPUT,
    gaussians: ClassGaussians | None = None,
    weight: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """x_a of `kl_adversary`, and x_r: x where it is classified correctly, else an image nearer to its class.

        x_r <- clip(x_r - eps/3 sign grad [CE(f(x_r), y) + weight d(x_r, y)]), three times from x

    within its ball, where d is the distance of the feature means from the class's Gaussian. Where the descent did not
    reduce CE, x. The few images to refine are rows of the attack's first batches: alone, they would cost nearly what a
    batch does.

    Args:
        model: the classifier, run in eval mode; its mode and BatchNorm statistics stay as they are.
        images: x [B, C, H, W] in [0, 1].
        labels: y [B].
        clean_logits: f(x) [B, K] in eval mode.
        eps: radius.
        steps: of the attack.
        step_size: of the attack; default eps / 4.
        start: of the attack, see `linf_pgd`.
        generator: of the start.
        layer: where the features are taken.
        gaussians: of the feature means of each class; None leaves d out.
        weight: of d.

    Returns:
        x_a and x_r [B, C, H, W], detached, in the ball and in [0, 1]; x_r is bitwise x where x is classified correctly.

    Raises:
        ValueError: what `linf_pgd` and `split_pass` refuse.

    Source: arXiv 2411.02871, abstract ("refine the alignment reference"); the form is ours, after Dong et al., UIAT,
    CVPR 2023.
    """
    wrong = clean_logits.argmax(1) != labels
    if not wrong.any():
        attack = partial(kl_adversary, eps=eps, steps=steps, step_size=step_size, start=start, generator=generator)
        return attack(model, images, labels, clean_logits), images.detach()
    begin, aims = images[wrong].detach(), labels[wrong]
    both = _AttackAndDescent(model, labels, aims, divergence_from(clean_logits), steps, layer, gaussians, weight)

    def of_each(attack: float, descent: float) -> Tensor:
        return torch.cat([torch.full((len(part),), value) for part, value in ((images, attack), (begin, descent))])

    with evaluating(model):
        found = linf_pgd(
            both.logits,
            torch.cat([images, begin]),
            torch.cat([labels, aims]),
            eps=eps,
            steps=of_each(steps, STEPS + 1),
            step_size=of_each(step_size or eps / 4, eps / STEPS),
            loss=both.gain,
            start=torch.cat([attack_start(images, start, eps=eps, generator=generator), begin]),
        )
    adversarial, x = torch.split(found, [len(images), len(begin)])
    better = both.descended < F.cross_entropy(clean_logits[wrong], aims, reduction="none")
    x = torch.where(better[:, None, None, None], x, begin)
    return adversarial, images.detach().index_put((wrong.nonzero()[:, 0],), x)


@dataclass
class _AttackAndDescent:
    """What `linf_pgd` climbs: the divergence of the images to attack, then -CE - weight d of those to refine."""

    model: nn.Module
    labels: Tensor
    aims: Tensor
    divergence: Loss
    steps: int
    layer: str
    gaussians: ClassGaussians | None
    weight: float
    done: int = 0
    descended: Tensor = field(default_factory=lambda: torch.empty(0))
    """CE of the refined images."""

    @property
    def attacked(self) -> int:
        """Rows of this step that are attacked; they come first."""
        return len(self.labels) if self.done < self.steps else 0

    def logits(self, images: Tensor) -> Tensor:
        if self.gaussians is None or self.done >= STEPS:
            return self.model(images)  # type: ignore[no-any-return]
        return split_pass(self.model, self.model, self.layer, images, self._keep)

    def _keep(self, features: Tensor) -> Tensor:
        self.means = instance_means(features[self.attacked :])
        return features

    def gain(self, logits: Tensor, _: Tensor) -> Tensor:
        gains = [self.divergence(logits[: self.attacked], self.labels)] if self.attacked else []
        if self.done <= STEPS:
            loss = F.cross_entropy(logits[self.attacked :], self.aims, reduction="none")
            if self.done == STEPS:  # not a step: where the descent has led
                self.descended = loss.detach()
                loss = torch.zeros_like(self.descended)
            elif self.gaussians is not None:
                if self.done == 0:  # now that the labels are checked
                    self.distance = self.gaussians.distance_to(self.aims)
                loss = loss + self.weight * self.distance(self.means)
            gains.append(-loss)
        self.done += 1
        return torch.cat(gains)
