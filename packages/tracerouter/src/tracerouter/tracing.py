"""From activations to a path: features at the onset layer, their influence behind it, the units that are cut."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from aisec_common.torch.hooks import Edit
from aisec_common.torch.sparse_autoencoder import MASSIVE, SparseAutoencoder
from torch import Tensor

from tracerouter.activity import Activity, Sign
from tracerouter.discovery import (
    Batches,
    Read,
    Show,
    activities,
    checked,
    influences,
    silent,
    train_autoencoders,
)
from tracerouter.features import back_projection, delta_wfs, source_units, top_units
from tracerouter.influence import fis, select_path
from tracerouter.path import UnitKind
from tracerouter.sites import Key
from tracerouter.suppression import cut_units


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a path is found; see `TraceRouter` for what each setting means.

    Raises:
        ValueError: for an unknown unit, counts below 1, or autoencoders narrower than what is chosen from them.
    """

    unit: UnitKind = "latent"
    contrast: bool = True
    k: int | None = None
    sae_width: int | None = None
    sae_k: int = 32
    sae_steps: int = 1000
    sae_tokens: int = 16384
    seed: int = 0

    def __post_init__(self) -> None:
        if self.unit not in get_args(UnitKind):
            raise ValueError(f"unit must be 'latent' or 'coordinate', got {self.unit!r}")
        for name in ("k", "sae_width", "sae_k", "sae_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.sae_tokens < 2:
            raise ValueError(f"sae_tokens must be at least 2, got {self.sae_tokens}")
        least = max(self.sae_k, self.k or 1)
        if self.sae_width is not None and self.sae_width < least:
            raise ValueError(f"sae_width must be at least {least}, the larger of sae_k and k, got {self.sae_width}")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What `trace_path` gives: the parts of a `Trace` that do not describe the model."""

    path: Mapping[Key, Tensor]
    features: Mapping[Key, Tensor]
    saes: Mapping[Key, SparseAutoencoder]
    plus: Mapping[Key, Activity]
    minus: Mapping[Key, Activity]
    delta: Mapping[Key, Tensor] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Any]:
        """By name, for `Trace`."""
        return {name: getattr(self, name) for name in ("path", "features", "saes", "plus", "minus", "delta")}


def autoencoders(
    read: Read,
    batches: Batches,
    keys: Sequence[Key],
    recipe: Recipe,
    given: Mapping[Key, SparseAutoencoder],
    show: Show = silent,
) -> dict[Key, SparseAutoencoder]:
    """An autoencoder for each (layer, site): the given one, or one trained on the tokens of all batches.

    A given one without a `reach` gets that of trained ones, ten times the median length of activations, from the first
    batch: attention sinks have no codes then and are never cut. One that is further from the activations of that batch
    than their mean is, as those of another model are, is warned of.

    Raises:
        ValueError: for a given one of another width than the site, or with fewer latents than k.
    """
    read = checked(read)
    used = {key: given[key].requires_grad_(False) for key in keys if key in given}
    seen = read(batches[0], list(used)) if used else {}
    for key, sae in used.items():
        if sae.width != seen[key].shape[1]:
            raise ValueError(f"saes: that of {key} has width {sae.width}, the site has {seen[key].shape[1]}")
        if recipe.k is not None and sae.latents < recipe.k:
            raise ValueError(f"saes: that of {key} has {sae.latents} latents, fewer than k = {recipe.k}")
        _fit_to_site(sae.to(seen[key].device), seen[key], key)
    missing = [key for key in keys if key not in given]
    if missing:
        used |= train_autoencoders(
            read,
            batches,
            missing,
            latents=recipe.sae_width,
            k=recipe.sae_k,
            steps=recipe.sae_steps,
            tokens=recipe.sae_tokens,
            seed=recipe.seed,
            show=show,
        )
    return {key: used[key] for key in keys}


def trace_path(
    read: Read,
    plus: Batches,
    minus: Batches,
    *,
    source: Sequence[Key],
    later: Sequence[Key],
    saes: Mapping[Key, SparseAutoencoder],
    recipe: Recipe,
    show: Show = silent,
) -> Found:
    """Source at l*, influence of zeroing it, and the path behind.

    (1) features: latents at l* of highest ΔWFS. (2) Source: these latents, or the coordinates of largest |Z_proj|.
    (3) Δ(m) = E|a_m - â_m| over sensitive tokens, the source zeroed in â. (4) Path: units of highest FIS at each place.

    Args:
        read: runs the model.
        plus, minus: batches of S+ and S-.
        source: the places at l*.
        later: those behind it.
        saes: for all places; for coordinates only those at l* are used.
        recipe: units, ranking and numbers.
        show: progress.

    Raises:
        ValueError: when no feature is more active on S+ than on S-, or activations are not finite.

    Source: arXiv 2601.21900, stages 2 and 3.
    """
    read, latent = checked(read), recipe.unit == "latent"
    # codes are never negative; of dense coordinates the printed f and mu would pass over all negative activations
    sign: Sign = "positive" if latent else "abs"

    def codes(key: Key, rows: Tensor) -> Tensor:
        return saes[key].encode(rows)

    units = codes if latent else _as_they_are
    keys = [*source, *later]
    said = activities(read, plus, keys, units, sign=sign, what="sensitive prompts", show=show)
    matched = activities(read, minus, keys, units, sign=sign, what="matched prompts", show=show)
    shown, hidden = said, matched
    if not latent:
        shown = activities(read, plus, source, codes, sign="positive", what="sensitive features", show=show)
        hidden = activities(read, minus, source, codes, sign="positive", what="matched features", show=show)
    features = {key: top_units(delta_wfs(shown[key], hidden[key]), recipe.k) for key in source}
    if not any(len(chosen) for chosen in features.values()):
        raise ValueError("pairs: no feature is more active on the sensitive prompts than on the matched ones")
    path: dict[Key, Tensor] = {}
    for key, chosen in features.items():
        dense = not latent and len(chosen)
        path[key] = source_units(back_projection(saes[key].decoder, chosen), recipe.k) if dense else chosen
    zeroed: dict[Key, Edit] = {
        key: cut_units(recipe.unit, saes.get(key), chosen) for key, chosen in path.items() if len(chosen)
    }
    delta = influences(read, plus, later, units, zeroed, show)
    scores = {key: fis(said[key], delta[key], matched[key] if recipe.contrast else None) for key in later}
    return Found(
        path=path | select_path(scores, k=recipe.k),
        features=features,
        saes={key: saes[key] for key in (keys if latent else source)},
        plus=said,
        minus=matched,
        delta=delta,
    )


def _fit_to_site(sae: SparseAutoencoder, rows: Tensor, key: Key) -> None:
    norms = rows.norm(dim=1, dtype=torch.float32)
    reach = MASSIVE * norms.median()
    if sae.reach.isinf() and reach > 0:
        sae.reach.copy_(reach)
    x = rows[norms <= sae.reach].to(sae.bias.dtype)
    if (x - sae(x)).square().sum() > (x - x.mean(0)).square().sum() > 0:
        warnings.warn(
            f"saes: that of {key} explains none of the variance of its site: is it of another model, layer or site?",
            stacklevel=3,
        )


def _as_they_are(key: Key, rows: Tensor) -> Tensor:
    return rows
