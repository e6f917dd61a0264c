import numpy as np
import pytest
import torch
from aisec_common.seeding import torch_rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impq.quantized_linear import PackedLinear, QuantizedLinear, pack_codes, packed_bytes, unpack_codes
from impq.rtn_backend import RtnBackend


def bit_string(codes: list[int], bits: int) -> bytes:
    """Slow reference: one long integer, first code lowest."""
    number = sum(code << bits * position for position, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@settings(max_examples=60)
@given(st.sampled_from([2, 3, 4, 8]), st.lists(st.integers(0, 255), min_size=1, max_size=70))
def test_codes_are_packed_without_gaps_and_come_back(bits: int, raw: list[int]) -> None:
    codes = [code % 2**bits for code in raw]
    packed = pack_codes(torch.tensor(codes), bits)
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == bit_string(codes, bits)
    assert packed.numel() == packed_bytes(len(codes), bits)
    assert unpack_codes(packed, bits, len(codes)).tolist() == codes


@pytest.mark.parametrize("chunk", [1, 2**18])
@pytest.mark.parametrize("group", [4, 7])  # a ragged last group, and one group in a row
@pytest.mark.parametrize("kind", ["code", "real", "shift", "middle"])
def test_dequantize_agrees_with_a_loop_in_numpy(
    kind: str, group: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("impq.quantized_linear.CHUNK", chunk)  # 1: eight rows at once
    rng = torch_rng(0, kind)
    out, in_, bits = 19, 7, 3  # 399 bits
    groups = -(-in_ // group)
    codes = torch.randint(0, 8, (out, in_), generator=rng)
    scale = torch.rand(out, groups, generator=rng).half()
    whole = torch.randint(0, 8, (out, groups), generator=rng)
    real = torch.randn(out, groups, generator=rng).half()
    zero = {"code": pack_codes(whole, bits), "real": real, "shift": real, "middle": None}[kind]
    packed = QuantizedLinear(
        codes=pack_codes(codes, bits),
        scale=scale,
        zero=zero,
        zero_kind=kind,
        shape=(out, in_),
        bits=bits,
        group=group,
        dtype=torch.float32,
    )
    expected = np.empty((out, in_), dtype=np.float32)
    for row in range(out):
        for column in range(in_):
            at = row, column // group
            q, s = np.float32(codes[row, column]), np.float32(scale[at])
            z = {"code": np.float32(whole[at]), "middle": np.float32(4)}.get(kind, np.float32(real[at]))
            expected[row, column] = s * q - z if kind == "shift" else s * (q - z)
    np.testing.assert_array_equal(packed.dequantize().numpy(), expected)
    np.testing.assert_array_equal(packed.to_module(None).packed(torch.float32).dequantize().numpy(), expected)


def test_module_stores_the_counted_bytes_and_computes_the_linear_map() -> None:
    weight, bias = torch.randn(5, 7, generator=torch_rng(0, "w")), nn.Parameter(torch.ones(5))
    packed = RtnBackend().quantize_linear(weight, 3, group_size=3)
    module = packed.to_module(bias)
    state = module.state_dict()
    assert set(state) == {"codes", "scale", "zero", "bias"}
    assert sum(state[name].nbytes for name in ("codes", "scale", "zero")) == packed.nbytes
    assert module.bias is bias
    inputs = torch.randn(2, 4, 7, generator=torch_rng(0, "x"))
    assert torch.equal(module(inputs), nn.functional.linear(inputs, packed.dequantize(), bias))
    assert "bits=3" in repr(module)


def test_casting_the_model_leaves_the_stored_numbers_alone() -> None:
    packed = RtnBackend().quantize_linear(torch.randn(4, 8, generator=torch_rng(0, "w")), 2, group_size=4)
    module = nn.Sequential(PackedLinear(packed, None)).bfloat16().float()
    assert torch.equal(module[0].packed(torch.float32).dequantize(), packed.dequantize())
    assert module.bfloat16()(torch.ones(1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_gradients_reach_the_inputs() -> None:
    packed = RtnBackend().quantize_linear(torch.randn(4, 8, generator=torch_rng(0, "w")), 4, group_size=8)
    inputs = torch.ones(1, 8, requires_grad=True)
    packed.to_module(None)(inputs).sum().backward()
    assert torch.allclose(inputs.grad[0], packed.dequantize().sum(0))
