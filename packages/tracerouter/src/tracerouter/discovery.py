"""The passes over prompts that find a path: autoencoders, activity of units, influence of the source."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from aisec_common.seeding import derived_seed, torch_rng
from aisec_common.torch.hooks import Edit
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder, train_sparse_autoencoder
from torch import Tensor

from tracerouter.activity import Activity, Sign
from tracerouter.influence import Influence
from tracerouter.sites import Key

Show = Callable[[str, int, int], None]
"""Called as `show(what, done, total)`."""
Encode = Callable[[Key, Tensor], Tensor]
"""From the activations [n, d] of one (layer, site) to its units [n, m]."""
Batches = Sequence[Any]

BUFFER = 2**30  # bytes of activations kept at once for training autoencoders


class Read(Protocol):
    """Runs the model on one batch and gives the activations [n, d] of its counted tokens at each (layer, site)."""

    def __call__(self, batch: Any, keys: Collection[Key], edits: Mapping[Key, Edit] | None = None) -> dict[Key, Tensor]:
        """With `edits` in place, if any; the rows of two calls on one batch belong to the same tokens."""


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


def checked(read: Read) -> Read:
    """`read`, refusing activations that are not finite or not of a floating type."""

    def safe(batch: Any, keys: Collection[Key], edits: Mapping[Key, Edit] | None = None) -> dict[Key, Tensor]:
        seen = read(batch, keys, edits)
        for (layer, site), rows in seen.items():
            if not rows.is_floating_point() or rows.element_size() < 2:
                raise ValueError(
                    f"site {site!r} of layer {layer} holds {rows.dtype}: de-quantise the model to trace it"
                )
            if not torch.isfinite(rows).all():
                raise ValueError(f"site {site!r} of layer {layer} holds NaN or infinite activations: check the model")
        return seen

    return safe


def train_autoencoders(
    read: Read,
    batches: Batches,
    keys: Sequence[Key],
    *,
    latents: int | None,
    k: int,
    steps: int,
    tokens: int,
    seed: int,
    show: Show = silent,
) -> dict[Key, SparseAutoencoder]:
    """One TopK autoencoder for each (layer, site), on a random sample of the tokens.

    Args:
        read, batches: where activations come from.
        keys: for which.
        latents: width of each; default 8 d.
        k: codes a token keeps.
        steps: of training.
        tokens: how many are kept for training; memory stays below 1 GiB by reading the batches again if need be.
        seed: of sampling, initial weights and draws.
        show: progress.

    Returns:
        Frozen autoencoders, on the devices of their activations.
    """
    first = read(batches[0], keys)
    widths = {key: rows.shape[1] for key, rows in first.items()}
    done, trained = 0, {}
    while done < len(keys):
        group = [keys[done]]
        room = BUFFER - 8 * tokens * widths[keys[done]]
        for key in keys[done + 1 :]:
            room -= 8 * tokens * widths[key]  # float32, and as much again before the sample is thinned out
            if room < 0:
                break
            group.append(key)
        sample = _sampled(read, batches, group, tokens, seed, show)
        for key in group:
            width, rows = widths[key], sample.pop(key)
            start = derived_seed(seed, "autoencoder", *key)
            sae = SparseAutoencoder(width, latents or 8 * width, k=k, seed=start).to(rows.device)
            train_sparse_autoencoder(sae, rows, steps=steps, seed=start)
            if _processes() > 1:  # the same data, but not always the same rounding
                for tensor in sae.state_dict().values():
                    dist.broadcast(tensor, 0)
            trained[key] = sae
            done += 1
            show("autoencoders", done, len(keys))
    return trained


def activities(
    read: Read, batches: Batches, keys: Sequence[Key], encode: Encode, *, sign: Sign, what: str, show: Show = silent
) -> dict[Key, Activity]:
    """f, μ and WFS of all units in one clean pass; each of several processes reads its share of the batches."""
    found: dict[Key, Activity] = {}
    for done, batch in enumerate(share := _share(batches), start=1):
        for key, rows in read(batch, keys).items():
            units = encode(key, rows)
            if key not in found:
                found[key] = Activity(units.shape[-1], sign=sign)
            found[key].update(units)
        show(what, done, len(share))
    for key in keys:
        _add_up([found[key].tokens, found[key].active, found[key].total])
    return found


def influences(
    read: Read,
    batches: Batches,
    keys: Sequence[Key],
    encode: Encode,
    zeroed: Mapping[Key, Edit],
    show: Show = silent,
) -> dict[Key, Tensor]:
    """Δ(m) = E|a_m - â_m| of all units of the given places, â with the source zeroed by the edits `zeroed`."""
    found: dict[Key, Influence] = {}
    for done, batch in enumerate(share := _share(batches), start=1):
        clean, without = read(batch, keys), read(batch, keys, zeroed)
        for key in keys:
            before, after = encode(key, clean.pop(key)), encode(key, without.pop(key))
            if key not in found:
                found[key] = Influence(before.shape[-1])
            found[key].update(before, after)
        show("influence", done, len(share))
    for key in keys:
        _add_up([found[key].tokens, found[key].total])
    return {key: found[key].delta for key in keys}


def in_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """`items` cut into slices of `size`.

    >>> in_batches([1, 2, 3], 2)
    [[1, 2], [3]]
    """
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    return [items[start : start + size] for start in range(0, len(items), size)]


def _sampled(
    read: Read, batches: Batches, keys: Sequence[Key], tokens: int, seed: int, show: Show
) -> dict[Key, Tensor]:
    """At most `tokens` rows of each place, every token equally likely: the rows that drew the highest numbers."""
    kept: dict[Key, tuple[Tensor, Tensor]] = {}
    draws = {key: torch_rng(seed, "tokens", *key) for key in keys}
    for done, batch in enumerate(batches, start=1):
        for key, seen in read(batch, keys).items():
            drawn, rows = torch.rand(len(seen), generator=draws[key]), seen.float()
            if key in kept:
                drawn, rows = torch.cat([kept[key][0], drawn]), torch.cat([kept[key][1], rows])
            if len(drawn) > tokens:
                best = drawn.topk(tokens).indices
                drawn, rows = drawn[best], rows[best.to(rows.device)]
            kept[key] = drawn, rows
        show("activations", done, len(batches))
    return {key: rows for key, (_, rows) in kept.items()}


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _share(batches: Batches) -> Batches:
    if _processes() == 1:
        return batches
    if len(batches) < _processes():
        raise ValueError(f"{len(batches)} batches for {_processes()} processes: lower batch_size or add pairs")
    return batches[dist.get_rank() :: _processes()]


def _add_up(sums: Iterable[Tensor]) -> None:
    if _processes() > 1:
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        for total in sums:
            joint = total.to(device)
            dist.all_reduce(joint)
            total.copy_(joint)
