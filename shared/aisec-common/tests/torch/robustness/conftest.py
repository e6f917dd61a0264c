"""Two small digits nets, one trained on PGD's images, and models that mask their gradients."""

from __future__ import annotations

import pytest
import torch
from aisec_common.seeding import torch_rng
from aisec_common.torch.linf_pgd import linf_pgd
from sklearn.datasets import load_digits
from torch import Tensor, nn

EPS = 0.1


class Rounded(nn.Module):
    """Rounds the input to 16 levels, which has a gradient of zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images * 15).round() / 15)


class Scaled(nn.Module):
    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) * self.scale


class Noisy(nn.Module):
    """Adds Gaussian noise from torch's global generator to the input."""

    def __init__(self, model: nn.Module, spread: float) -> None:
        super().__init__()
        self.model, self.spread = model, spread

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images + self.spread * torch.randn_like(images))


class Shattered(nn.Module):
    """Adds to the logits a fine ripple of random direction: too small to matter, far steeper than the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        phase = 1e4 * (images * torch.randn_like(images)).flatten(1).sum(1, keepdim=True)
        return logits + 0.01 * torch.sin(phase) * torch.randn_like(logits)


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch_rng(0, "order"))
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    return images[order], torch.tensor(data.target)[order]


@pytest.fixture(scope="session")
def test_set(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return digits[0][1400:1600], digits[1][1400:1600]


@pytest.fixture(scope="session")
def robust(digits: tuple[Tensor, Tensor]) -> nn.Module:
    return train(digits, adversarial=True)


@pytest.fixture(scope="session")
def plain(digits: tuple[Tensor, Tensor]) -> nn.Module:
    return train(digits, adversarial=False)


def train(digits: tuple[Tensor, Tensor], *, adversarial: bool, epochs: int = 7) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
    images, labels = digits[0][:1000], digits[1][:1000]
    rng, steps = torch_rng(0, "train"), epochs * 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for step in range(steps):
        if step % 10 == 0:
            order = torch.randperm(1000, generator=rng)
        part = order[step % 10 * 100 :][:100]
        x, y = images[part], labels[part]
        if adversarial:
            x = linf_pgd(net, x, y, eps=EPS, steps=4, generator=rng)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return net.eval()
