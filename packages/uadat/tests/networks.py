"""Small classifiers and batches for the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Staged(nn.Module):
    """Two stages and a head; no BatchNorm, so that a row's logits depend on that row alone."""

    def __init__(self, activation=nn.ReLU, norm="group", classes=4):
        super().__init__()
        norms = {"group": lambda c: nn.GroupNorm(2, c), "batch": nn.BatchNorm2d, "none": lambda c: nn.Identity()}
        self.stage1 = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norms[norm](4), activation())
        self.stage2 = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, stride=2), norms[norm](6), activation())
        self.head = nn.Linear(6, classes)

    def forward(self, x):
        return self.head(self.stage2(self.stage1(x)).mean((2, 3)))


def staged(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Staged(**options)


def batch(rows=8, seed=0, classes=4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 1, 6, 6, generator=generator), torch.randint(0, classes, (rows,), generator=generator)


def parameters_gradient(model, total):
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))])
