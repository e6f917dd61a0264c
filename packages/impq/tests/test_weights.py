import pytest
import torch
from aisec_common.seeding import torch_rng
from torch import Tensor, nn

from impq.backend import get_backend
from impq.weights import QuantizedWeights, linear_weight


class Conv1D(nn.Module):
    """GPT-2's layer: weight [in, out]."""

    def __init__(self, out: int, in_: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(in_, out, generator=torch_rng(1))), None

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


def small_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 6), Conv1D(5, 6)).to(dtype)
    nn.init.normal_(model[0].weight, generator=torch_rng(0))
    return model


@pytest.mark.parametrize("keep", ["resident", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_layout_of_the_modules(keep: str, dtype: torch.dtype) -> None:
    model = small_model(dtype)
    weights = QuantizedWeights(model, [["0"], ["1"]], "rtn", (4, 2), 4, keep=keep)
    rtn = get_backend("rtn")
    for level, bits in enumerate((4, 2)):
        expected = rtn.quantize_linear(model[0].weight, bits, group_size=4)
        assert torch.equal(weights["0", level], expected.dequantize())
        turned = rtn.quantize_linear(model[1].weight.t(), bits, group_size=4)
        assert torch.equal(weights["1", level], turned.dequantize().t())
        assert weights["1", level].shape == model[1].weight.shape
        assert weights["1", level].dtype == dtype
        assert weights["1", level].is_contiguous()
        assert weights.nbytes("1")[level] == rtn.nbytes(5, 6, bits, 4)
    assert set(weights) == {("0", 0), ("0", 1), ("1", 0), ("1", 1)}
    with pytest.raises(KeyError):
        weights["0", 2]


def test_each_weight_is_quantised_once_and_reported() -> None:
    rtn, asked, seen = get_backend("rtn"), [], []

    class Counting:
        name, supported_bits, needs_hessian, nbytes = rtn.name, rtn.supported_bits, False, rtn.nbytes

        def quantize_linear(self, weight: Tensor, bits: int, **options: object) -> object:
            asked.append((tuple(weight.shape), bits))
            return rtn.quantize_linear(weight, bits, **options)

    weights = QuantizedWeights(
        small_model(),
        [["0", "1"]],
        Counting(),
        (8, 4, 2),
        "row",
        progress=lambda done, total: seen.append((done, total)),
    )
    for _ in range(3):
        weights["0", 1], weights["1", 2]
    assert len(asked) == len(set(asked)) == 6
    assert seen == [(done, 6) for done in range(1, 7)]


def test_hessians_go_to_their_modules() -> None:
    model, hessian = small_model(), torch.diag(torch.arange(1.0, 9.0)) + 1
    weights = QuantizedWeights(model, [["0"]], "gptq", (4, 2), 8, hessians={"0": hessian})
    expected = get_backend("gptq").quantize_linear(model[0].weight, 2, group_size=8, hessian=hessian)
    assert torch.equal(weights["0", 1], expected.dequantize())


def test_linear_weight_is_out_by_in() -> None:
    assert linear_weight(small_model(), "1").shape == (5, 6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"players_modules": [["ghost"]]}, "ghost"),
        ({"players_modules": [[""]]}, "without a weight"),
        ({"backend": "gptq"}, "^1: hessian"),
        ({"backend": "quanto", "bits": (4, 3)}, "bits 3"),
        ({"backend": "hqq", "group_size": 64}, "^1: group_size 64"),
        ({"group_size": 0}, "group_size"),
        ({"keep": "disk"}, "keep"),
    ],
)
def test_errors_name_module_or_argument(options: dict[str, object], words: str) -> None:
    wanted = {"players_modules": [["1"]], "backend": "rtn", "bits": (4, 2), "group_size": 4, **options}
    with pytest.raises(ValueError, match=words):
        QuantizedWeights(small_model(), **wanted)


def test_non_finite_weights_name_their_module() -> None:
    model = small_model()
    with torch.no_grad():
        model[1].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"^1: weight holds NaN"):
        QuantizedWeights(model, [["0"], ["1"]], "rtn", (4, 2), 4)
