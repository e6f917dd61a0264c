from __future__ import annotations

import torch
from aisec_common.torch.linf_pgd import linf_pgd
from aisec_common.torch.robustness.counted_model import CountedModel
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.key = 7

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))

    def once(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))

    def doubled(self, number: int) -> int:
        return 2 * number


def test_counts_rows_forward_and_backward():
    counted = CountedModel(Net(), random=False)
    images, labels = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.long)
    counted(images)
    assert (counted.forwards, counted.backwards) == (5, 0)
    linf_pgd(counted, images, labels, eps=0.1, steps=3, draws=2)
    assert (counted.forwards, counted.backwards) == (5 + 30, 30)


def test_methods_from_images_to_logits_count_and_the_rest_is_the_models():
    counted = CountedModel(Net(), random=True)
    images = torch.rand(5, 1, 2, 2, requires_grad=True)
    counted.once(images).sum().backward()
    assert (counted.forwards, counted.backwards) == (5, 5)
    assert (counted.doubled(4), counted.key, counted.random) == (8, 7, True)
    assert not hasattr(counted, "without_interference")


def test_takes_any_callable():
    counted = CountedModel(lambda images: images.flatten(1), random=False)
    assert counted(torch.rand(2, 1, 2, 2)).shape == (2, 4)
    assert counted.forwards == 2
