from types import SimpleNamespace

import pytest
import torch
from aisec_common.seeding import torch_rng
from optimum.quanto import qint8, quantize_weight
from optimum.quanto.library.extensions.cpp import ext

from impq.quanto_backend import QTYPES, QuantoBackend

QUANTO = QuantoBackend()


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """The library's layout: the first rows of codes in the lowest bits of every byte."""
    return torch.cat([packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)])


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("group_size", [8, 32, "row"])
def test_equals_the_librarys_own_weight_bit_for_bit(
    bits: int, group_size: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's dequantisation with unpacking in torch; its C++ unpacking takes minutes to compile."""
    monkeypatch.setattr(ext, "_lib", SimpleNamespace(unpack=unpack))
    weight = torch.randn(16, 64, generator=torch_rng(bits, "w"))
    packed = QUANTO.quantize_linear(weight, bits, group_size=group_size)
    scale, shift = packed.scale.float().view(-1, 1), packed.zero.float().view(-1, 1)
    size = None if group_size == "row" else group_size
    library = quantize_weight(weight, QTYPES[bits], 0, scale, shift, size, optimized=False)
    assert torch.equal(packed.dequantize(), library.dequantize())


def test_eight_bits_equal_the_librarys_symmetric_rows() -> None:
    weight = torch.randn(16, 64, generator=torch_rng(8, "w"))
    packed = QUANTO.quantize_linear(weight, 8, group_size=32)
    assert packed.scale.shape == (16, 1)
    library = quantize_weight(weight, qint8, 0, packed.scale.float(), optimized=False)
    assert torch.equal(packed.dequantize(), library.dequantize())
    assert packed.nbytes == 16 * 64 + 2 * 16


def test_constant_groups_do_not_divide_by_zero() -> None:
    for constant in (0.0, 0.5, -0.25):
        for bits in (2, 4):
            weight = torch.full((2, 8), constant)
            assert torch.equal(QUANTO.quantize_linear(weight, bits, group_size=4).dequantize(), weight)
    assert not QUANTO.quantize_linear(torch.zeros(2, 8), 8, group_size="row").dequantize().any()


def test_no_extension_is_ever_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ext), "lib", property(lambda _: pytest.fail("the C++ extension was asked for")))
    for bits in (2, 4, 8):
        weight = torch.randn(4, 16, generator=torch_rng(0))
        assert QUANTO.quantize_linear(weight, bits, group_size=8).dequantize().shape == weight.shape


@pytest.mark.parametrize(
    ("bits", "group_size", "words"), [(3, 8, "bits 3"), (4, 7, "group_size 7"), (4, "tensor", "group_size 'tensor'")]
)
def test_what_quanto_cannot_do_is_refused(bits: int, group_size: int | str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QUANTO.quantize_linear(torch.ones(2, 8), bits, group_size=group_size)
