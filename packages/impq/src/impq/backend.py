"""What a quantiser must offer to the game and to deployment, and the byte-exact memory model all of them share."""

from __future__ import annotations

from importlib import import_module
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from impq.quantized_linear import QuantizedLinear, packed_bytes

GroupSize = int | Literal["row", "tensor"]
SCALE_BYTES = 2
BACKENDS = ("rtn", "gptq", "hqq", "quanto")
LIBRARIES = {"hqq": "hqq", "quanto": "optimum"}  # top-level modules


@runtime_checkable
class Backend(Protocol):
    """A quantiser of single weight matrices: deterministic, without global state, on the weight's own device.

    `name` goes into every record; `supported_bits` are the widths it can make; `needs_hessian` says whether
    `quantize_linear` wants H = sum x x^T of the layer's inputs.

    >>> sorted(get_backend("rtn").supported_bits)
    [2, 3, 4, 8]
    """

    @property
    def name(self) -> str: ...

    @property
    def supported_bits(self) -> frozenset[int]: ...

    @property
    def needs_hessian(self) -> bool: ...

    def quantize_linear(
        self, weight: Tensor, bits: int, *, group_size: GroupSize, hessian: Tensor | None = None
    ) -> QuantizedLinear:
        """Quantises a weight [out, in]; `dequantize()` of the result has the weight's dtype and device."""
        ...

    def nbytes(self, out: int, in_: int, bits: int, group_size: GroupSize) -> int:
        """Bytes of codes, scales and zero-points of an [out, in] matrix, without quantising one."""
        ...


def get_backend(backend: str | Backend) -> Backend:
    """The backend of that name: "rtn", "gptq", "hqq" or "quanto"; a Backend passes through.

    Raises:
        ValueError: unknown name, or an object that is no Backend.
        ModuleNotFoundError: the library behind the name is not installed; `name` is its top-level module.

    >>> get_backend("gptq").needs_hessian
    True
    """
    if isinstance(backend, Backend):
        return backend
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    try:
        found: Backend = import_module(f"impq.{backend}_backend").BACKEND
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing != LIBRARIES.get(backend):
            raise
        raise ModuleNotFoundError(
            f"backend {backend} needs {missing}: pip install 'aisec-impq[{backend}]'", name=missing
        ) from error
    return found


def group_count(out: int, in_: int, group_size: GroupSize) -> int:
    """Number of groups of an [out, in] matrix: out ceil(in / g), out for "row", 1 for "tensor".

    >>> group_count(3, 10, 4), group_count(3, 10, "row"), group_count(3, 10, "tensor")
    (9, 3, 1)
    """
    if group_size == "tensor":
        return 1
    return out if group_size == "row" else out * -(-in_ // group_size)


def linear_bytes(out: int, in_: int, bits: int, groups: int, zero: Literal["code", "half", "none"]) -> int:
    """Bytes of a quantised matrix: ceil(out in bits / 8) codes + 2 per scale + the zero-points.

    Args:
        out: rows.
        in_: columns.
        bits: width of a code.
        groups: number of scales.
        zero: zero-points as packed codes (ceil(groups bits / 8) bytes), as fp16 (2 bytes each), or none.

    >>> linear_bytes(64, 64, 2, 64, "code"), linear_bytes(64, 64, 2, 64, "half")
    (1168, 1280)
    """
    zeros = {"code": packed_bytes(groups, bits), "half": 2 * groups, "none": 0}[zero]
    return packed_bytes(out * in_, bits) + SCALE_BYTES * groups + zeros


def check_request(backend: Backend, weight: Tensor, bits: int, group_size: GroupSize) -> None:
    """Refuses what no backend can quantise.

    Raises:
        TypeError: weight is not a floating-point tensor.
        ValueError: shape, non-finite values, unsupported bits or group_size, in one line naming the argument.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise TypeError("weight must be a floating-point tensor [out, in]")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be [out, in] with both at least 1")
    check_bits(backend, bits)
    check_group_size(group_size)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("weight holds NaN or infinite values; load the checkpoint again or in another dtype")


def check_bits(backend: Backend, bits: int) -> None:
    """Refuses a width the backend cannot make.

    Raises:
        ValueError: naming the widths it can.
    """
    if bits not in backend.supported_bits:
        widths = ", ".join(map(str, sorted(backend.supported_bits)))
        raise ValueError(f"bits {bits} is not supported by backend {backend.name}; choose from {widths}")


def check_group_size(group_size: GroupSize) -> None:
    """Refuses anything but a positive integer, "row" or "tensor".

    Raises:
        ValueError: naming group_size.
    """
    positive = isinstance(group_size, int) and not isinstance(group_size, bool) and group_size > 0
    if not positive and group_size not in ("row", "tensor"):
        raise ValueError(f"group_size is {group_size!r}; give a positive number, 'row' or 'tensor'")
