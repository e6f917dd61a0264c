"""Deploying a bit plan: a model whose planned linears are packed, and its file format."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from aisec_common.files import write_atomic
from aisec_common.torch.model_hash import model_hash
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from impq.backend import Backend, GroupSize, check_group_size, get_backend
from impq.bit_plan import BitPlan
from impq.blocks import block_prefix
from impq.gptq_backend import collect_hessians
from impq.hf_model import PACKED
from impq.quantized_linear import PackedLinear, QuantizedLinear
from impq.weights import linear_weight, quantize_module, stores_in_out

PLAN = "plan.json"


def apply_plan(
    model: nn.Module,
    plan: BitPlan,
    *,
    backend: str | Backend | None = None,
    group_size: GroupSize | None = None,
    run: Callable[[nn.Module], object] | None = None,
    sequential: bool = False,
) -> nn.Module:
    """A copy of the model in which every linear of the plan is packed at its width.

    The copy shares all other parameters and buffers with `model`, which stays as it is; linears tied to a planned
    one are packed with it.

    Args:
        model: the full-precision model the plan was made for.
        plan: which linear gets how many bits.
        backend: name or Backend; that of the plan's game by default.
        group_size: weights per scale, "row" or "tensor"; that of the plan's game by default.
        run: feeds the calibration text through the model it is given; for a backend that needs Hessians.
        sequential: player after player, each with Hessians of the already quantised ones before it (GPTQ as usually
            deployed) instead of Hessians of the full-precision model (the weights the game measured). One `run` per
            player.

    Returns:
        The quantised model, in the training mode of `model`.

    Raises:
        ValueError: the plan is for another model (names the first mismatch), `run` is missing, `sequential` is not
            possible, or the backend refuses a layer (names it).

    >>> from impq.budget import Budget
    >>> from impq.player import Player
    >>> player = Player(name="0", block=0, modules=("0",), shapes=((4, 8),), nbytes=(36, 26))
    >>> plan = BitPlan(model_name="m", model_hash="", backend="rtn", group_size=4, granularity="linear", widths=(4, 2),
    ...     players=(player,), levels=(1,), other_bytes=0, budget=Budget(avg_bits=2.0))
    >>> apply_plan(nn.Sequential(nn.Linear(8, 4, bias=False)), plan)
    Sequential(
      (0): PackedLinear(8, 4, bits=2, group=4)
    )
    """
    check_plan(model, plan)
    backend, groups = _quantiser(plan, backend, group_size)
    if backend.needs_hessian and run is None:
        raise ValueError(f"run is missing; backend {backend.name} needs it to feed the calibration text to the model")
    if sequential and not backend.needs_hessian:
        raise ValueError(f"sequential has no meaning for backend {backend.name}, which uses no inputs; leave it out")
    applied = _shared_copy(model)
    stages = [player.modules for player in plan.players]
    for names in stages if sequential else [tuple(chain.from_iterable(stages))]:
        hessians: dict[str, Tensor] = {}
        if backend.needs_hessian and run is not None:
            hessians = collect_hessians(applied, names, partial(run, applied))
        for name in names:
            width = plan.module_bits[name]
            packed = quantize_module(applied, name, backend, width, groups, hessians.pop(name, None))
            _replace(applied, name, packed)
    return applied


def _quantiser(plan: BitPlan, backend: str | Backend | None, group_size: GroupSize | None) -> tuple[Backend, GroupSize]:
    """What is asked for, or what the plan's game was played with."""
    groups = cast(GroupSize, plan.group_size if group_size is None else group_size)
    check_group_size(groups)
    return get_backend(plan.backend if backend is None else backend), groups


def check_plan(model: nn.Module, plan: BitPlan) -> None:
    """Refuses a plan whose modules or shapes are not those of the model.

    Raises:
        ValueError: naming the first mismatch.
    """
    covered = {player.block for player in plan.players}
    for player in plan.players:
        for name, planned in zip(player.modules, player.shapes, strict=True):
            if isinstance(dict(model.named_modules()).get(name), PackedLinear):
                raise ValueError(f"plan: {name} is packed already; apply plans to the full-precision model")
            try:
                found = tuple(linear_weight(model, name).shape)
            except ValueError:
                raise ValueError(f"plan: the model has no linear {name}; the plan is for another model") from None
            if found != planned:
                raise ValueError(f"plan: {name} is {found} in the model and {planned} in the plan")
    blocks = _block_list(model, plan)
    if blocks is not None and (left_out := set(range(len(blocks))) - covered):
        raise ValueError(f"plan: says nothing of block {min(left_out)} of {len(blocks)}; the plan is for another model")


def _block_list(model: nn.Module, plan: BitPlan) -> nn.ModuleList | None:
    """The block list that the plan's modules lie in; None for a model of another build."""
    first = plan.players[0]
    try:
        name, _ = block_prefix(model, first.modules[0], first.block)
    except ValueError:
        return None
    return cast(nn.ModuleList, model.get_submodule(name))


def same_weights(model: nn.Module, plan: BitPlan) -> bool:
    """Whether the plan was made for exactly these weights, in this dtype.

    `apply_plan` asks for the same modules and shapes only, so that a plan can serve a fine-tuned model.
    """
    return model_hash(model) == plan.model_hash


def applied_plan(
    plan: BitPlan,
    *,
    backend: str | Backend | None = None,
    group_size: GroupSize | None = None,
    sequential: bool = False,
) -> BitPlan:
    """The plan with the bytes that another quantiser or group size needs; its `within_budget` may become false.

    Args:
        plan: as solved; which player gets how many bits does not change.
        backend, group_size, sequential: as given to `apply_plan`.

    Raises:
        ValueError: the backend or the group size is unknown or does not fit a layer.

    >>> from impq.budget import Budget
    >>> from impq.player import Player
    >>> player = Player(name="0", block=0, modules=("0",), shapes=((4, 8),), nbytes=(36, 26))
    >>> plan = BitPlan(model_name="m", model_hash="", backend="rtn", group_size=4, granularity="linear", widths=(4, 2),
    ...     players=(player,), levels=(1,), other_bytes=0, budget=Budget(bytes=30))
    >>> other = applied_plan(plan, backend="hqq")
    >>> plan.bytes, plan.within_budget, other.backend, other.bytes, other.within_budget
    (26, True, 'hqq', 40, False)
    """
    backend, groups = _quantiser(plan, backend, group_size)
    players = tuple(
        replace(
            player,
            nbytes=tuple(sum(backend.nbytes(*shape, bits, groups) for shape in player.shapes) for bits in plan.widths),
        )
        for player in plan.players
    )
    return replace(plan, players=players, backend=backend.name, group_size=groups, sequential=sequential)


def save_applied(
    model: nn.Module,
    plan: BitPlan,
    folder: Path,
    *,
    backend: str | Backend | None = None,
    group_size: GroupSize | None = None,
    sequential: bool = False,
) -> None:
    """Writes a quantised model as packed.safetensors, which `load_applied` reads, and `applied_plan` as plan.json.

    Tensors shared by several names are stored once.

    Args:
        model: what `apply_plan` returned.
        plan, backend, group_size, sequential: as given to `apply_plan`.
        folder: where to.

    Raises:
        ValueError: the model holds no packed layer, or others than the plan counts.
    """
    packed = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, PackedLinear)}
    if not packed:
        raise ValueError("model holds no packed layer; pass what apply_plan returned")
    layers = {
        name: {
            "shape": [module.out_features, module.in_features],
            "bits": module.bits,
            "group": module.group,
            "zero_kind": module.zero_kind,
        }
        for name, module in packed.items()
    }
    plan = applied_plan(plan, backend=backend, group_size=group_size, sequential=sequential)
    for player, level in zip(plan.players, plan.levels, strict=True):
        linears = [packed[name] for name in player.modules if name in packed]
        stored = sum(tensor.nbytes for linear in linears for tensor in linear.buffers(recurse=False))
        if stored != player.nbytes[level]:
            raise ValueError(
                f"plan: {player.name} has {stored} packed bytes, the plan counts {player.nbytes[level]} for backend "
                f"{plan.backend}, group_size {plan.group_size}; give backend and group_size as to apply_plan"
            )
    first: dict[tuple[int, torch.Size, torch.dtype], str] = {}
    tensors, same_as = {}, {}
    for name, tensor in model.state_dict().items():
        known = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.dtype), name)
        if known == name:
            tensors[name] = tensor.contiguous()
        else:
            same_as[name] = known
    metadata = {"impq": json.dumps({"schema": 1, "layers": layers, "same_as": same_as})}
    write_atomic(folder / PACKED, save(tensors, metadata=metadata))
    plan.save(folder / PLAN)


def load_applied(model: nn.Module, folder: Path) -> nn.Module:
    """The quantised model that `save_applied` wrote, built on the architecture of `model`.

    Neither the backend's library nor the calibration text is needed. `model` stays as it is; its weights do not
    matter, its device is used.

    Raises:
        ValueError: a file is missing or damaged, or was written for another model (names the first mismatch).
    """
    check_plan(model, BitPlan.load(folder / PLAN))
    device = next(model.parameters()).device
    try:
        with safe_open(folder / PACKED, framework="pt", device=str(device)) as file:
            described = json.loads(file.metadata()["impq"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        same_as: dict[str, str] = described["same_as"]
        tensors |= {name: tensors[known] for name, known in same_as.items()}
        layers = {name: _packed(name, layer, tensors) for name, layer in described["layers"].items()}
    except Exception as error:
        raise ValueError(f"folder: {folder / PACKED} is not a quantised model ({type(error).__name__})") from None
    applied = _shared_copy(model)
    for name, packed in layers.items():
        linear_weight(applied, name)
        old = applied.get_submodule(name)
        applied.set_submodule(name, packed.to_module(_bias(old)).train(old.training))
    expected = applied.state_dict(keep_vars=True)
    for known in set(same_as.values()):
        if isinstance(expected.get(known), nn.Parameter):  # one parameter for all its names: tied weights stay tied
            shared = nn.Parameter(tensors[known], requires_grad=False)
            tensors |= dict.fromkeys((known, *(name for name, first in same_as.items() if first == known)), shared)
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            where = "file" if name not in tensors else "model"
            raise ValueError(f"model: the {where} has no {name}; {folder} was written for another model")
        ours, theirs = tuple(expected[name].shape), tuple(tensors[name].shape)
        if ours != theirs:
            raise ValueError(f"model: {name} is {ours}, but {theirs} in {folder}; it was written for another model")
    applied.load_state_dict(tensors, assign=True)
    return applied


def _shared_copy(model: nn.Module) -> nn.Module:
    """New modules around the same parameters and buffers."""
    return deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def _replace(model: nn.Module, name: str, packed: QuantizedLinear) -> None:
    """Puts the packed layer in place of the linear `name` and of every linear tied to it."""
    weight = model.get_submodule(name).weight
    tied = [other for other, module in model.named_modules(remove_duplicate=False) if _weight(module) is weight]
    for other in tied:
        module = model.get_submodule(other)
        if not isinstance(module, nn.Linear) and not stores_in_out(module):
            raise ValueError(
                f"plan: {name} shares its weight with {other}, which is no linear; leave it out of the plan"
            )
        model.set_submodule(other, packed.to_module(_bias(module)).train(module.training))


def _weight(module: nn.Module) -> object:
    return None if isinstance(module, PackedLinear) else getattr(module, "weight", None)


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def _packed(name: str, layer: dict[str, Any], tensors: dict[str, Tensor]) -> QuantizedLinear:
    """The packed weight described in the file."""
    zero = tensors.get(f"{name}.zero")
    return QuantizedLinear(
        codes=tensors[f"{name}.codes"],
        scale=tensors[f"{name}.scale"].view(torch.float16),
        zero=zero if zero is None or layer["zero_kind"] == "code" else zero.view(torch.float16),
        zero_kind=layer["zero_kind"],
        shape=(layer["shape"][0], layer["shape"][1]),
        bits=layer["bits"],
        group=layer["group"],
        dtype=torch.float32,
    )
