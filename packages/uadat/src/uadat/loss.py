"""The loss of uncertainty-aware distributional adversarial training."""

from __future__ import annotations

from typing import Any, Literal

import torch
from aisec_common.torch.linf_pgd import check_images, check_logits, evaluating
from torch import Tensor, nn
from torch.nn import functional as F

from uadat.adversary import draw_noise, kl_adversary, restyled, sampled_statistics
from uadat.distributed import group_of, unwrapped
from uadat.double_backward import with_short_double_backward
from uadat.gradient_alignment import (
    cosine_misalignment,
    input_gradients,
    slope_misalignment,
    squared_misalignment,
    warn_of_kinks,
)
from uadat.matching import prediction_alignment, statistics_distance
from uadat.reference import adversary_and_reference
from uadat.robust_loss import LossParts, RobustLoss, Views, check_radius
from uadat.split import Forward, head_pass, split_pass
from uadat.statistics import BatchUncertainty, ClassGaussians, instance_means, instance_statistics

BETA = {"trades": 6.0, "at": 4.0}


class UADLoss(RobustLoss):
    """Adversarial training against a distribution of adversaries around each adversarial image's features.

        L = CE(f(x_r), y) + beta L_align + stat L_stat + iga L_iga

    L_align matches the predictions at x_a and at M draws of its uncertain feature statistics with those at the refined
    reference x_r, L_stat the feature statistics themselves, L_iga the input gradients. With samples=0, refine=False,
    stat=0, iga=0 this is TRADES. The moving averages are buffers: they travel with `state_dict()`.

    Args:
        eps: radius of the l_inf ball, in units of images in [0, 1].
        layer: where the features are, a name of `model.named_modules()` (the end of a stage), or `"input"`.
        beta: weight of L_align; None is 6 for base `"trades"` and 4 for `"at"`.
        samples: M, draws of the feature statistics a step; training only, so the trained model is deterministic.
        kappa: their size, in standard deviations of the statistics over the batch.
        cov: `"diag"`, or `"lowrank"` for channels that vary together.
        refine: replace misclassified references by refined ones.
        refine_weight: weight of the distance from the class's Gaussian in the refinement.
        stat: weight of L_stat.
        iga: weight of L_iga.
        iga_metric: `"cos"` or `"l2"`.
        iga_mode: `"exact"` (double backward) or `"indirect"` (slopes along x_a - x_r; one more pass, half the memory).
        base: `"trades"`, CE on x_r, or `"at"`, CE on x_a.
        steps: of the attack.
        step_size: of the attack; default eps / 4.
        start: of the attack, `"uniform"` in the ball or `"normal"`, 0.001 N(0, 1).
        warmup: share of the training in which references are not refined: early on most are misclassified, and
            descent on their labels would tell them.

    Raises:
        ValueError: for a value out of range; in a step, for an unknown layer, images outside [0, 1], labels out of
            range, or a batch of one image before any larger one while samples > 0.

    Source: arXiv 2411.02871, abstract; the formulae are ours (README, "Limits").

    >>> UADLoss(8 / 255).beta
    6.0
    """

    eps: float

    def __init__(
        self,
        eps: float,
        layer: str = "layer2",
        beta: float | None = None,
        samples: int = 2,
        kappa: float = 0.5,
        cov: Literal["diag", "lowrank"] = "diag",
        refine: bool = True,
        refine_weight: float = 0.1,
        stat: float = 0.1,
        iga: float = 0.2,
        iga_metric: Literal["cos", "l2"] = "cos",
        iga_mode: Literal["exact", "indirect"] = "exact",
        base: Literal["trades", "at"] = "trades",
        steps: int = 10,
        step_size: float | None = None,
        start: Literal["uniform", "normal"] = "uniform",
        warmup: float = 0.2,
    ) -> None:
        super().__init__()
        choices = {"iga_metric": ("cos", "l2"), "iga_mode": ("exact", "indirect"), "base": ("trades", "at")}
        choices["start"] = ("uniform", "normal")
        for (name, allowed), choice in zip(choices.items(), (iga_metric, iga_mode, base, start), strict=True):
            if choice not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {choice!r}")
        self.eps, self.layer, self.beta = check_radius(eps), layer, BETA[base] if beta is None else beta
        weights = {"beta": self.beta, "samples": samples, "kappa": kappa, "refine_weight": refine_weight}
        for name, value in {**weights, "stat": stat, "iga": iga}.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, not {value}; 0 switches it off")
        if steps < 1 or not 0 <= warmup <= 1:
            raise ValueError(f"steps must be >= 1 and warmup in [0, 1], not {steps} and {warmup}")
        self.samples, self.kappa, self.cov = samples, kappa, cov
        self.refine, self.refine_weight, self.warmup = refine, refine_weight, warmup
        self.stat, self.iga, self.iga_metric, self.iga_mode = stat, iga, iga_metric, iga_mode
        self.base, self.steps, self.step_size, self.start = base, steps, step_size, start
        names = "eps layer beta samples kappa cov refine refine_weight stat iga iga_metric iga_mode base steps"
        self.settings = {name: getattr(self, name) for name in [*names.split(), "step_size", "start", "warmup"]}
        self.uncertainty = BatchUncertainty(cov)
        self.gaussians = ClassGaussians()

    @property
    def _uses_features(self) -> bool:
        return self.samples > 0 or self.stat > 0 or (self.refine and self.refine_weight > 0)

    def prepare(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Views:
        """x_a, x_r and the noise of one step; see `RobustLoss.forward`."""
        check_images(images)
        module = unwrapped(model)  # no gradient of a parameter here: nothing for processes to average
        if self.iga > 0 and self.iga_mode == "exact":
            warn_of_kinks(module)
        with evaluating(module):
            logits, features = self._clean(module, images)
            known = self.refine and self.refine_weight > 0
            if known and features is not None:
                right = logits.argmax(1) == labels
                means = instance_means(features)[right]
                self.gaussians.update(means, labels[right], logits.shape[1], group_of(model))
            batch = module, images, labels, logits
            attack: dict[str, Any] = {"eps": self.eps, "steps": self.steps, "step_size": self.step_size}
            attack |= {"start": self.start, "generator": generator}
            if self.refine and progress >= self.warmup:
                gaussians = self.gaussians if known else None
                adversarial, reference = adversary_and_reference(
                    *batch, layer=self.layer, gaussians=gaussians, weight=self.refine_weight, **attack
                )
            else:
                adversarial, reference = kl_adversary(*batch, **attack), images
        noise = None if not self.samples or features is None else draw_noise(self.samples, features, generator)
        refined = float((reference != images).flatten(1).any(1).float().mean())
        return Views(
            images=images,
            labels=labels,
            reference=reference,
            adversarial=adversarial,
            noise=noise,
            shares={"refined": refined},
        )

    @torch.no_grad()
    def _clean(self, module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the clean images, and the features there."""
        if not self._uses_features:
            return check_logits(module(images), len(images)), None
        seen: list[Tensor] = []

        def keep(features: Tensor) -> Tensor:
            seen.append(features)
            return features

        return split_pass(module, module, self.layer, images, keep), seen[0]

    def on(self, model: nn.Module, views: Views, forward: Forward | None = None) -> LossParts:
        """The loss on given x_r, x_a and noise; see `RobustLoss.on`."""
        run, labels, group = forward or model, views.labels, group_of(model)
        exact = self.iga > 0 and self.iga_mode == "exact"
        x_r, x_a = (images.detach().requires_grad_(exact) for images in (views.reference, views.adversarial))
        module, twice = unwrapped(model), with_short_double_backward(run) if exact else run
        means: list[Tensor] = []  # of x_r, of x_a
        drawn: list[Tensor] = []

        def at_reference(features: Tensor) -> Tensor:
            means.append(instance_means(features))
            return features

        def at_adversary(features: Tensor) -> Tensor:
            mean, std = instance_statistics(features)
            means.append(mean)
            if views.noise is not None:
                root, of_stds = self.uncertainty(mean, std, group)
                new = sampled_statistics(mean, std, root, of_stds, views.noise, self.kappa)
                drawn.append(restyled(features, mean, std, *new))
            return features

        if self._uses_features:
            logits_r = split_pass(twice, module, self.layer, x_r, at_reference)
            logits_a = split_pass(twice, module, self.layer, x_a, at_adversary)
        else:
            logits_r, logits_a = twice(x_r), twice(x_a)
        # the draws are a batch of their own: x_a has the logits and input gradients that it has without them
        draws = [head_pass(run, module, self.layer, x_a[:1], features) for features in drawn]
        logits = torch.cat([logits_a, *draws])

        terms = {
            "ce": F.cross_entropy(logits_r if self.base == "trades" else logits_a, labels),
            "align": prediction_alignment(logits_r, logits),
        }
        total = terms["ce"] + self.beta * terms["align"]
        if self.stat > 0:
            terms["stat"] = statistics_distance(means[0], means[1], group)
            total = total + self.stat * terms["stat"]
        if self.iga > 0:
            aligned = self._exact if exact else self._indirect
            terms["iga"], terms["iga_zero"] = aligned(run, x_r, x_a, logits_r, logits_a, labels)
            total = total + self.iga * terms["iga"]
        if means:
            terms["feature_norm"] = means[0].norm(dim=1).mean()
        return LossParts.of(total, terms, views.shares)

    def _exact(
        self, run: Forward, x_r: Tensor, x_a: Tensor, logits_r: Tensor, logits_a: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        gradients = input_gradients(logits_r, labels, x_r), input_gradients(logits_a, labels, x_a)
        return (cosine_misalignment if self.iga_metric == "cos" else squared_misalignment)(*gradients)

    def _indirect(
        self, run: Forward, x_r: Tensor, x_a: Tensor, logits_r: Tensor, logits_a: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        first, middle, last = (
            F.cross_entropy(logits, labels, reduction="none") for logits in (logits_r, run((x_r + x_a) / 2), logits_a)
        )
        return slope_misalignment(first, middle, last, (x_a - x_r).flatten(1).norm(dim=1), self.iga_metric)
