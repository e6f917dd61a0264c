"""Which parts of a model are players: its block list, the linears inside, and what is never quantised."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd

from impq.weights import stores_in_out

Granularity = Literal["block", "linear", "group"]

# a mixture of experts' routers: a wrong top-k choice costs far more than their few bytes
_ROUTER = re.compile(r"(^|\.)(gate|gating|\w*router|\w*_gate)(\.|$)")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PlayerModules:
    """The linear modules of one player and the index of the block they sit in.

    >>> PlayerModules(name="h.0", block=0, modules=("h.0.up", "h.0.down")).block
    0
    """

    name: str
    block: int
    modules: tuple[str, ...]


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of an `nn.Linear` or of GPT-2's `Conv1D`, whose weight is stored [inputs, outputs]; else None.

    >>> linear_shape(nn.Linear(3, 5)), linear_shape(nn.ReLU())
    ((5, 3), None)
    """
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if stores_in_out(module) and getattr(getattr(module, "weight", None), "ndim", 0) == 2:
        inputs, outputs = module.get_parameter("weight").shape
        return outputs, inputs
    return None


def find_blocks(model: nn.Module, name: str | None = None) -> tuple[str, nn.ModuleList]:
    """The decoder's block list: the longest `nn.ModuleList` of modules of one class that contain linears.

    Lists inside another such list (the experts of a block) are not candidates.

    Args:
        model: any module.
        name: of the list, where the longest one is not meant or its blocks are of several classes.

    Returns:
        The list's name in the model, and the list.

    Raises:
        ValueError: if there is no such list, or one of its entries contains no linear.

    >>> stack = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(3)])
    >>> find_blocks(nn.ModuleDict({"layers": stack}))[0]
    'layers'
    """
    if name is not None:
        blocks = dict(model.named_modules()).get(name)
        if not isinstance(blocks, nn.ModuleList) or not len(blocks):
            found = ", ".join(n for n, m in model.named_modules() if isinstance(m, nn.ModuleList)) or "none"
            raise ValueError(f"blocks: the model has no block list {name!r}; its module lists are: {found}")
        for i, block in enumerate(blocks):
            if not any(True for _ in _linears(block, "")):
                raise ValueError(f"blocks: {name}.{i} contains no nn.Linear to quantise")
        return name, blocks
    candidates: dict[str, nn.ModuleList] = {}
    for n, m in model.named_modules():
        nested = any(n.startswith(f"{outer}.") for outer in candidates)
        if n and isinstance(m, nn.ModuleList) and not nested and _uniform(m):
            candidates[n] = m
    if not candidates:
        raise ValueError("blocks: no nn.ModuleList of same-class modules with an nn.Linear inside; name the block list")
    name = max(candidates, key=lambda n: len(candidates[n]))
    return name, candidates[name]


def find_players(
    model: nn.Module, *, granularity: Granularity = "block", blocks: str | None = None
) -> list[PlayerModules]:
    """The players of the game, in the order of the blocks.

    Args:
        model: any module.
        granularity: `block`: all linears of a block are one player; `linear`: each is its own; `group`: the linears
            under a name with `attn` or `attention` are one player and the others of the block (`mlp`) another.
        blocks: name of the block list; see `find_blocks`.

    Raises:
        ValueError: for an unknown granularity, fewer than two players, fused expert parameters, a weight that two
            players share, or what `find_blocks` raises.

    >>> stack = nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(2, 2), "up": nn.Linear(2, 2)}) for _ in range(2)])
    >>> [player.name for player in find_players(nn.ModuleDict({"h": stack}), granularity="group")]
    ['h.0.attention', 'h.0.mlp', 'h.1.attention', 'h.1.mlp']
    """
    if granularity not in ("block", "linear", "group"):
        raise ValueError(f"granularity must be 'block', 'linear' or 'group', got {granularity!r}")
    list_name, entries = find_blocks(model, blocks)
    players: dict[str, tuple[int, list[str]]] = {}
    owner: dict[int, str] = {}  # identity of a weight -> its player
    for i, block in enumerate(entries):
        prefix = f"{list_name}.{i}"
        _refuse_fused(block, prefix)
        for name, module in _linears(block, prefix):
            player = {"block": prefix, "linear": name, "group": f"{prefix}.{_group(name[len(prefix) + 1 :])}"}[
                granularity
            ]
            weight = id(module.weight)
            first = owner.setdefault(weight, player)
            if first != player:
                raise ValueError(f"players {first} and {player} share the weight of {name}; use a coarser granularity")
            modules = players.setdefault(player, (i, []))[1]
            if all(module.weight is not model.get_submodule(other).weight for other in modules):
                modules.append(name)
    if len(players) < 2:
        raise ValueError(f"model: a game needs at least two players, {list_name} has {len(players)} at {granularity!r}")
    return [PlayerModules(name=name, block=i, modules=tuple(modules)) for name, (i, modules) in players.items()]


def skipped(model: nn.Module, *, blocks: str | None = None) -> dict[str, str]:
    """The weight matrices that stay in full precision, and why: what a report must list.

    Args:
        model: any module.
        blocks: name of the block list; see `find_blocks`.

    Returns:
        Parameter name -> `router`, `outside the blocks` or `not a linear` (convolutions, raw parameters); vectors
        (norms, biases) are left out.

    >>> stack = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(2, 2), "gate": nn.Linear(2, 2)}) for _ in range(2)])
    >>> skipped(nn.ModuleDict({"h": stack, "head": nn.Linear(2, 9)}))
    {'h.0.gate.weight': 'router', 'h.1.gate.weight': 'router', 'head.weight': 'outside the blocks'}
    """
    list_name, entries = find_blocks(model, blocks)
    quantised = {
        id(module.weight) for i, block in enumerate(entries) for _, module in _linears(block, f"{list_name}.{i}")
    }
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or id(parameter) in quantised:
            continue
        if not name.startswith(f"{list_name}."):
            found[name] = "outside the blocks"
        else:
            found[name] = "router" if _is_router(name, list_name) else "not a linear"
    return found


def block_prefix(model: nn.Module, module: str, block: int) -> tuple[str, str]:
    """(name of the block list, name of block `block`) that the linear `module` lies in.

    Raises:
        ValueError: if no entry number `block` of a module list of the model contains it.

    >>> stack = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(3)])
    >>> block_prefix(nn.ModuleDict({"layers": stack}), "layers.1.0", 1)
    ('layers', 'layers.1')
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    parts = module.split(".")
    for k in range(1, len(parts)):  # outermost first: experts are lists inside a block
        list_name = ".".join(parts[:k])
        if parts[k] == str(block) and module in modules and isinstance(modules[list_name], nn.ModuleList):
            return list_name, f"{list_name}.{block}"
    raise ValueError(
        f"players: the model has no linear {module!r} in block {block}; were they made from another model?"
    )


def _uniform(entries: nn.ModuleList) -> bool:
    classes = {type(entry) for entry in entries}
    return len(classes) == 1 and all(any(True for _ in _linears(entry, "")) for entry in entries)


def _linears(block: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The linears of a block that may be quantised, with their full names; a module met twice is yielded once."""
    for name, module in block.named_modules(prefix=prefix):
        if linear_shape(module) is not None and not _is_router(name, prefix):
            yield name, module


def _is_router(name: str, prefix: str) -> bool:
    return _ROUTER.search(name[len(prefix) :].lstrip(".")) is not None


def _group(name: str) -> str:
    """`attention` or `mlp`, from a linear's name inside its block."""
    return "attention" if _ATTENTION.search(name) else "mlp"


def _refuse_fused(block: nn.Module, prefix: str) -> None:
    """Raises for weights of three dimensions, which transformers 5 uses for the experts of a mixture."""
    for name, module in block.named_modules(prefix=prefix):
        if isinstance(module, _ConvNd):
            continue
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 2:
                shape = "x".join(map(str, parameter.shape))
                raise ValueError(
                    f"model: {name}.{parameter_name} ({shape}) is a fused expert weight, not an nn.Linear; unfuse it"
                )
