"""Attenuating the units of a path while the model runs, and only where a prompt calls for it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from aisec_common.torch.hooks import Edit, capture, edit
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder
from torch import Tensor, nn

from tracerouter.path import Trace, UnitKind
from tracerouter.sites import DECODER, Adapter, find_sites

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def cut_coordinates(units: Tensor, gamma: float = 0.0) -> Edit:
    """The edit a_m <- γ a_m of the coordinates m in `units`; the others keep their bits.

    Args:
        units: [k] indices into the last dimension.
        gamma: γ in [0, 1]; 0 cuts, 1 does nothing.

    >>> cut_coordinates(torch.tensor([1]), 0.5)(torch.tensor([[4.0, 4.0]])).tolist()
    [[4.0, 2.0]]
    """
    scales: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def apply(a: Tensor) -> Tensor:
        key = (_real(a).shape[-1], a.dtype, a.device)
        if key not in scales:
            scales[key] = torch.ones(a.shape[-1], dtype=a.dtype, device=a.device)
            scales[key][units.to(a.device)] = gamma
        return a * scales[key]

    return apply


def cut_latents(sae: SparseAutoencoder, units: Tensor, gamma: float = 0.0) -> Edit:
    """The edit a <- a - (1 - γ) Σ_m z_m(a) W_dec[:, m] over the latents m in `units`.

    Only what these latents wrote is taken away: the reconstruction is never put in, so its error does not enter. The
    autoencoder works in its own type; a token at which none of them is active keeps its bits.

    Args:
        sae: the autoencoder of this layer and site; moved to the device of the first activation.
        units: [k] latents.
        gamma: γ in [0, 1].
    """
    written: dict[torch.device, Tensor] = {}

    def apply(a: Tensor) -> Tensor:
        if a.device not in written:
            sae.to(_real(a).device)
            written[a.device] = ((1 - gamma) * sae.decoder[:, units.to(a.device)].T).detach()  # [k, d]
        with torch.no_grad():
            z = sae.selected(a.to(written[a.device].dtype), units.to(a.device))
            removed = z @ written[a.device]
        return (a - removed).to(a.dtype)

    return apply


def cut_units(unit: UnitKind, sae: SparseAutoencoder | None, units: Tensor, gamma: float = 0.0) -> Edit:
    """`cut_latents` or `cut_coordinates`.

    Raises:
        ValueError: for latents without an autoencoder.
    """
    if unit == "coordinate":
        return cut_coordinates(units, gamma)
    if sae is None:
        raise ValueError("saes: latents are cut with the autoencoder of their layer and site, which is missing")
    return cut_latents(sae, units, gamma)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Suppress only for prompts whose source score exceeds a threshold.

    Args:
        threshold: in units of the score, see `source_scores`.
        false_positive_rate: at which it was set on matched prompts.

    >>> gate = Gate.calibrate(torch.tensor([0.1, 0.2, 0.3]), false_positive_rate=0.0)
    >>> (torch.tensor([0.2, 0.9]) > gate.threshold).tolist()
    [False, True]
    """

    threshold: float
    false_positive_rate: float

    @classmethod
    def calibrate(cls, scores: Tensor, false_positive_rate: float = 0.05) -> Gate:
        """The lowest threshold that at most this share of the scores of matched prompts exceeds.

        Raises:
            ValueError: for no scores, or a rate outside [0, 1).

        >>> Gate.calibrate(torch.arange(100.0), 0.05).threshold
        94.0
        """
        if not len(scores):
            raise ValueError("scores is empty: calibrate on at least one matched prompt")
        if not 0 <= false_positive_rate < 1:
            raise ValueError(f"false_positive_rate must be in [0, 1), got {false_positive_rate}")
        ordered = np.sort(scores.double().cpu().numpy())
        allowed = int(false_positive_rate * len(ordered) + 1e-9)
        return cls(threshold=float(ordered[len(ordered) - 1 - allowed]), false_positive_rate=false_positive_rate)


def source_scores(model: nn.Module, trace: Trace, inputs: Mapping[str, Any], adapter: Adapter = DECODER) -> Tensor:
    """How strongly each prompt of a batch shows the source at the onset layer.

    score = max over the prompt's tokens of the sum over sites of Σ_m z_m (latents) or Σ_m |a_m| (coordinates) over the
    units m of the path at l*.

    Args:
        model: the traced model.
        trace: with a path at l*.
        inputs: of the model, with a 2D `attention_mask` if padded.
        adapter: what knows the architecture.

    Returns:
        [B] float32 on the CPU.
    """
    names = find_sites(model, trace.sites, adapter)
    sources = [key for key in trace.path if key[0] == trace.onset and len(trace.path[key])]
    if not sources:
        raise ValueError("trace has no units at its onset layer, so that no gate can be read there")
    with torch.no_grad(), capture(model, [names[key] for key in sources]) as seen:
        model(**{**inputs, "use_cache": False, "past_key_values": None})
    total: Tensor | None = None
    for key in sources:
        a, units = seen[names[key]], trace.path[key]
        if trace.unit == "coordinate":
            here = a[..., units.to(a.device)].abs().float().sum(-1)
        else:
            sae = trace.saes[key].to(a.device)
            here = sae.selected(a.to(sae.decoder.dtype), units.to(a.device)).float().sum(-1)
        total = here.cpu() if total is None else total + here.cpu()
    assert total is not None
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == total.shape:
        total = total.masked_fill(mask.cpu() == 0, -torch.inf)
    return total.amax(1).detach()


class Suppression:
    """The path of a trace, attenuated in a model: `with Suppression(model, trace): ...`, or `attach()` and `detach()`.

    At every layer of the path, a_m <- γ a_m for coordinates and a <- a - (1 - γ) Σ_{m in P_l} z_m(a) W_dec[:, m] for
    latents, at all positions, generated ones included. With γ = 1, or where the path has no units, no hook is set and
    the model is bit-identical to the untouched one.

    All positions include a beginning-of-sequence token at the start, which the statistics leave out: no position is one
    where a prompt could put a concept to pass the cut. Many models park attention on that token, with activations a
    hundred times longer than others. Beyond the `reach` of its autoencoder a token has no codes, so that a cut of
    latents leaves it as it is; coordinates are cut there as well, which falls on every prompt alike, and shows in
    utility and perplexity beside the random control, which is cut there too.

    With a gate, each prompt is scored by one forward pass without cuts when it enters (a call without cached tokens),
    and the answer holds while its tokens are generated; without a cache every call counts as a new prompt.

    Args:
        model: the model that was traced.
        trace: what to attenuate.
        gamma: γ in [0, 1]; 0 is the hard cut.
        gate: if given, only prompts whose source score exceeds its threshold are touched.
        adapter: what knows the architecture.

    Raises:
        ValueError: for a `gamma` outside [0, 1], another model than the traced one, or (in the forward pass)
            activations of a quantised type.

    Source: arXiv 2601.21900, path-level intervention; γ between 0 and 1, and the gate, are ours.

    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> from aisec_common.torch.model_hash import model_hash
    >>> from tracerouter.activity import Activity
    >>> model, place, counts = tiny_lm(9, width=16), (1, "resid"), Activity(16)
    >>> about = {"onset": 0, "sites": ("resid",), "unit": "coordinate", "delta": {}, "blocks": 2, "width": 16}
    >>> about |= {"plus": {place: counts}, "minus": {place: counts}, "model_hash": model_hash(model)}
    >>> with Suppression(model, Trace(path={place: torch.tensor([3])}, **about)), capture(model, "model.layers.1") as a:
    ...     _ = model(torch.tensor([[5, 6]]))
    >>> a["model.layers.1"][..., 3].tolist()
    [[0.0, 0.0]]
    """

    def __init__(
        self,
        model: nn.Module,
        trace: Trace,
        gamma: float = 0.0,
        gate: Gate | None = None,
        *,
        adapter: Adapter = DECODER,
    ) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {gamma}")
        trace.check(model, adapter)
        self.model, self.trace, self.gamma, self.gate, self.adapter = model, trace, gamma, gate, adapter
        self._hooks: contextlib.ExitStack | None = None
        self._open: Tensor | None = None
        self._scoring = False

    def attach(self) -> Suppression:
        """Sets the hooks, to stay until `detach`; does nothing where they are set."""
        if self._hooks is not None:
            return self
        names = find_sites(self.model, self.trace.sites, self.adapter)
        keys = [key for key, units in self.trace.path.items() if len(units) and self.gamma < 1]
        edits = {
            names[key]: self._gated(
                cut_units(self.trace.unit, self.trace.saes.get(key), self.trace.path[key], self.gamma)
            )
            for key in keys
        }
        self._hooks = contextlib.ExitStack()
        if edits:
            self._hooks.enter_context(edit(self.model, edits))
            if self.gate is not None:
                handle = self.model.register_forward_pre_hook(self._decide, with_kwargs=True, prepend=True)
                self._hooks.callback(handle.remove)
        return self

    def detach(self) -> None:
        """Takes all hooks away."""
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None

    def __enter__(self) -> Suppression:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _gated(self, change: Edit) -> Edit:
        if self.gate is None:
            return change

        def apply(a: Tensor) -> Tensor:
            if self._scoring or self._open is None:
                return a
            chosen = self._open.to(a.device).view(-1, *[1] * (a.ndim - 1))
            return torch.where(chosen, change(a), a)

        return apply

    def _decide(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert self.gate is not None
        past = named.get("past_key_values")
        if self._scoring or (past is not None and past.get_seq_length() > 0):
            return
        inputs = {"input_ids": arguments[0], **named} if arguments else named
        self._scoring = True
        try:
            self._open = source_scores(module, self.trace, inputs, self.adapter) > self.gate.threshold
        finally:
            self._scoring = False


def _real(a: Tensor) -> Tensor:
    if a.dtype not in FLOATS:
        raise ValueError(f"a site holds {a.dtype}: activations must be float16, bfloat16, float32 or float64")
    return a
