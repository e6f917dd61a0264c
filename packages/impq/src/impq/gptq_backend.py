"""GPTQ: column by column, each rounding error passed on to the columns that are still to come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from impq.backend import Backend, GroupSize, check_request, group_count, linear_bytes
from impq.quantized_linear import PACKED_BITS, QuantizedLinear
from impq.rtn_backend import affine_grid, affine_linear, nearest_codes
from impq.weights import linear_weight

DAMP = 0.01
BLOCK = 128


def collect_hessians(model: nn.Module, modules: Iterable[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """H = sum x x^T over every input x that each named linear sees while `run` feeds the model.

    Run it on the full-precision model for a game: a Hessian of quantised inputs would make a block's weights depend
    on the coalition. One fp32 [in, in] matrix per module is held, on the device of its input.

    Args:
        model: the model that `run` calls.
        modules: names of linear modules.
        run: forwards of the calibration data.

    Returns:
        Module name -> fp32 [in, in].

    Raises:
        ValueError: a module never ran or saw non-finite inputs; the message names it.

    >>> model = nn.Sequential(nn.Linear(2, 1))
    >>> collect_hessians(model, ["0"], lambda: model(torch.tensor([[1.0, 2.0]])))["0"].tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """
    hessians: dict[str, Tensor] = {}

    def accumulate(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            gram = seen.t() @ seen
            hessians[name] = hessians[name].add_(gram) if name in hessians else gram

        return hook

    names = list(modules)
    for name in names:
        linear_weight(model, name)
    handles = [model.get_submodule(name).register_forward_pre_hook(accumulate(name)) for name in names]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if name not in hessians:
            raise ValueError(f"run: {name} saw no input; feed calibration text that reaches every linear")
        if not bool(torch.isfinite(hessians[name]).all()):
            raise ValueError(f"run: {name} saw NaN or infinite inputs; run the model in fp32 or bf16")
    return hessians


class GptqBackend:
    """GPTQ with the grid of `rtn`, natural column order and a damped Hessian.

    With U the upper Cholesky factor of (H + 0.01 mean(diag H) I)^-1, column j is rounded to q_j and
    w_k <- w_k - (w_j - q_j) U_jk / U_jj for all k > j; scale and zero-point of a group are taken from the weights as
    they stand when its first column is reached. A column whose input was always zero is rounded by itself.

    Source: Frantar et al., GPTQ (arXiv 2210.17323), algorithm 1, without activation order.

    >>> weight = torch.linspace(-1, 1, 8).view(2, 4)
    >>> packed = GptqBackend().quantize_linear(weight, 4, group_size=4, hessian=torch.eye(4))
    >>> bool((packed.dequantize() - weight).abs().max() < 0.04)
    True
    """

    name = "gptq"
    supported_bits = PACKED_BITS
    needs_hessian = True

    def quantize_linear(
        self, weight: Tensor, bits: int, *, group_size: GroupSize, hessian: Tensor | None = None
    ) -> QuantizedLinear:
        """Quantises a weight [out, in] for inputs with second moment `hessian` [in, in].

        Raises:
            ValueError: no Hessian, one of another shape, or one that is not positive semi-definite.
        """
        check_request(self, weight, bits, group_size)
        out, in_ = weight.shape
        factor = _error_feedback(hessian, in_).to(weight.device)
        rest = weight.detach().float().clone()
        group = group_size if isinstance(group_size, int) else in_
        codes, scales, zeros = torch.empty_like(rest), [], []
        if group_size == "tensor":
            scale, zero = affine_grid(rest.reshape(1, -1), bits)
        for start, stop in _column_blocks(in_, group):
            errors = torch.empty(out, stop - start, device=weight.device)
            for column in range(start, stop):
                if column % group == 0 and group_size != "tensor":
                    scale, zero = affine_grid(rest[:, column : column + group], bits)
                    scales.append(scale)
                    zeros.append(zero)
                code = nearest_codes(rest[:, column], scale, zero, bits)
                error = (rest[:, column] - scale.float() * (code - zero)) / factor[column, column]
                rest[:, column:stop] -= error.unsqueeze(1) * factor[column, column:stop]
                codes[:, column], errors[:, column - start] = code, error
            rest[:, stop:] -= errors @ factor[start:stop, stop:]
        if group_size == "tensor":
            return affine_linear(codes, scale.view(1, 1), zero, weight, bits, out * in_)
        return affine_linear(codes, torch.stack(scales, dim=1), torch.stack(zeros, dim=1), weight, bits, group)

    def nbytes(self, out: int, in_: int, bits: int, group_size: GroupSize) -> int:
        """Bytes of an [out, in] matrix, those of `rtn`."""
        return linear_bytes(out, in_, bits, group_count(out, in_, group_size), "code")


def _column_blocks(width: int, group: int) -> Iterator[tuple[int, int]]:
    """Blocks of about 128 columns that never straddle the start of a group.

    Feedback is immediate inside a block and reaches later columns when the block ends; a grid taken in the middle of
    a block from columns beyond its end would miss that feedback.
    """
    if group <= BLOCK:
        step = group * (BLOCK // group)
        yield from ((start, min(start + step, width)) for start in range(0, width, step))
        return
    for first in range(0, width, group):
        last = min(first + group, width)
        yield from ((start, min(start + BLOCK, last)) for start in range(first, last, BLOCK))


def _error_feedback(hessian: Tensor | None, width: int) -> Tensor:
    """Upper Cholesky factor of the inverse damped Hessian, fp32, computed in fp64."""
    if hessian is None:
        raise ValueError("hessian is missing; pass sum x x^T of the layer's inputs (collect_hessians)")
    if tuple(hessian.shape) != (width, width):
        raise ValueError(f"hessian has shape {tuple(hessian.shape)}; the weight needs ({width}, {width})")
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("hessian holds NaN or infinite values; run the calibration in fp32 or bf16")
    damped = hessian.detach().double().clone()
    diagonal = damped.diagonal()
    diagonal += DAMP * diagonal.mean()
    diagonal[hessian.diagonal() == 0] = 1  # the rest of a dead row is 0 already: it gives and takes no feedback
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed):
        raise ValueError("hessian is not positive semi-definite; pass sum x x^T without subtracting anything")
    inverse = torch.cholesky_inverse(factor)
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()


BACKEND: Backend = GptqBackend()
