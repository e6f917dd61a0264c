import pytest
import torch
from aisec_common.seeding import torch_rng
from hypothesis import given, settings
from hypothesis import strategies as st

from impq.rtn_backend import RtnBackend, affine_grid

RTN = RtnBackend()
WIDTHS = st.sampled_from([2, 3, 4, 8])


def half_step(weight: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """Half of the stored scale of each weight's group."""
    scale = RTN.quantize_linear(weight, bits, group_size=group_size).scale.double()
    return scale.repeat_interleave(group_size, dim=1)[:, : weight.shape[1]] / 2


@settings(max_examples=150)
@given(WIDTHS, st.integers(1, 9), st.integers(1, 8), st.floats(-9, 4), st.floats(-3, 3), st.integers(0, 10**6))
def test_error_is_at_most_half_a_stored_step(
    bits: int, in_: int, group_size: int, log_scale: float, offset: float, seed: int
) -> None:
    """From fp16's subnormals to its largest scales, zero inside the group's range or not."""
    weight = (torch.randn(3, in_, generator=torch_rng(seed, "w")) + offset) * 10**log_scale
    found = RTN.quantize_linear(weight, bits, group_size=group_size).dequantize()
    error = (found.double() - weight.double()).abs()
    # fp32 carries w/s + z and s (q - z) to about 1e-7 of the numbers involved
    slack = 1e-6 * weight.double().abs().amax() + 1e-5 * half_step(weight, bits, group_size)
    assert bool((error <= half_step(weight, bits, group_size) + slack).all())


@settings(max_examples=60)
@given(WIDTHS, st.floats(-(2**15), 2**15, width=16), st.integers(1, 9))
def test_constant_group_is_exact(bits: int, constant: float, group_size: int) -> None:
    weight = torch.full((2, 7), constant)
    assert torch.equal(RTN.quantize_linear(weight, bits, group_size=group_size).dequantize(), weight)


def test_constant_that_fp16_cannot_hold_is_as_close_as_fp16() -> None:
    weight = torch.full((1, 4), 0.1)
    found = RTN.quantize_linear(weight, 2, group_size=4).dequantize()
    assert torch.equal(found, weight.half().float())


def test_grid_agrees_with_a_slow_search() -> None:
    """Every weight gets the nearest point of its own stored grid."""
    weight = torch.randn(4, 10, generator=torch_rng(0, "w"))
    for bits in (2, 3):
        packed = RTN.quantize_linear(weight, bits, group_size=4)
        found = packed.dequantize()
        for row in range(4):
            for column in range(10):
                members = weight[row, column // 4 * 4 : column // 4 * 4 + 4]
                scale, zero = affine_grid(members, bits)
                grid = scale.float() * (torch.arange(2**bits) - zero)
                assert found[row, column] == grid[(grid - weight[row, column]).abs().argmin()]


def test_groups_of_rows_and_of_the_matrix() -> None:
    weight = torch.randn(6, 10, generator=torch_rng(0, "w"))
    row = RTN.quantize_linear(weight, 4, group_size="row").dequantize()
    assert torch.equal(row, RTN.quantize_linear(weight, 4, group_size=10).dequantize())
    tensor = RTN.quantize_linear(weight, 4, group_size="tensor").dequantize()
    flat = RTN.quantize_linear(weight.reshape(1, -1), 4, group_size="row").dequantize()
    assert torch.equal(tensor.reshape(1, -1), flat)


def test_zero_is_on_every_grid() -> None:
    weight = torch.rand(4, 16, generator=torch_rng(0, "w")) + 1
    weight[:, ::4] = 0
    assert bool((RTN.quantize_linear(weight, 2, group_size=8).dequantize()[:, ::4] == 0).all())


def test_largest_scales_are_refused_not_infinite() -> None:
    assert bool(torch.isfinite(affine_grid(torch.tensor([[0.0, 65504.0 * 3]]), 2)[0]).all())
    with pytest.raises(ValueError, match="fp16"):
        affine_grid(torch.tensor([[0.0, 65600.0 * 3]]), 2)
