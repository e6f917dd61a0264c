"""What interference networks are measured against: other trainings of one classifier, and an average over noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from aisec_common.torch.linf_pgd import check_images, linf_pgd
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from interference_nn.loss import check_labels
from interference_nn.net import images_at_once
from interference_nn.training import Epoch, Loader, Objective, Parallel, Progress, Recipe, train

Method = Literal["plain", "mixup", "at", "free", "fast"]
METHODS: tuple[Method, ...] = ("plain", "mixup", "at", "free", "fast")


def fit_baseline(
    model: nn.Module,
    loader: Loader,
    method: Method,
    recipe: Recipe,
    *,
    eps: float | None = None,
    steps: int = 7,
    replays: int = 4,
    label_smoothing: float = 0.1,
    seed: int = 0,
    folder: Path | None = None,
    accelerator: Parallel | None = None,
    progress: Progress | None = None,
) -> tuple[Epoch, ...]:
    """Trains a classifier in place by a baseline method and leaves it in eval mode.

        plain: CE(f(x), y)
        mixup: m CE(f(u), y) + (1 - m) CE(f(u), y'),  u = m x + (1 - m) x',  m ~ U(0, 1) = Beta(1, 1)
        at:    CE(f(x*), y), x* by PGD of `steps` steps of 2.5 eps / steps from a uniform start
        fast:  the same with one step of 1.25 eps
        free:  every batch `replays` times, one perturbation d <- clip(d + eps sign grad) growing along: each backward
               pass serves weights and image, so that a replay costs what a plain step costs

    Args:
        model: from images in [0, 1] to logits [B, K], normalisation inside.
        loader: batches (images, labels).
        method: see above.
        recipe: of the optimiser; for equal compute give "free" epochs / replays and "at" epochs / (steps + 1).
        eps: radius, for "at", "fast" and "free".
        steps: of "at".
        replays: of "free"; the learning rate moves on once a batch.
        label_smoothing: of every loss.
        seed, folder, accelerator, progress: as in `train`.

    Returns:
        The epochs with losses and counted passes.

    Raises:
        ValueError: for an unknown method, a missing eps, or what `train` refuses.

    Source: Zhang et al., ICLR 2018 (mixup); Madry et al., ICLR 2018 (AT); Shafahi et al., NeurIPS 2019 (free; theirs
    carries d over to the next batch, ours starts it anew, uniformly); Wong et al., ICLR 2020 (fast).
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if method in ("at", "free", "fast") and not (eps is not None and eps > 0):
        raise ValueError(f"eps must be positive for method {method!r}, in units of the images, not {eps}")
    if min(steps, replays) < 1:
        raise ValueError(f"steps and replays must be at least 1, not {steps} and {replays}")
    uses = {"at": {"eps": eps, "steps": steps}, "fast": {"eps": eps}, "free": {"eps": eps, "replays": replays}}
    return train(
        model,
        loader,
        _objective(model, method, eps or 0.0, steps, replays, label_smoothing),
        recipe,
        stage=method,
        seed=seed,
        folder=folder,
        settings={**uses.get(method, {}), "label_smoothing": label_smoothing},
        accelerator=accelerator,
        progress=progress,
    )


def _objective(
    model: nn.Module, method: Method, eps: float, steps: int, replays: int, label_smoothing: float
) -> Objective:
    def loss(images: Tensor, *targets: tuple[float, Tensor]) -> Tensor:
        logits = model(images)
        if not isinstance(logits, Tensor):
            raise TypeError(f"model must return logits [B, K], not {type(logits).__name__}; wrap it to return them")
        for _, labels in targets:
            check_labels(labels, logits.shape[1])
        shares = [share * cross_entropy(logits, labels, label_smoothing=label_smoothing) for share, labels in targets]
        return torch.stack(shares).sum()

    def plain(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        check_images(images)
        yield loss(images, (1.0, labels))

    def mixup(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        check_images(images)
        share = float(torch.rand((), generator=generator, device=generator.device))
        other = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
        yield loss(share * images + (1 - share) * images[other], (share, labels), (1 - share, labels[other]))

    def adversarial(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        count, size = (steps, 2.5 * eps / steps) if method == "at" else (1, 1.25 * eps)
        attacked = linf_pgd(
            model, images, labels, eps=eps, steps=count, step_size=size, generator=generator, max_batch=len(images)
        )
        yield loss(attacked, (1.0, labels))

    def free(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        check_images(images)
        low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
        noise = torch.rand(images.shape, generator=generator, device=generator.device).to(images)
        attacked = (images + eps * (2 * noise - 1)).clamp(low, high)
        for _ in range(replays):
            attacked = attacked.detach().requires_grad_()
            yield loss(attacked, (1.0, labels))
            assert attacked.grad is not None  # the loop took it along with that of the weights
            attacked = (attacked.detach() + eps * attacked.grad.sign()).clamp(low, high)

    return {"plain": plain, "mixup": mixup, "at": adversarial, "fast": adversarial, "free": free}[method]


class NoiseAverage(nn.Module):
    """A classifier averaged over Gaussian noise on its input: is it the backgrounds, or any randomness?

        p(x) = (1/M) sum_m softmax(f(clip(x + sigma n_m, 0, 1))),    n_m ~ N(0, 1),    returned: log p(x)

    Args:
        classifier: f, from images in [0, 1] to logits [B, K].
        sigma: standard deviation of the noise, in units of the images; a * std(backgrounds) is what `superpose` adds.
        draws: M.

    Raises:
        ValueError: if sigma is negative or draws < 1.

    >>> model = NoiseAverage(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), sigma=0.1, draws=4)
    >>> model(torch.rand(2, 1, 2, 2)).exp().sum(1).round(decimals=4).tolist()
    [1.0, 1.0]
    """

    random = True
    deterministic = False

    def __init__(self, classifier: nn.Module, *, sigma: float, draws: int = 8) -> None:
        super().__init__()
        if not sigma >= 0 or draws < 1:
            raise ValueError(f"sigma must not be negative and draws at least 1, not {sigma} and {draws}")
        self.classifier, self.sigma, self.draws = classifier, sigma, draws

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """log p with fresh noise; `generator` None takes torch's default one."""
        return self._over(images, self.draws, generator)

    def once(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """log p of one draw."""
        return self._over(images, 1, generator)

    def without_interference(self, images: Tensor) -> Tensor:
        """log softmax of the classifier alone."""
        check_images(images)
        log_p: Tensor = self.classifier(images).log_softmax(-1)
        return log_p

    def _over(self, images: Tensor, draws: int, generator: torch.Generator | None) -> Tensor:
        check_images(images)
        at_once = images_at_once(images, draws)
        device = "cpu" if generator is None else generator.device
        parts = []
        for part in torch.split(images, at_once):
            repeated = part[:, None].expand(-1, draws, -1, -1, -1).flatten(0, 1)
            noise = torch.randn(repeated.shape, generator=generator, device=device).to(repeated)
            parts.append(self.classifier((repeated + self.sigma * noise).clamp(0, 1)).unflatten(0, (len(part), draws)))
        logits = torch.cat(parts)
        if draws == 1:
            return logits[:, 0].log_softmax(-1)
        return logits.log_softmax(-1).logsumexp(1) - math.log(draws)
