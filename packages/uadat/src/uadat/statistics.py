"""Statistics of feature maps: of each instance, their uncertainty over a batch, and class-wise Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from uadat.distributed import sum_over

STD_FLOOR = 1e-5
"""Added to an instance's variance: a channel that ReLU holds at 0 has a std, and that std a gradient."""
VARIANCE_FLOOR = 1e-6
MOMENTUM = 0.1
SMALL_BATCH = 16
RANK = 8
"""Directions of the low-rank covariance (ours)."""


def instance_means(features: Tensor) -> Tensor:
    """mu_i = mean_{h,w} Z_i of each instance's channels, [B, C] of [B, C, ...].

    >>> instance_means(torch.tensor([[[[1.0, 3.0]]]])).item()
    2.0
    """
    return features.flatten(2).mean(2)


def instance_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each instance's channels over the positions of its feature map.

        mu_i = mean_{h,w} Z_i,   s_i = sqrt(var_{h,w} Z_i + 1e-5), biased variance

    Args:
        features: Z [B, C, H, W], or any [B, C, ...].

    Returns:
        mu and s, [B, C] each.

    Source: arXiv 2411.02871, abstract (mean and covariance of the adversaries); this form is ours, after DSU.

    >>> instance_statistics(torch.tensor([[[[1.0, 3.0]]]]))[0].item()
    2.0
    """
    means, positions = instance_means(features), features.flatten(2)
    variance = (positions - means[..., None]).square().mean(2)  # `var` takes ten times as long on a CPU
    return means, (variance + STD_FLOOR).sqrt()


def batch_moments(values: Tensor, group: Any = None) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each column over the rows of all processes, with gradients.

    Args:
        values: [B, C].
        group: the processes whose rows count as one batch; None for this one's alone.

    Returns:
        Mean [C] and variance [C], 0 for a single row.

    >>> [moment.item() for moment in batch_moments(torch.tensor([[1.0], [3.0]]))]
    [2.0, 2.0]
    """
    rows = _rows(values, group)
    mean = sum_over(values.sum(0), group) / rows
    return mean, sum_over((values - mean).square().sum(0), group) / max(rows - 1, 1)


class _Remembered(nn.Module):
    """Buffers whose sizes only the first batch tells; a state dict brings its own."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class BatchUncertainty(_Remembered):
    """How much the statistics of instances vary over a batch: S_mu^2 = Var_i(mu_i) + 1e-6, S_s^2 = Var_i(s_i) + 1e-6.

    For a batch below 16 the moving average (momentum .1) over batches is taken instead of its own. Nothing has a
    gradient.

    Args:
        cov: `"diag"`, independent channels; `"lowrank"`, the 8 leading directions U diag(lambda^.5) of the covariance
            of mu.

    Source: arXiv 2411.02871, abstract; Li et al., DSU, ICLR 2022; ranks and averages are ours.
    """

    of_means: Tensor
    of_stds: Tensor

    def __init__(self, cov: Literal["diag", "lowrank"] = "diag") -> None:
        super().__init__()
        if cov not in ("diag", "lowrank"):
            raise ValueError(f"cov must be 'diag' or 'lowrank', not {cov!r}")
        self.cov = cov
        self.register_buffer("of_means", torch.empty(0))
        self.register_buffer("of_stds", torch.empty(0))

    @torch.no_grad()
    def forward(self, means: Tensor, stds: Tensor, group: Any = None) -> tuple[Tensor, Tensor]:
        """The scales of the noise of one batch, whose moments enter the moving average.

        Args:
            means: mu [B, C].
            stds: s [B, C].
            group: processes whose rows count as one batch.

        Returns:
            A root [R, C] of the covariance of mu (noise [.., R] times it; [C] for `"diag"`, elementwise), and S_s [C].

        Raises:
            ValueError: for a single row before any larger batch.
        """
        rows = _rows(means, group)
        if rows < 2 and not len(self.of_means):
            raise ValueError(
                "images must be a batch of at least 2 while samples > 0: one image has no spread; use larger batches"
            )
        if rows >= 2:
            found = self._spread_of_means(means, group), batch_moments(stds, group)[1]
            held = self.of_means, self.of_stds
            self.of_means, self.of_stds = (
                new if not len(old) else torch.lerp(old.to(new), new, MOMENTUM)
                for old, new in zip(held, found, strict=True)
            )
        of_means, of_stds = found if rows >= SMALL_BATCH else (self.of_means.to(means), self.of_stds.to(stds))
        return self._root(of_means), (of_stds + VARIANCE_FLOOR).sqrt()

    def _spread_of_means(self, means: Tensor, group: Any) -> Tensor:
        mean, variance = batch_moments(means, group)
        if self.cov == "diag":
            return variance
        centred = means - mean
        return sum_over(centred.T @ centred, group) / (_rows(means, group) - 1)

    def _root(self, spread: Tensor) -> Tensor:
        if self.cov == "diag":
            return (spread + VARIANCE_FLOOR).sqrt()
        values, vectors = torch.linalg.eigh(spread)  # ascending
        root: Tensor = vectors[:, -RANK:] * values[-RANK:].clamp(min=0).sqrt()
        return root.T


class ClassGaussians(_Remembered):
    """Running diagonal Gaussians (m_y, v_y) of the feature means of each class's correctly classified clean images.

    First and second moments are averaged over the examples seen until ten batches' worth of weight is reached, then
    with momentum .1 (ours). Far from a class's Gaussian is

        d(mu, y) = mean_c (mu_c - m_{y,c})^2 / v_{y,c},   v floored at 1e-5,

    and 0 for a class of which fewer than two examples were seen.

    Source: arXiv 2411.02871, abstract ("statistical proximity to clean examples"); the form is ours.
    """

    seen: Tensor
    first: Tensor
    second: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("seen", "first", "second"):
            self.register_buffer(name, torch.empty(0))

    @torch.no_grad()
    def update(self, means: Tensor, labels: Tensor, classes: int, group: Any = None) -> None:
        """Takes in the feature means [R, C] of correctly classified clean images of the classes `labels` [R]."""
        if not len(self.seen):
            self.seen = means.new_zeros(classes)
            self.first, self.second = means.new_zeros(2, classes, means.shape[1]).unbind(0)
        values = torch.cat([torch.ones_like(means[:, :1]), means, means.square()], dim=1)
        sums = sum_over(values.new_zeros(classes, values.shape[1]).index_add(0, labels, values), group)
        count, first, second = torch.split(sums, [1, *(means.shape[1],) * 2], dim=1)
        self.seen = self.seen + count[:, 0]
        weight = torch.where(count > 0, (count / self.seen.clamp(min=1)[:, None]).clamp(min=MOMENTUM), 0.0)
        own = count.clamp(min=1)
        self.first = torch.lerp(self.first, first / own, weight)
        self.second = torch.lerp(self.second, second / own, weight)

    def distance_to(self, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """d(mu_i, y_i) [B] as a function of feature means [B, C], for images of the classes `labels` [B]."""
        if not len(self.seen):
            return lambda means: means.new_zeros(len(means))
        centre = self.first[labels]
        variance = (self.second[labels] - centre.square()).clamp(min=STD_FLOOR)
        precision = (self.seen[labels] >= 2)[:, None] / (variance * variance.shape[1])
        return lambda means: ((means - centre).square() * precision).sum(1)


def _rows(values: Tensor, group: Any) -> int:
    if group is None:
        return len(values)
    return int(sum_over(torch.tensor(len(values), device=values.device), group))
