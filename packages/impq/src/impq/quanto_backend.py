"""Quanto: the quantisers of optimum-quanto, kept in the packed form all backends share.

Its tensors dequantise on CPU through a C++ extension that is compiled into the library's own folder on first use
(minutes, a compiler and write access). Nothing here calls it: the library finds scales, shifts and codes in plain
torch, and dequantising is our own.
"""

from __future__ import annotations

import torch
from optimum.quanto import AbsmaxOptimizer, MaxOptimizer, qint2, qint4, qint8
from torch import Tensor

from impq.backend import Backend, GroupSize, check_request, group_count, linear_bytes
from impq.quantized_linear import QuantizedLinear, ZeroKind, pack_codes

QTYPES = {2: qint2, 4: qint4}


class QuantoBackend:
    """Quanto's default weight quantisers: s q - t with an fp16 shift t at 2 and 4 bits, symmetric per row at 8.

    Scale and shift are rounded to fp16 before the codes are found. group_size must divide `in`; "row" gives one scale
    per row; quanto has no groups at 8 bits (every group_size means "row" there), no 3 bits and no "tensor".

    Source: optimum-quanto 0.2.7, `MaxOptimizer` and `AbsmaxOptimizer`.

    >>> packed = QuantoBackend().quantize_linear(torch.linspace(-1, 1, 16).view(2, 8), 4, group_size=4)
    >>> packed.nbytes, bool((packed.dequantize()[0, 0] + 1).abs() < 1e-3)
    (24, True)
    """

    name = "quanto"
    supported_bits = frozenset({2, 4, 8})
    needs_hessian = False

    def quantize_linear(
        self, weight: Tensor, bits: int, *, group_size: GroupSize, hessian: Tensor | None = None
    ) -> QuantizedLinear:
        """Quantises a weight [out, in]; `hessian` is not used.

        Raises:
            ValueError: bits 3, group_size "tensor" or one that does not divide `in`, a scale beyond fp16.
        """
        check_request(self, weight, bits, group_size)
        out, in_ = weight.shape
        group = _group(in_, bits, group_size)
        rows = weight.detach().float().reshape(-1, group)
        zero_kind: ZeroKind = "middle" if bits == 8 else "shift"
        shift: Tensor | None = None
        if bits == 8:
            scale = _as_half(AbsmaxOptimizer().optimize(rows, qint8, axis=0))
            codes = torch.ops.quanto.quantize_symmetric(rows, torch.int8, _axis(rows), _shaped(scale, rows)).int() + 128
        else:
            found, offset = MaxOptimizer().optimize(rows, QTYPES[bits], axis=0)
            scale, shift = _as_half(found), offset.half()
            codes = torch.ops.quanto.quantize_affine(rows, bits, 0, None, scale.float(), shift.float())
        if not bool(torch.isfinite(scale).all() and (shift is None or torch.isfinite(shift).all())):
            raise ValueError("weight has a group too wide for fp16 (65504); rescale the layer")
        return QuantizedLinear(
            codes=pack_codes(codes.to(torch.uint8), bits),
            scale=scale.view(out, -1),
            zero=None if shift is None else shift.view(out, -1),
            zero_kind=zero_kind,
            shape=(out, in_),
            bits=bits,
            group=group,
            dtype=weight.dtype,
        )

    def nbytes(self, out: int, in_: int, bits: int, group_size: GroupSize) -> int:
        """Bytes of an [out, in] matrix: a scale and, below 8 bits, a shift of 2 bytes each per group."""
        groups = group_count(out, in_, _group(in_, bits, group_size))
        return linear_bytes(out, in_, bits, groups, "none" if bits == 8 else "half")


def _group(in_: int, bits: int, group_size: GroupSize) -> int:
    if group_size == "tensor":
        raise ValueError("group_size 'tensor' is not supported by backend quanto; use 'row' or a divisor of the inputs")
    group = in_ if bits == 8 or group_size == "row" else group_size
    if in_ % group:
        raise ValueError(f"group_size {group} does not divide the {in_} inputs; quanto needs a divisor")
    return group


def _as_half(scale: Tensor) -> Tensor:
    """fp16 scale with 1 in place of 0: the library would divide a constant group by zero."""
    half = scale.half()
    return torch.where(half == 0, torch.ones_like(half), half)


def _axis(rows: Tensor) -> int | None:
    """Quanto takes a single row as a whole tensor."""
    return None if rows.shape[0] == 1 else 0


def _shaped(scale: Tensor, rows: Tensor) -> Tensor:
    return scale.float().reshape(()) if rows.shape[0] == 1 else scale.float()


BACKEND: Backend = QuantoBackend()
