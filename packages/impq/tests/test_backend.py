import itertools
import sys
from dataclasses import dataclass

import pytest
import torch
from aisec_common.command import run_command
from aisec_common.seeding import torch_rng

from impq.backend import BACKENDS, Backend, get_backend, group_count, linear_bytes

SHAPES = ((1, 1), (3, 5), (5, 7), (8, 64), (7, 96))


@pytest.mark.parametrize("name", ["rtn", "gptq"])
@pytest.mark.parametrize("group_size", [1, 4, 64, "row", "tensor"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_memory_model_is_exact_for_odd_shapes(name: str, bits: int, group_size: int | str) -> None:
    backend = get_backend(name)
    for out, in_ in SHAPES:
        weight = torch.randn(out, in_, generator=torch_rng(out, in_))
        packed = backend.quantize_linear(weight, bits, group_size=group_size, hessian=torch.eye(in_))
        assert packed.nbytes == backend.nbytes(out, in_, bits, group_size)
        assert packed.dequantize().shape == (out, in_)


@pytest.mark.parametrize(
    ("name", "bits", "group_size"),
    [
        *itertools.product(["hqq"], [2, 3, 4, 8], [1, 4, "row", "tensor"]),
        *itertools.product(["quanto"], [2, 4, 8], [1, 4, "row"]),
    ],
)
def test_memory_model_is_exact_for_library_backends(name: str, bits: int, group_size: int | str) -> None:
    backend = get_backend(name)
    for out, in_ in ((1, 4), (3, 8), (5, 12)):
        weight = torch.randn(out, in_, generator=torch_rng(out, in_))
        packed = backend.quantize_linear(weight, bits, group_size=group_size)
        assert packed.nbytes == backend.nbytes(out, in_, bits, group_size)


def test_the_specs_effective_bits() -> None:
    """g=64 makes 2 bits 2.28 (integer zero-points) or 2.5 (fp16 zero-points)."""
    assert 8 * linear_bytes(64, 64, 2, 64, "code") / 64**2 == pytest.approx(2.28125)
    assert 8 * linear_bytes(64, 64, 2, 64, "half") / 64**2 == 2.5
    assert group_count(3, 65, 64) == 6


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_backend_keeps_the_contract(name: str, dtype: torch.dtype) -> None:
    """dtype kept, input unchanged, deterministic, an ordinary tensor, error falling with the width."""
    backend = get_backend(name)
    assert isinstance(backend, Backend)
    assert backend.name == name
    weight = torch.randn(16, 64, generator=torch_rng(0, name)).to(dtype)
    before, errors, state = weight.clone(), [], torch.get_rng_state()
    for bits in sorted(backend.supported_bits):
        packed = backend.quantize_linear(weight, bits, group_size=32, hessian=torch.eye(64))
        again = backend.quantize_linear(weight, bits, group_size=32, hessian=torch.eye(64))
        found = packed.dequantize()
        assert found.dtype == dtype
        assert not found.is_inference()
        assert torch.equal(found, again.dequantize())
        errors.append(float((found.float() - weight.float()).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.3
    assert torch.equal(weight, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    ("weight", "bits", "group_size", "words"),
    [
        (torch.ones(2, 4), 5, 4, "bits 5"),
        (torch.ones(2, 4), 4, 0, "group_size"),
        (torch.ones(2, 4), 4, "column", "group_size"),
        (torch.ones(4), 4, 4, "weight"),
        (torch.ones(0, 4), 4, 4, "weight"),
        (torch.full((2, 4), torch.nan), 4, 4, "NaN"),
        (torch.tensor([[3e38, -3e38]]), 2, 2, "fp16"),
    ],
)
def test_wrong_input_is_refused(name: str, weight: torch.Tensor, bits: int, group_size: int | str, words: str) -> None:
    hessian = torch.eye(weight.shape[-1])
    with pytest.raises(ValueError, match=words) as caught:
        get_backend(name).quantize_linear(weight, bits, group_size=group_size, hessian=hessian)
    assert "\n" not in str(caught.value)


@dataclass
class Nothing:
    """The words of a command that takes none."""


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="weight"):
        get_backend("rtn").quantize_linear(torch.ones(2, 4, dtype=torch.int8), 4, group_size=4)


def test_unknown_and_missing_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend 'awq'"):
        get_backend("awq")
    with pytest.raises(ValueError, match="backend 3"):
        get_backend(3)
    rtn = get_backend("rtn")
    assert get_backend(rtn) is rtn


@pytest.mark.parametrize(
    ("name", "library", "module"), [("hqq", "hqq.core.quantize", "hqq"), ("quanto", "optimum.quanto", "optimum")]
)
def test_a_missing_library_is_named_as_the_command_looks_it_up(name, library, module, monkeypatch, capsys) -> None:
    monkeypatch.delitem(sys.modules, f"impq.{name}_backend", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"backend {name} needs {module}: .*aisec-impq\[{name}\]") as caught:
        get_backend(name)
    assert caught.value.name == module

    def work(_: object) -> None:
        get_backend(name)

    assert run_command("impq", Nothing, work, [], needs={module: name}) == 2
    assert capsys.readouterr().err == f"impq: needs {module}: pip install 'aisec-impq[{name}]'\n"


def test_another_import_error_keeps_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "impq.hqq_backend", raising=False)
    monkeypatch.setitem(sys.modules, "impq.quantized_linear", None)
    with pytest.raises(ModuleNotFoundError, match=r"impq\.quantized_linear"):
        get_backend("hqq")
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "impq.hqq_backend", raising=False)
    monkeypatch.delattr("hqq.core.quantize.Quantizer")
    with pytest.raises(ImportError, match="cannot import name 'Quantizer'"):
        get_backend("hqq")
