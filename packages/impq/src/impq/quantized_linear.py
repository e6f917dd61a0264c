"""A quantised linear layer: packed integer codes, fp16 scales and zero-points, and the module that runs on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

PACKED_BITS = frozenset({2, 3, 4, 8})
CHUNK = 2**18  # weights dequantised at once, or an eighth of the matrix: their float32 would rival the model's own
CHUNKS = 8
ZeroKind = Literal["code", "real", "shift", "middle"]


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits each packed without gaps, ceil(count bits / 8).

    >>> packed_bytes(15, 3)
    6
    """
    return -(-count * bits // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Packs integer codes into ceil(count bits / 8) bytes, the first code in the lowest bits of the first byte.

    Args:
        codes: integers 0..2^bits - 1, any shape, read row by row.
        bits: 2, 3, 4 or 8.

    Returns:
        uint8 tensor [packed_bytes(count, bits)].

    >>> pack_codes(torch.tensor([1, 2, 3]), 4).tolist()
    [33, 3]
    """
    per_cell, cell_bytes = _cell(bits)
    count = codes.numel()
    flat = torch.nn.functional.pad(codes.reshape(-1), (0, -count % per_cell)).view(-1, per_cell)
    kind = torch.uint8 if cell_bytes == 1 else torch.int32
    words = torch.zeros(flat.shape[0], dtype=kind, device=codes.device)
    for position in range(per_cell):
        words |= flat[:, position].to(kind) << bits * position
    if cell_bytes > 1:
        words = torch.stack([(words >> 8 * byte) & 255 for byte in range(cell_bytes)], dim=-1).to(torch.uint8)
    return words.reshape(-1)[: packed_bytes(count, bits)].clone()


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes that `pack_codes` put into `packed`, as a flat uint8 tensor.

    >>> unpack_codes(pack_codes(torch.tensor([5, 0, 7, 2]), 3), 3, 4).tolist()
    [5, 0, 7, 2]
    """
    per_cell, cell_bytes = _cell(bits)
    words = packed
    if cell_bytes > 1:
        cells = torch.nn.functional.pad(packed, (0, -packed.numel() % cell_bytes)).view(-1, cell_bytes)
        words = torch.zeros(cells.shape[0], dtype=torch.int32, device=packed.device)
        for byte in range(cell_bytes):
            words |= cells[:, byte].to(torch.int32) << 8 * byte
    codes = torch.empty(words.shape[0], per_cell, dtype=torch.uint8, device=packed.device)
    for position in range(per_cell):
        codes[:, position] = (words >> bits * position) & (2**bits - 1)
    return codes.view(-1)[:count]


def _unpacked_rows(packed: Tensor, bits: int, start: int, shape: torch.Size) -> Tensor:
    """Codes of rows start .. start + n - 1 as uint8 [n, width] = `shape`; start is a multiple of 8."""
    rows, width = shape
    first = packed_bytes(start * width, bits)
    part = packed[first : first + packed_bytes(rows * width, bits)]
    return unpack_codes(part, bits, rows * width).view(rows, width)


def _cell(bits: int) -> tuple[int, int]:
    """Codes and bytes of the smallest run of whole bytes that holds whole codes."""
    cell_bytes = bits // math.gcd(bits, 8)
    return 8 * cell_bytes // bits, cell_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedLinear:
    """A weight matrix as packed codes q with one fp16 scale s, and perhaps a zero-point z, per group.

    zero_kind says how a code becomes a weight, always computed in fp32 from what is stored, so that the game measures
    the numbers that are deployed:
    "code": s (q - z), z a packed integer; "real": s (q - z), z in fp16; "shift": s q - z, z in fp16;
    "middle": s (q - 2^(bits-1)), nothing stored.

    Attributes:
        codes: uint8 [ceil(out in bits / 8)], row by row.
        scale: fp16 [rows, groups]; rows = out when groups lie inside a row, 1 when they run over the whole matrix.
        zero: uint8 [ceil(rows groups bits / 8)], fp16 [rows, groups] or None, as zero_kind says.
        zero_kind: see above.
        shape: (out, in).
        bits: width of a code.
        group: codes per group; the last group of a row may be shorter.
        dtype: dtype of the dequantised weight.

    >>> packed = QuantizedLinear(codes=pack_codes(torch.tensor([0, 3, 1, 2]), 2), zero=None, zero_kind="middle",
    ...     scale=torch.ones(2, 1).half(), shape=(2, 2), bits=2, group=2, dtype=torch.float32)
    >>> packed.dequantize().tolist(), packed.nbytes
    ([[-2.0, 1.0], [-1.0, 0.0]], 5)
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    zero_kind: ZeroKind
    shape: tuple[int, int]
    bits: int
    group: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero-points."""
        return self.codes.nbytes + self.scale.nbytes + (0 if self.zero is None else self.zero.nbytes)

    def dequantize(self) -> Tensor:
        """The weight [out, in] the layer computes with, in `dtype` on the device of the codes."""
        rows, groups = self.scale.shape
        width = self.shape[0] * self.shape[1] // rows
        if groups * self.group == width:  # groups need not know of rows, which may be one
            rows, groups, width = rows * groups, 1, self.group
        weight = torch.empty(rows, width, dtype=self.dtype, device=self.codes.device)
        most = max(CHUNK, weight.numel() // CHUNKS)
        step = 8 * max(1, most // (8 * width))  # eight codes of any width fill whole bytes
        for start in range(0, rows, step):
            self._dequantize_rows(weight[start : start + step], start, groups)
        return weight.view(self.shape)

    def _dequantize_rows(self, weight: Tensor, start: int, groups: int) -> None:
        """Fills `weight` [n, width] with rows start .. start + n - 1, of `groups` groups each."""
        rows, width = weight.shape
        whole = _unpacked_rows(self.codes, self.bits, start, weight.shape).float()
        if groups * self.group > width:
            whole = torch.nn.functional.pad(whole, (0, groups * self.group - width))
        whole = whole.view(rows, groups, self.group)
        scale = self.scale.reshape(-1, groups)[start : start + rows].float().unsqueeze(-1)
        zero: Tensor | float = 2.0 ** (self.bits - 1)
        if self.zero is not None and self.zero_kind == "code":
            zero = _unpacked_rows(self.zero, self.bits, start, scale.shape[:2]).float().unsqueeze(-1)
        elif self.zero is not None:
            zero = self.zero.reshape(-1, groups)[start : start + rows].float().unsqueeze(-1)
        if self.zero_kind == "shift":
            whole.mul_(scale).sub_(zero)
        else:
            whole.sub_(zero).mul_(scale)
        weight.copy_(whole.view(rows, -1)[:, :width])

    def compact(self) -> QuantizedLinear:
        """The same in memory of its own, made when the quantiser has freed its: what is kept splits no large gap."""
        zero = None if self.zero is None else self.zero.clone()
        return replace(self, codes=self.codes.clone(), scale=self.scale.clone(), zero=zero)

    def to_module(self, bias: Tensor | None) -> PackedLinear:
        """The layer to deploy; a bias that is a parameter is shared, not copied."""
        return PackedLinear(self, bias)


class PackedLinear(nn.Module):
    """y = x W^T + b with W kept as packed codes and dequantised in every call.

    fp16 scales and zero-points are held as their int16 bit patterns: `model.bfloat16()` and `model.float()` convert
    floating-point buffers, and a rounded scale would be another layer than the one that was measured.

    Args:
        packed: the quantised weight.
        bias: [out] or None.

    >>> packed = QuantizedLinear(codes=pack_codes(torch.tensor([3, 0]), 2), zero=None, zero_kind="middle",
    ...     scale=torch.ones(1, 1).half(), shape=(1, 2), bits=2, group=2, dtype=torch.float32)
    >>> packed.to_module(None)(torch.tensor([[1.0, 10.0]])).tolist()
    [[-19.0]]
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, packed: QuantizedLinear, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.bits, self.group, self.zero_kind = packed.bits, packed.group, packed.zero_kind
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scale", packed.scale.view(torch.int16))
        zero = packed.zero
        self.register_buffer("zero", zero if zero is None or zero.dtype == torch.uint8 else zero.view(torch.int16))
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)

    def packed(self, dtype: torch.dtype) -> QuantizedLinear:
        """The quantised weight as stored, dequantising to `dtype`."""
        zero = self.zero
        return QuantizedLinear(
            codes=self.codes,
            scale=self.scale.view(torch.float16),
            zero=zero if zero is None or zero.dtype == torch.uint8 else zero.view(torch.float16),
            zero_kind=self.zero_kind,
            shape=(self.out_features, self.in_features),
            bits=self.bits,
            group=self.group,
            dtype=dtype,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return torch.nn.functional.linear(inputs, self.packed(inputs.dtype).dequantize(), self.bias)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}"
