"""What else could be cut in place of a path: the same budget at one layer, at random, or by a rule without causes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from aisec_common.seeding import torch_rng
from aisec_common.torch.hooks import Edit, capture
from torch import Tensor, nn

from tracerouter.features import delta_wfs, top_units
from tracerouter.influence import fis
from tracerouter.path import Trace
from tracerouter.sites import DECODER, Adapter, Key, find_sites

Units = dict[Key, Tensor]


def control_path(name: str, trace: Trace, *, seed: int = 0) -> Units:
    """The units that a control cuts in the place of the path of `trace`; pass them to `trace.with_path`.

    No control cuts more units than the path does, and at every layer and site that it uses `random`, `delta_wfs` and
    `printed_fis` cut as many as the path does there.

    Args:
        name: one of `CONTROLS`:
            `"local"`: the units of highest score at l* alone, at each site as many as the path has over all layers;
            units that are no more active on sensitive prompts are left alone, so that there may be fewer.
            `"source"`: what the path has at l*.  `"path_only"`: what it has behind l*.
            `"delta_wfs"`: the units of highest ΔWFS at every layer, without a causal step.
            `"printed_fis"`: the units of highest FIS as printed, without contrast, behind the same source.
            `"random"`: drawn at each layer and site among units outside the path whose f μ on sensitive prompts is at
            least the smallest in the path; where there are too few of them, the strongest others besides.
        trace: with the path to replace.
        seed: of `"random"`.

    Raises:
        ValueError: for an unknown name.

    Source: arXiv 2601.21900 (random suppression of equal number); the other controls are ours.
    """
    if name not in CONTROLS:
        raise ValueError(f"name must be one of {', '.join(CONTROLS)}, got {name!r}")
    return CONTROLS[name](trace, seed)


def _local(trace: Trace, seed: int) -> Units:
    budget = {site: sum(len(units) for key, units in trace.path.items() if key[1] == site) for site in trace.sites}
    return {key: _top(trace.score(key), budget[key[1]]) for key in trace.path if key[0] == trace.onset}


def _source(trace: Trace, seed: int) -> Units:
    return {key: units for key, units in trace.path.items() if key[0] == trace.onset}


def _path_only(trace: Trace, seed: int) -> Units:
    return {key: units for key, units in trace.path.items() if key[0] > trace.onset}


def _delta_wfs(trace: Trace, seed: int) -> Units:
    return {key: _top(delta_wfs(trace.plus[key], trace.minus[key]), len(units)) for key, units in trace.path.items()}


def _printed_fis(trace: Trace, seed: int) -> Units:
    later = {
        key: _top(fis(trace.plus[key], trace.delta[key]), len(units))
        for key, units in trace.path.items()
        if key[0] > trace.onset
    }
    return _source(trace, seed) | later


def _random(trace: Trace, seed: int) -> Units:
    found = {}
    for key, units in trace.path.items():
        strength = trace.plus[key].wfs.cpu()
        taken = torch.zeros(len(strength), dtype=torch.bool)
        taken[units.cpu()] = True
        least = strength[taken].min().item() if len(units) else float("inf")
        matched = (~taken & (strength >= least) & (strength > 0)).nonzero().squeeze(1)
        others = strength.masked_fill(taken, -1.0).argsort(descending=True, stable=True)
        others = others[~taken[others] & ~torch.isin(others, matched)]
        order = torch.randperm(len(matched), generator=torch_rng(seed, "random units", *key))
        found[key] = torch.cat([matched[order], others])[: len(units)]
    return found


def _top(scores: Tensor, k: int) -> Tensor:
    return top_units(scores, min(k, len(scores))) if k else torch.empty(0, dtype=torch.int64)


CONTROLS: Mapping[str, Callable[[Trace, int], Units]] = {
    "local": _local,
    "source": _source,
    "path_only": _path_only,
    "delta_wfs": _delta_wfs,
    "printed_fis": _printed_fis,
    "random": _random,
}
"""The controls that cut units, by name; the ablation of one direction is `direction_edits`."""


def remove_direction(direction: Tensor) -> Edit:
    """The edit a <- a - v (v · a) / |v|² of a vector v [d].

    Raises:
        ValueError: for a direction that is zero or not finite.

    >>> remove_direction(torch.tensor([2.0, 0.0]))(torch.tensor([[3.0, 4.0]])).tolist()
    [[0.0, 4.0]]
    """
    norm = direction.double().norm()
    if direction.ndim != 1 or not torch.isfinite(norm) or norm == 0:
        raise ValueError("direction must be a vector [d] that is finite and not zero: the two prompt sets look alike")
    unit = (direction.double() / norm).float()

    def apply(a: Tensor) -> Tensor:
        v = unit.to(a.device, a.dtype)
        left: Tensor = a - (a @ v).unsqueeze(-1) * v
        return left

    return apply


def direction_edits(
    model: nn.Module,
    tokenizer: Any,
    trace: Trace,
    *,
    sensitive: Sequence[str],
    matched: Sequence[str],
    batch_size: int = 16,
    adapter: Adapter = DECODER,
) -> dict[str, Edit]:
    """The ablation of one difference-of-means direction, at every layer and site that `trace` cuts from l* on.

    v = mean_{S+} a - mean_{S-} a of the output of block l* at the last prompt token;  a <- a - v (v · a) / |v|².

    Args:
        model: the traced model.
        tokenizer: its tokenizer; prompts are read as they are.
        trace: whose onset layer and sites are used.
        sensitive, matched: prompts of S+ and S-.
        batch_size: prompts at once.
        adapter: what knows the architecture.

    Returns:
        Layer names and edits for `aisec_common.torch.hooks.edit`.

    Raises:
        ValueError: for an empty set, or a site (`mlp_hidden`) that is not as wide as the residual stream.

    Source: Arditi et al., arXiv 2406.11717 (directional ablation).
    """
    for name, prompts in (("sensitive", sensitive), ("matched", matched)):
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"{name} must be a list of at least one prompt")
    if "mlp_hidden" in trace.sites:
        raise ValueError("sites: mlp_hidden does not lie in the residual stream, so that no direction of it can be cut")
    layer = find_sites(model, ["resid"], adapter)[trace.onset, "resid"]
    plus, minus = (_mean_last(model, tokenizer, prompts, layer, batch_size) for prompts in (sensitive, matched))
    change = remove_direction(plus - minus)
    names = find_sites(model, trace.sites, adapter)
    return {name: change for (at, _), name in names.items() if at >= trace.onset}


@torch.no_grad()
def _mean_last(model: nn.Module, tokenizer: Any, prompts: Sequence[str], layer: str, batch_size: int) -> Tensor:
    total: Tensor | float = 0.0
    device = next(model.parameters()).device
    for start in range(0, len(prompts), batch_size):
        texts = list(prompts[start : start + batch_size])
        batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        with capture(model, layer) as seen:
            model(**{name: batch[name].to(device) for name in ("input_ids", "attention_mask")})
        total = total + seen[layer][:, -1].double().sum(0)
    assert isinstance(total, Tensor)
    return total / len(prompts)
