import pytest
import torch
from torch import nn

from gfmextract.cost import Cost, flops_of


def test_a_linear_layer_costs_two_operations_a_weight_and_row_and_twice_that_backward():
    layer, x = nn.Linear(5, 7), torch.ones(3, 5, requires_grad=True)
    assert flops_of(lambda: layer(x)) == 2 * 3 * 5 * 7
    assert flops_of(lambda: layer(x).sum().backward()) == 3 * 2 * 3 * 5 * 7


def test_ratios_are_of_seconds_and_of_operations():
    assert Cost(seconds=3.0, flops=5.0).over(Cost(seconds=6.0, flops=50.0)) == pytest.approx((0.5, 0.1))
    free = Cost(seconds=0.0, flops=0.0)
    assert Cost(seconds=3.0, flops=5.0).over(free) == pytest.approx((float("nan"), float("nan")), nan_ok=True)
