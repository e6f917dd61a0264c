"""HQQ: half-quadratic quantisation by the hqq library, kept in the packed form all backends share."""

from __future__ import annotations

import torch
from hqq.core.quantize import Quantizer
from torch import Tensor

from impq.backend import Backend, GroupSize, check_request, linear_bytes
from impq.quantized_linear import PACKED_BITS, QuantizedLinear, pack_codes


class HqqBackend:
    """HQQ without calibration data: s (q - z) with a real-valued zero-point found by half-quadratic splitting.

    The library finds codes, scales and zero-points; scales and zero-points are stored in fp16, and the weight is
    computed from these in fp32. Groups run over the matrix read row by row, so group_size must divide out x in.
    "tensor" is the library's plain rounding without the optimisation.

    Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models (2023); hqq 0.2.8.

    >>> packed = HqqBackend().quantize_linear(torch.linspace(-1, 1, 16).view(2, 8), 4, group_size=8)
    >>> packed.nbytes, packed.dequantize().dtype
    (16, torch.float32)
    """

    name = "hqq"
    supported_bits = PACKED_BITS
    needs_hessian = False

    def quantize_linear(
        self, weight: Tensor, bits: int, *, group_size: GroupSize, hessian: Tensor | None = None
    ) -> QuantizedLinear:
        """Quantises a weight [out, in] on its own device; `hessian` is not used.

        Raises:
            ValueError: group_size does not divide out x in, or a zero-point does not fit fp16.
        """
        check_request(self, weight, bits, group_size)
        out, in_ = weight.shape
        groups = _groups(out, in_, group_size)
        group = out * in_ // groups
        codes, found = Quantizer.quantize(
            weight.detach().float(),
            nbits=bits,
            channel_wise=group_size != "tensor",
            group_size=group,
            axis=1,
            bitpack=False,
            device=str(weight.device),
        )
        # The library works in inference mode; clones are ordinary tensors again.
        scale = found["scale"].reshape(1, groups).clone().half()
        zero = found["zero"].reshape(1, groups).clone().half()
        if not bool(torch.isfinite(scale).all() and torch.isfinite(zero).all()):
            raise ValueError(
                "weight has a group whose HQQ scale or zero-point exceeds fp16; choose a larger group_size"
            )
        return QuantizedLinear(
            codes=pack_codes(codes.to(torch.uint8), bits),
            scale=scale,
            zero=zero,
            zero_kind="real",
            shape=(out, in_),
            bits=bits,
            group=group,
            dtype=weight.dtype,
        )

    def nbytes(self, out: int, in_: int, bits: int, group_size: GroupSize) -> int:
        """Bytes of an [out, in] matrix: scale and zero-point take 2 bytes each."""
        return linear_bytes(out, in_, bits, _groups(out, in_, group_size), "half")


def _groups(out: int, in_: int, group_size: GroupSize) -> int:
    if group_size == "tensor":
        return 1
    group = in_ if group_size == "row" else group_size
    if out * in_ % group:
        raise ValueError(f"group_size {group} does not divide the {out} x {in_} weights; hqq needs a divisor")
    return out * in_ // group


BACKEND: Backend = HqqBackend()
