"""What changes where a model is trained by several processes: the bare module, and sums over all of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, without the wrapper that averages its gradients over processes.

    >>> unwrapped(nn.ReLU())
    ReLU()
    """
    return model.module if isinstance(model, DistributedDataParallel) else model


def group_of(model: nn.Module) -> Any:
    """The processes that train `model` together, or None where one does."""
    return model.process_group if isinstance(model, DistributedDataParallel) else None


def sum_over(tensor: Tensor, group: Any) -> Tensor:
    """The sum of each process's tensor, sum_r t_r, with its gradient; the tensor itself where `group` is None.

    Every process computes the same function of the sum, so the gradient of the sum of their losses goes back to each
    tensor; averaged over processes, as DistributedDataParallel does, that is the gradient of the one function.

    >>> sum_over(torch.ones(2), None).tolist()
    [1.0, 1.0]
    """
    return tensor if group is None else _Sum.apply(tensor, group)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.group), None
