import pytest
import torch
from aisec_common.seeding import torch_rng
from hqq.core.quantize import Quantizer
from torch import Tensor

from impq.hqq_backend import HqqBackend

HQQ = HqqBackend()


def library_weight(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """What hqq itself dequantises, packing included, with scale and zero-point deployed in fp16."""
    codes, meta = Quantizer.quantize(weight, nbits=bits, group_size=group_size, axis=1, device="cpu")
    codes, meta = Quantizer.to_inplace(codes, meta | {"compute_dtype": torch.float16}, device="cpu")
    return Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [8, 32, 64])
def test_equals_the_librarys_own_weight_bit_for_bit(bits: int, group_size: int) -> None:
    weight = torch.randn(48, 64, generator=torch_rng(bits, group_size))
    found = HQQ.quantize_linear(weight, bits, group_size=group_size).dequantize()
    assert torch.equal(found, library_weight(weight, bits, group_size))


def test_groups_run_over_rows_as_in_the_library() -> None:
    weight = torch.randn(8, 12, generator=torch_rng(0, "w"))
    found = HQQ.quantize_linear(weight, 4, group_size=8)
    assert torch.equal(found.dequantize(), library_weight(weight, 4, 8))
    assert found.nbytes == HQQ.nbytes(8, 12, 4, 8) == 48 + 12 * 4


def test_better_than_round_to_nearest_in_its_own_norm() -> None:
    """Half-quadratic splitting lowers the mean absolute error that the plain grid of the library has."""
    weight = torch.randn(32, 64, generator=torch_rng(0, "w"))
    codes, meta = Quantizer.quantize(weight, nbits=2, group_size=64, axis=1, device="cpu", optimize=False)
    plain = Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
    found = HQQ.quantize_linear(weight, 2, group_size=64).dequantize()
    assert float((found - weight).abs().mean()) < float((plain - weight).abs().mean())


def test_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size 64 does not divide"):
        HQQ.quantize_linear(torch.ones(3, 10), 4, group_size=64)
