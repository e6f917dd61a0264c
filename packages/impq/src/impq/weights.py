"""Every linear of a model quantised once at every width, ready to be swapped into its blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from impq.backend import Backend, GroupSize, check_bits, check_group_size, get_backend
from impq.quantized_linear import QuantizedLinear


def stores_in_out(module: nn.Module) -> bool:
    """Whether the module keeps its weight as [in, out], as GPT-2's Conv1D does, instead of [out, in].

    >>> stores_in_out(nn.Linear(2, 3))
    False
    """
    return type(module).__name__ == "Conv1D"


def linear_weight(model: nn.Module, name: str) -> Tensor:
    """The weight of a linear module as [out, in], whatever its own layout.

    Raises:
        ValueError: the model has no such module, or it has no weight matrix.

    >>> tuple(linear_weight(nn.Sequential(nn.Linear(2, 3)), "0").shape)
    (3, 2)
    """
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"modules: the model has no module {name}; take names from model.named_modules()") from None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ValueError(f"modules: {name} is a {type(module).__name__} without a weight matrix; name linears only")
    return weight.detach().t() if stores_in_out(module) else weight.detach()


def quantize_module(
    model: nn.Module, name: str, backend: Backend, bits: int, group_size: GroupSize, hessian: Tensor | None
) -> QuantizedLinear:
    """One linear of the model quantised to one width; errors begin with the module's name."""
    weight = linear_weight(model, name).contiguous()
    try:
        return backend.quantize_linear(weight, bits, group_size=group_size, hessian=hessian)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


class QuantizedWeights(Mapping[tuple[str, int], Tensor]):
    """W_b of every (module, level) of a game, in layout, dtype and device of the module's own parameter.

    Each pair is quantised exactly once, from the full-precision model: weights depend on nothing but (module, width),
    which is what makes v a function of the coalition.

    Args:
        model: full-precision model; it is only read.
        players_modules: names of the linears of each player.
        backend: name or Backend.
        bits: widths, highest first; level s is bits[s].
        group_size: weights per scale along the input, "row" or "tensor".
        hessians: module name -> [in, in], for a backend that needs them (`collect_hessians`).
        keep: "resident" keeps every dequantised weight (len(bits) copies of the model's linears); "packed" keeps codes
            and dequantises at every access.
        progress: called with (done, total) after every quantised weight.

    Raises:
        ValueError: unknown module, unsupported bits or group, missing Hessian; the message names the module.

    >>> weights = QuantizedWeights(nn.Sequential(nn.Linear(8, 4)), [["0"]], "rtn", (4, 2), 4)
    >>> weights["0", 1].shape, weights.nbytes("0"), len(weights)
    (torch.Size([4, 8]), (36, 26), 2)
    """

    def __init__(
        self,
        model: nn.Module,
        players_modules: Sequence[Sequence[str]],
        backend: str | Backend,
        bits: Sequence[int],
        group_size: GroupSize,
        *,
        hessians: Mapping[str, Tensor] | None = None,
        keep: Literal["resident", "packed"] = "resident",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if keep not in ("resident", "packed"):
            raise ValueError(f"keep is {keep!r}; choose 'resident' or 'packed'")
        backend = get_backend(backend)
        check_group_size(group_size)
        for width in bits:
            check_bits(backend, width)
        names = list(dict.fromkeys(name for modules in players_modules for name in modules))
        self.backend = backend
        self.bits = tuple(bits)
        self._transposed: dict[str, bool] = {}
        self._resident: dict[tuple[str, int], Tensor] = {}
        self._packed: dict[tuple[str, int], QuantizedLinear] = {}
        self._nbytes: dict[tuple[str, int], int] = {}
        for name in names:
            linear_weight(model, name)  # names what is wrong before hours of quantising
            self._transposed[name] = stores_in_out(model.get_submodule(name))
        for name in names:
            for level, width in enumerate(self.bits):
                hessian = None if hessians is None else hessians.get(name)
                packed = quantize_module(model, name, backend, width, group_size, hessian)
                self._nbytes[name, level] = packed.nbytes
                if keep == "packed":
                    self._packed[name, level] = packed.compact()
                else:
                    self._resident[name, level] = self._laid_out(name, packed)
                if progress is not None:
                    progress(len(self._nbytes), len(names) * len(self.bits))

    def _laid_out(self, name: str, packed: QuantizedLinear) -> Tensor:
        weight = packed.dequantize()
        return weight.t().contiguous() if self._transposed[name] else weight

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        if key in self._packed:
            return self._laid_out(key[0], self._packed[key])
        return self._resident[key]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._nbytes)

    def __len__(self) -> int:
        return len(self._nbytes)

    def nbytes(self, module: str) -> tuple[int, ...]:
        """Bytes of the module's quantised weight at each width."""
        return tuple(self._nbytes[module, level] for level in range(len(self.bits)))
