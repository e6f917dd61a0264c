"""Adversarial weight perturbation around any of the losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from uadat.distributed import group_of, sum_over, unwrapped
from uadat.robust_loss import LossParts, RobustLoss, Views
from uadat.split import Forward


class AWP(RobustLoss):
    """The loss at the weights w + v that are worst for it nearby, v = gamma |w| g / |g| for each weight tensor.

    g is the loss's gradient on the same views at w; vectors (biases, norms) are not perturbed. The gradient of the
    total is taken at w + v and lands on w: there is nothing to undo after the step.

    Args:
        loss: any loss of this package.
        gamma: size of the perturbation, relative to each weight tensor.

    Raises:
        ValueError: if gamma is not positive.

    Source: Wu et al., NeurIPS 2020.
    """

    def __init__(self, loss: RobustLoss, gamma: float = 5e-3) -> None:
        super().__init__()
        if not 0 < gamma < float("inf"):
            raise ValueError(f"gamma must be positive, not {gamma}; use the loss without AWP for 0")
        self.loss, self.gamma, self.eps = loss, gamma, loss.eps
        self.settings = {**loss.settings, "awp": gamma}

    def prepare(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, progress: float, generator: torch.Generator | None
    ) -> Views:
        """The views of the loss itself, made at the weights as they are."""
        return self.loss.prepare(model, images, labels, progress=progress, generator=generator)

    def on(self, model: nn.Module, views: Views, forward: Forward | None = None) -> LossParts:
        """The loss at w + v."""
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        weights = {name: weight for name, weight in weights.items() if weight.ndim > 1}
        module, group = unwrapped(model), group_of(model)
        with _buffers_kept(module, self.loss):
            total = self.loss.on(model, views, module).total  # past the wrapper: v must not wait for its averaging
            found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        moved = {}
        for (name, weight), gradient in zip(weights.items(), found, strict=True):
            if gradient is not None:
                ascent = sum_over(gradient, group)  # the same for every process
                size = ascent.norm().clamp(min=torch.finfo(ascent.dtype).tiny)
                moved[name] = weight + self.gamma * weight.detach().norm() / size * ascent

        def run(images: Tensor) -> Tensor:
            logits: Tensor = functional_call(model, moved, (images,))
            return logits

        return self.loss.on(model, views, run)


@contextmanager
def _buffers_kept(model: nn.Module, loss: RobustLoss) -> Iterator[None]:
    """Puts BatchNorm statistics and the loss's averages back: the look ahead is no step of the training."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    averages = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        loss.load_state_dict(averages)
