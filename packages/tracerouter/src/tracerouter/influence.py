"""What zeroing the source changes downstream, and which units therefore make up the path."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from aisec_common.torch.hooks import capture, edit
from torch import Tensor, nn

from tracerouter.activity import Activity, counted
from tracerouter.features import top_units

Key = TypeVar("Key")
Cut = Callable[[Tensor, int], Tensor]
Encode = Callable[[Tensor], Tensor]


class Influence:
    """Streaming Δ(m) = E|a_m - â_m| over tokens, a from the clean run and â with the source zeroed at l*.

    Args:
        units: m, number of latents or coordinates of the site.
        device: of the sums.

    Attributes:
        tokens: number of tokens seen, a scalar int64 tensor.
        total: [m] float64, sum of |a - â|; sums of data-parallel processes add up by reducing the two.

    Raises:
        ValueError: for fewer than one unit.

    Source: arXiv 2601.21900, eq. 5.

    >>> influence = Influence(2)
    >>> influence.update(torch.tensor([[1.0, 5.0]]), torch.tensor([[0.0, 5.0]]))
    >>> influence.delta.tolist()
    [1.0, 0.0]
    """

    def __init__(self, units: int, *, device: str | torch.device = "cpu") -> None:
        if units < 1:
            raise ValueError(f"units must be at least 1, got {units}")
        self.units = units
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)
        self.total = torch.zeros(units, dtype=torch.float64, device=device)

    def update(self, clean: Tensor, cut: Tensor, mask: Tensor | None = None) -> None:
        """Adds the tokens of one batch.

        Args:
            clean: [..., m] a, activations or codes of the untouched run.
            cut: [..., m] â, the same tokens with the source zeroed.
            mask: [...] true where a token counts; default: all.

        Raises:
            ValueError: for unequal shapes, or values that are not finite.
        """
        if clean.shape != cut.shape:
            raise ValueError(f"cut must have the shape of clean, {list(clean.shape)}, got {list(cut.shape)}")
        change = (counted(clean, mask, self.units) - counted(cut, mask, self.units)).abs()
        self._add(change.sum(0, dtype=torch.float64), change.shape[0])

    @classmethod
    def of(cls, total: Tensor, tokens: int) -> Influence:
        """What `update` would have left: sums [m] of |a - â| over so many tokens."""
        made = cls(len(total), device=total.device)
        made._add(total, tokens)
        return made

    def _add(self, total: Tensor, tokens: int) -> None:
        if not torch.isfinite(total).all():
            raise ValueError("clean or cut hold NaN or infinity: check the model's activations and the mask")
        self.tokens += tokens
        self.total += total.to(self.total.device)

    def merge(self, other: Influence) -> Influence:
        """Both streams together.

        Raises:
            ValueError: for another number of units.
        """
        if self.units != other.units:
            raise ValueError(f"other has {other.units} units, this one {self.units}")
        both = Influence(self.units, device=self.total.device)
        both.tokens = self.tokens + other.tokens.to(self.tokens.device)
        both.total = self.total + other.total.to(self.total.device)
        return both

    @property
    def delta(self) -> Tensor:
        """Δ: [m] float64."""
        if not self.tokens:
            raise ValueError("influence has seen no token: call update with a mask that is true somewhere")
        return self.total / self.tokens.double()


def fis(plus: Activity, delta: Tensor, contrast: Activity | None = None) -> Tensor:
    """The feature influence score of downstream units: how active they are, times how much the source moves them.

    FIS(m) = f μ Δ(m) as printed;  with `contrast`, FIS_c(m) = Δ(m) max(0, (f μ)_{S+} - (f μ)_{S-}).

    The printed score rewards large units that every prompt uses. Scores grow with depth: compare them within one layer
    and site only.

    Args:
        plus: statistics of the site over sensitive tokens.
        delta: Δ [m], see `Influence`.
        contrast: statistics over matched tokens, or None for the printed score.

    Returns:
        [m] float64, never negative.

    Raises:
        ValueError: for unequal numbers of units.

    Source: arXiv 2601.21900, eq. 5; the contrast is ours.
    """
    if delta.shape != (plus.units,):
        raise ValueError(f"delta must be [{plus.units}] like the statistics, got {list(delta.shape)}")
    weight = plus.wfs
    if contrast is not None:
        if (plus.units, plus.sign) != (contrast.units, contrast.sign):
            raise ValueError(
                f"contrast counts {contrast.units} units with sign {contrast.sign!r}, "
                f"plus {plus.units} with {plus.sign!r}"
            )
        weight = (weight - contrast.wfs.to(weight.device)).clamp(min=0)
    return weight * delta.to(weight)


def select_path(scores: Mapping[Key, Tensor], *, k: int | None = None) -> dict[Key, Tensor]:
    """P: the top units of every layer and site by themselves, never by a ranking across layers.

    Args:
        scores: FIS [m] of each (layer, site).
        k: how many at each; default: the elbow of each. Units of score 0 are not reachable and never taken, so that a
            layer may get fewer.

    Returns:
        Indices at each (layer, site), best first, int64 on the CPU; empty where nothing is reachable.

    Raises:
        ValueError: for a `k` that a layer does not have, or scores that are negative or not finite.
    """
    path = {}
    for key, score in scores.items():
        if not (torch.isfinite(score).all() and (score >= 0).all()):
            raise ValueError(f"scores of {key} must be finite and not negative: check delta and the statistics")
        path[key] = top_units(score, k) if (score > 0).any() else torch.empty(0, dtype=torch.int64)
    return path


@torch.no_grad()
def batched_zero_outs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    source: str,
    cut: Cut,
    units: Tensor,
    reads: Mapping[str, Encode],
    mask: Tensor,
    skip: Sequence[str] = (),
    stack: int = 8,
) -> dict[str, list[Influence]]:
    """The influence of every source unit zeroed by itself, many zero-outs to a forward pass: the edges of the path.

    Δ_s(m) = E|a_m - â_m^(s)|, with â^(s) from a run in which unit s alone is zeroed. Rows of the batch are stacked
    along its first dimension, one unit zeroed in each, which gives what one run a unit would. A row in which a unit is
    silent is left as it is by zeroing it, so that its change is 0 and it is not run. Blocks that end before anything is
    zeroed do the same in every run: those of `skip` run once, and their output is kept.

    Args:
        model: called as `model(**inputs)`, once clean and at most ceil(len(units) / stack) times with zero-outs.
        inputs: one batch; its tensors have the rows first and are stacked, all else is passed on. For a language model
            put `use_cache=False` in.
        source: name of the hooked layer at l*, as in `aisec_common.torch.hooks`.
        cut: `cut(hidden, unit)` gives hidden states [B, T, d] of the source layer without that unit.
        units: [s] source units.
        reads: from the names of downstream layers to what turns their hidden states [B, T, d] into units [B, T, m]:
            `sae.encode`, or `lambda hidden: hidden` for coordinates.
        mask: [B, T] true at tokens that count.
        skip: names of the first blocks, in order, up to the last one whose own output nothing precedes but them; the
            source layer itself may be the last.
        stack: units zeroed in one forward pass; memory grows with it.

    Returns:
        For every layer of `reads` one `Influence` a unit, to be merged over batches.

    Raises:
        ValueError: for no units, no reads or a stack below 1; for names the model does not have; for units that are
            not finite.

    Source: arXiv 2601.21900, graph of paths (figure); the batching is ours.
    """
    chosen = [int(unit) for unit in units]
    if not chosen:
        raise ValueError("units is empty: name at least one source unit")
    if not reads:
        raise ValueError("reads is empty: name at least one downstream layer")
    if stack < 1:
        raise ValueError(f"stack must be at least 1, got {stack}")
    with capture(model, {source, *reads}) as seen, _kept_output(model, skip) as kept:
        model(**inputs)
    hidden, clean = seen[source], {name: encode(seen[name]) for name, encode in reads.items()}
    totals = {
        name: torch.zeros(len(chosen), codes.shape[-1], dtype=torch.float64, device=codes.device)
        for name, codes in clean.items()
    }
    for first in range(0, len(chosen), stack):
        cuts = torch.stack([cut(hidden, unit) for unit in chosen[first : first + stack]])
        zeroed, rows = (cuts != hidden).flatten(2).any(-1).nonzero(as_tuple=True)
        if not len(rows):
            continue

        def without(_: Tensor, changed: Tensor = cuts[zeroed, rows]) -> Tensor:
            return changed

        with (
            _in_place_of(model, skip, kept, rows),
            edit(model, {source: without}),
            capture(model, reads) as changed,
        ):
            model(**{name: _taken(value, rows) for name, value in inputs.items()})
        for name, encode in reads.items():
            here = rows.to(clean[name].device)
            change = (clean[name][here] - encode(changed[name])).abs()
            change = change.masked_fill(~mask.to(change.device, torch.bool)[here].unsqueeze(-1), 0.0)
            totals[name].index_add_(0, first + zeroed.to(here.device), change.sum(1, dtype=torch.float64))
    return {name: [Influence.of(total, int(mask.sum())) for total in each] for name, each in totals.items()}


@contextlib.contextmanager
def _kept_output(model: nn.Module, blocks: Sequence[str]) -> Iterator[list[Any]]:
    """Gives a list into which the last of the blocks puts what it returns, before any hook changes it."""
    kept: list[Any] = []
    with contextlib.ExitStack() as hooked:
        if blocks:
            last = model.get_submodule(blocks[-1])
            hooked.callback(last.register_forward_hook(lambda *call: kept.append(call[-1]), prepend=True).remove)
        yield kept


@contextlib.contextmanager
def _in_place_of(model: nn.Module, blocks: Sequence[str], kept: list[Any], rows: Tensor) -> Iterator[None]:
    """Blocks return these rows of what was kept, and compute nothing; their hooks still run."""
    layers = [model.get_submodule(name) for name in blocks]
    given = _taken(kept[-1], rows) if layers else None
    own = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = lambda *_, **__: given
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:  # such as that of a model spread over devices
                layer.forward = forward


def _taken(value: Any, rows: Tensor) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_taken(part, rows) for part in value)
    return value[rows.to(value.device)] if isinstance(value, Tensor) and value.ndim else value
