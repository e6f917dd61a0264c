"""Round to nearest: asymmetric min/max quantisation of every group by itself (the default backend)."""

from __future__ import annotations

import torch
from torch import Tensor

from impq.backend import Backend, GroupSize, check_request, group_count, linear_bytes
from impq.quantized_linear import PACKED_BITS, QuantizedLinear, pack_codes

CHUNK = 2**18  # weights at once: some ten float32 temporaries of a whole matrix would rival a small model


def affine_grid(groups: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale s and zero-point z of each group, so that s (q - z), q = 0..2^bits - 1, covers the group and zero.

    s = (max(w, 0) - min(w, 0)) / (2^bits - 1), rounded *up* to fp16, and z = round(-min(w, 0) / s): with a scale
    rounded down the largest weights would fall off the grid, with s rounded up no weight is further than s/2 from it.
    A constant group gets s = |c| (in fp16) and is exact whenever fp16 holds c.

    Args:
        groups: fp32 [..., group].
        bits: width of a code.

    Returns:
        scale fp16 [...], zero fp32 [...] holding integers.

    Raises:
        ValueError: a scale would exceed fp16's 65504.

    >>> scale, zero = affine_grid(torch.tensor([[-1.0, 0.0, 2.0], [0.3, 0.3, 0.3]]), 2)
    >>> scale.tolist()[0], zero.tolist()
    (1.0, [1.0, 0.0])
    """
    levels = 2**bits - 1
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    constant = low.abs().half()
    exact = (low == high) & (constant > 0)
    span = high.clamp(min=0) - low.clamp(max=0)
    scale = torch.where(exact, constant, _round_up_to_half(span / levels))
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)  # an all-zero group: any scale is exact
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("weight has a group too wide for an fp16 scale (65504); rescale the layer")
    return scale, torch.round(low.clamp(max=0).abs() / scale.float()).clamp(0, levels)


def _round_up_to_half(values: Tensor) -> Tensor:
    """The smallest fp16 number not below each value >= 0."""
    nearest = values.half()
    bits = nearest.view(torch.int16)  # of positive fp16 numbers, ordered as the numbers are
    short = (nearest.float() < values) & torch.isfinite(nearest)
    return torch.where(short, bits + 1, bits).view(torch.float16)


def nearest_codes(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The code on the grid nearest to each weight, clamp(round(w / s + z), 0, 2^bits - 1), as fp32.

    >>> nearest_codes(torch.tensor([-1.0, 0.4, 9.0]), torch.tensor(1.0), torch.tensor(1.0), 2).tolist()
    [0.0, 1.0, 3.0]
    """
    return torch.round(weight / scale.float() + zero).clamp(0, 2**bits - 1)


def _quantised_rows(rows: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (uint8) [rows, width], scales and zero-points [rows, groups] of some rows of a matrix."""
    matrix, width = rows.float(), rows.shape[1]
    # repeating the last weight changes neither minimum nor maximum of the last group
    padded = torch.nn.functional.pad(matrix, (0, -width % group), mode="replicate") if width % group else matrix
    grouped = padded.view(len(rows), -1, group)
    scale, zero = affine_grid(grouped, bits)
    codes = nearest_codes(grouped, scale.unsqueeze(-1), zero.unsqueeze(-1), bits)
    return codes.view_as(padded)[:, :width].to(torch.uint8), scale, zero


class RtnBackend:
    """Round-to-nearest with min/max grids along the input; needs no data.

    >>> weight = torch.linspace(-1, 1, 12).view(2, 6)
    >>> packed = RtnBackend().quantize_linear(weight, 4, group_size=4)
    >>> bool((packed.dequantize() - weight).abs().max() <= 0.04), packed.nbytes
    (True, 16)
    """

    name = "rtn"
    supported_bits = PACKED_BITS
    needs_hessian = False

    def quantize_linear(
        self, weight: Tensor, bits: int, *, group_size: GroupSize, hessian: Tensor | None = None
    ) -> QuantizedLinear:
        """Quantises a weight [out, in]; the last group of a row may be shorter; `hessian` is not used."""
        check_request(self, weight, bits, group_size)
        matrix = weight.detach()
        if group_size == "tensor":
            matrix = matrix.reshape(1, -1)
        width = matrix.shape[1]
        group = group_size if isinstance(group_size, int) else width
        parts = [_quantised_rows(rows, bits, group) for rows in torch.split(matrix, max(1, CHUNK // width))]
        codes, scale, zero = (torch.cat(column) for column in zip(*parts, strict=True))
        return affine_linear(codes, scale, zero, weight, bits, group)

    def nbytes(self, out: int, in_: int, bits: int, group_size: GroupSize) -> int:
        """Bytes of an [out, in] matrix: zero-points are packed codes."""
        return linear_bytes(out, in_, bits, group_count(out, in_, group_size), "code")


def affine_linear(codes: Tensor, scale: Tensor, zero: Tensor, weight: Tensor, bits: int, group: int) -> QuantizedLinear:
    """Packs integer codes [rows, width], scales and integer zero-points [rows, groups] of `weight`."""
    out, in_ = weight.shape
    return QuantizedLinear(
        codes=pack_codes(codes.to(torch.uint8), bits),
        scale=scale,
        zero=pack_codes(zero.to(torch.uint8), bits),
        zero_kind="code",
        shape=(out, in_),
        bits=bits,
        group=group,
        dtype=weight.dtype,
    )


BACKEND: Backend = RtnBackend()
