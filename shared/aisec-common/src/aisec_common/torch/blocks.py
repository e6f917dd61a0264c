"""The decoder blocks of a model, whatever its classes call them."""

from __future__ import annotations

import re

from torch import nn

_OTHER_TOWER = re.compile(r"(^|[._])(vision|visual|audio)")


def find_blocks(model: nn.Module, name: str | None = None) -> tuple[str, nn.ModuleList]:
    """The block list: the longest `nn.ModuleList` of modules of one class.

    Lists inside another such list (the experts of a block) are no candidates, nor are those of a vision or audio tower
    beside a language tower. Adapters (PEFT) leave the list as it is and only put a prefix before its name.

    Args:
        model: any module.
        name: of the list, where the longest one is not meant or its blocks are of several classes.

    Returns:
        The list's name in the model, and the list.

    Raises:
        ValueError: if there is no such list; where `name` is wrong, with the lists there are.

    >>> stack = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    >>> find_blocks(nn.ModuleDict({"layers": stack}))[0]
    'layers'
    """
    lists = {n: m for n, m in model.named_modules() if n and isinstance(m, nn.ModuleList) and len(m)}
    if name is not None:
        if name not in lists:
            raise ValueError(
                f"the model has no block list {name!r}; its module lists are: {', '.join(lists) or 'none'}"
            )
        return name, lists[name]
    candidates: dict[str, nn.ModuleList] = {}
    for n, m in lists.items():
        nested = any(n.startswith(f"{outer}.") for outer in candidates)
        if not nested and len({type(block) for block in m}) == 1:
            candidates[n] = m
    candidates = {n: m for n, m in candidates.items() if not _OTHER_TOWER.search(n)} or candidates
    if not candidates:
        raise ValueError("the model has no nn.ModuleList of same-class modules; name the block list")
    longest = max(candidates, key=lambda n: len(candidates[n]))
    return longest, candidates[longest]
