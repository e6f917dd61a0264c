"""TraceRouter on transformers models: from minimal pairs to a path, and the path cut."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from aisec_common.torch.hooks import Edit, edit
from aisec_common.torch.model_hash import model_hash
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder
from torch import Tensor, nn
from transformers import PreTrainedModel

from tracerouter.controls import control_path, direction_edits
from tracerouter.discovery import Batches, Show, in_batches, silent
from tracerouter.evaluation import evaluate
from tracerouter.hf_attention import Score, onset_curve
from tracerouter.hf_reader import Encoder, Reader
from tracerouter.influence import Encode, Influence, batched_zero_outs
from tracerouter.onset import onset_layer
from tracerouter.pairs import Pair
from tracerouter.path import Trace, UnitKind, hidden_size
from tracerouter.sites import DECODER, Adapter, Key, Site, find_sites
from tracerouter.suppression import Gate, Suppression, cut_units, source_scores
from tracerouter.tracing import Recipe, autoencoders, trace_path

Edges = dict[tuple[Key, Key], Tensor]


class TraceRouter:
    """Finds where a concept enters a network and which units carry it on, and attenuates only those.

    (1) l*: first local peak of the sensitivity score over blocks. (2) At l* a sparse autoencoder; its latents of
    highest ΔWFS are the source. (3) Behind l* the units of highest FIS: zeroing the source
    changes their activity. (4) `suppress` multiplies the units of the path by γ while the model runs.

    Prompts are read as they are: apply a chat template before. A beginning-of-sequence token is neither counted nor
    trained on, because it says the same in every prompt.

    Args:
        model: a transformers causal language model, or one that also sees, whose language tower is then traced.
        tokenizer: its tokenizer.
        unit: `"latent"`, or `"coordinate"` for the printed, dense version, with lengths in the place of signed values.
        sites: which sites of every block.
        onset: l*, 0-based, where it is known; default: found.
        onset_score: `"flow"`, `"js"` or `"entropy"`, see `tracerouter.onset`.
        contrast: rank by FIS_c; False ranks by FIS as printed, which also cuts what every prompt uses.
        k: units at each layer and site; default: an elbow at each.
        saes: autoencoders to use in place of trained ones; see `tracerouter.tracing.autoencoders`.
        sae_width: latents of each; default 8 d.
        sae_k: codes a token keeps.
        sae_steps: of training each.
        sae_tokens: tokens sampled for training.
        batch_size: prompts at once.
        seed: of everything random.
        encode: from prompts to the model's inputs, such as a processor that adds an image to each; default: the
            tokenizer, padded on the right.
        adapter: what knows the architecture.

    Raises:
        ValueError: for fewer than two blocks, an onset at the last block, an unknown site or unit, k above the width,
            or autoencoders of a layer or site that is not traced.

    Source: arXiv 2601.21900, sections on discovery and intervention.

    >>> from aisec_common.torch.hf_tiny_lm import tiny_lm
    >>> from aisec_common.torch.hf_tokenizer import word_tokenizer
    >>> tokenizer = word_tokenizer(["rain", "beer", "in", "May"])
    >>> model = tiny_lm(tokenizer, width=16)
    >>> router = TraceRouter(model, tokenizer, onset=0, k=2, sae_k=4, sae_steps=5)
    >>> trace = router.fit([Pair(sensitive="rain in May", matched="beer in May")])
    >>> trace.summary()[["layer", "role", "K"]].values.tolist()
    [[0, 'source', 2], [1, 'path', 2]]
    >>> asked = tokenizer("rain in May", return_tensors="pt")
    >>> with router.suppress(trace, gamma=0.0):
    ...     cut = model(**asked).logits
    >>> torch.equal(cut, model(**asked).logits)
    False
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        unit: UnitKind = "latent",
        sites: Sequence[Site] = ("resid",),
        onset: int | None = None,
        onset_score: Score = "flow",
        contrast: bool = True,
        k: int | None = None,
        saes: Mapping[Key, SparseAutoencoder] | None = None,
        sae_width: int | None = None,
        sae_k: int = 32,
        sae_steps: int = 1000,
        sae_tokens: int = 16384,
        batch_size: int = 16,
        seed: int = 0,
        encode: Encoder | None = None,
        adapter: Adapter = DECODER,
    ) -> None:
        self.blocks = len(adapter.blocks(model))
        if self.blocks < 2:
            raise ValueError(f"model must have at least 2 blocks to have a path, got {self.blocks}")
        if onset is not None and not 0 <= onset < self.blocks - 1:
            raise ValueError(f"onset must be in 0..{self.blocks - 2}: nothing lies behind the last block; got {onset}")
        self.recipe = Recipe(
            unit=unit,
            contrast=contrast,
            k=k,
            sae_width=sae_width,
            sae_k=sae_k,
            sae_steps=sae_steps,
            sae_tokens=sae_tokens,
            seed=seed,
        )
        self.model, self.tokenizer, self.adapter = model, tokenizer, adapter
        self.sites, self.onset, self.onset_score = tuple(sites), onset, onset_score
        self.saes, self.batch_size = dict(saes or {}), batch_size
        self.names = find_sites(model, sites, adapter)
        if unknown := [key for key in self.saes if key not in self.names]:
            raise ValueError(
                f"saes: {unknown[0]} is not traced: there are {self.blocks} layers, from 0, and sites {self.sites}"
            )
        self.read = Reader(model, tokenizer, self.names, encode)

    def fit(self, pairs: Sequence[Pair], neutral: Sequence[str] = (), progress: Show = silent) -> Trace:
        """The path of what the sensitive prompts of `pairs` have and the matched ones have not.

        Args:
            pairs: minimal pairs; a few hundred.
            neutral: further texts for the autoencoders.
            progress: called as `progress(what, done, total)`.

        Raises:
            ValueError: for no pairs, pairs of unequal length where the onset score needs places, activations that are
                not finite, or an autoencoder of another width.
        """
        if not pairs:
            raise ValueError("pairs is empty: give at least one pair of prompts")
        onset, curve = self.onset_of(pairs, progress)
        source = [key for key in self.names if key[0] == onset]
        later = [key for key in self.names if key[0] > onset]
        encoded = source + later if self.recipe.unit == "latent" else source
        found = trace_path(
            self.read,
            self._batches([p.sensitive for p in pairs]),
            self._batches([p.matched for p in pairs]),
            source=source,
            later=later,
            saes=self.autoencoders(pairs, neutral, encoded, progress),
            recipe=self.recipe,
            show=progress,
        )
        return Trace(
            onset=onset,
            onset_curve=tuple(curve),
            sites=self.sites,
            unit=self.recipe.unit,
            contrast=self.recipe.contrast,
            blocks=self.blocks,
            width=hidden_size(self.model),
            model_name=str(getattr(getattr(self.model, "config", None), "_name_or_path", "")),
            model_hash=model_hash(self.model),
            **found.parts,
        )

    def onset_of(self, pairs: Sequence[Pair], progress: Show = silent) -> tuple[int, list[float]]:
        """l* and the sensitivity score of every block (none where `onset` was given)."""
        if self.onset is not None:
            return self.onset, []
        curve = onset_curve(
            self.model,
            self.tokenizer,
            pairs,
            score=self.onset_score,
            batch_size=self.batch_size,
            adapter=self.adapter,
            progress=lambda done, total: progress("onset", done, total),
        )
        return onset_layer(curve), curve

    def autoencoders(
        self, pairs: Sequence[Pair], neutral: Sequence[str], keys: Sequence[Key], progress: Show = silent
    ) -> dict[Key, SparseAutoencoder]:
        """An autoencoder for each (layer, site) of `keys`: as given, or trained on all prompts and `neutral`."""
        texts = [*(p.sensitive for p in pairs), *(p.matched for p in pairs), *neutral]
        return autoencoders(self.read, self._batches(texts), keys, self.recipe, self.saes, progress)

    def suppress(self, trace: Trace, gamma: float = 0.0, gate: Gate | None = None) -> Suppression:
        """The cut, as a context manager or by `attach()` and `detach()`; see `Suppression`."""
        return Suppression(self.model, trace, gamma, gate, adapter=self.adapter)

    def gate(self, trace: Trace, prompts: Sequence[str], false_positive_rate: float = 0.05) -> Gate:
        """A gate for `suppress` that at most this share of matched `prompts` passes."""
        scores = [source_scores(self.model, trace, self.read.inputs(b), self.adapter) for b in self._batches(prompts)]
        return Gate.calibrate(torch.cat(scores) if scores else torch.empty(0), false_positive_rate)

    def evaluate(
        self,
        trace: Trace,
        harmful: Sequence[str],
        benign: Sequence[str],
        *,
        controls: Sequence[str] = (),
        pairs: Sequence[Pair] = (),
        gamma: float = 0.0,
        progress: Show = silent,
        **judging: Any,
    ) -> pd.DataFrame:
        """What the cut gains and costs, beside no defence and what else could have been cut.

        Args:
            trace: whose path is cut.
            harmful, benign: prompts; use shifted or attacked ones too, not only the family that was traced.
            controls: of `tracerouter.controls.CONTROLS`, each cut in the path's place, or `"direction"`, the ablation
                of one difference-of-means direction.
            pairs: that the direction is taken from.
            gamma: γ of every cut.
            progress: called as `progress(setting, prompts done, prompts)`.
            judging: passed on to `tracerouter.evaluation.evaluate`.

        Returns:
            One row for each setting: units cut (0 for the direction), ASR, DSR, utility, benign refusals,
            J = utility - ASR, perplexity, and intervals of ASR and utility.
        """
        settings: dict[str, tuple[int, contextlib.AbstractContextManager[Any]]] = {
            "none": (0, contextlib.nullcontext()),
            "path": (trace.n_units, self.suppress(trace, gamma)),
        }
        for name in controls:
            if name == "direction":
                edits = direction_edits(
                    self.model,
                    self.tokenizer,
                    trace,
                    sensitive=[p.sensitive for p in pairs],
                    matched=[p.matched for p in pairs],
                    adapter=self.adapter,
                )
                settings[name] = 0, edit(self.model, edits)
            else:
                instead = trace.with_path(control_path(name, trace, seed=self.recipe.seed))
                settings[name] = instead.n_units, self.suppress(instead, gamma)
        rows = []
        for name, (units, change) in settings.items():
            with change:
                cost = evaluate(
                    self.model,
                    self.tokenizer,
                    harmful=harmful,
                    benign=benign,
                    progress=partial(progress, name),
                    **judging,
                )
            rows.append(
                {
                    "setting": name,
                    "units": units,
                    "ASR": cost.attacks.value,
                    "DSR": cost.dsr,
                    "utility": cost.utility.value,
                    "refusals": cost.refusals.value,
                    "J": cost.gain,
                    "perplexity": cost.perplexity,
                    "ASR interval": (cost.attacks.low, cost.attacks.high),
                    "utility interval": (cost.utility.low, cost.utility.high),
                }
            )
        return pd.DataFrame(rows)

    def edges(self, trace: Trace, pairs: Sequence[Pair], *, stack: int = 8, progress: Show = silent) -> Edges:
        """Which source unit moves which unit of the path: Δ_s(m) with source unit s alone zeroed.

        Args:
            trace: with a path.
            pairs: whose sensitive prompts are run.
            stack: source units zeroed in one forward pass, in copies of the batch.
            progress: called as `progress("edges", batches done, batches)`.

        Returns:
            (source key, path key) -> [S, K], rows in the order of the source units and columns in that of the path.
        """
        if not pairs:
            raise ValueError("pairs is empty: give at least one pair of prompts")
        run = self.read.body
        names = find_sites(run, self.sites, self.adapter)
        ends = [key for key, units in trace.path.items() if key[0] > trace.onset and len(units)]
        starts = [key for key, units in trace.path.items() if key[0] == trace.onset and len(units)]
        if not ends or not starts:
            raise ValueError("trace has no units at or behind its onset layer: there are no edges")
        reads = {names[key]: _reading(trace, key) for key in ends}
        blocks = [name for name, _ in self.adapter.blocks(run)]
        found: dict[tuple[Key, Key], list[Influence]] = {}
        batches = self._batches([p.sensitive for p in pairs])
        for done, batch in enumerate(batches, start=1):
            inputs = self.read.inputs(batch)
            for start in starts:
                units, sae = trace.path[start], trace.saes.get(start)
                cuts = {int(unit): cut_units(trace.unit, sae, unit.view(1)) for unit in units}

                def without(a: Tensor, unit: int, cuts: Mapping[int, Edit] = cuts) -> Tensor:
                    return cuts[unit](a)

                with torch.no_grad():
                    moved = batched_zero_outs(
                        run,
                        {**inputs, "use_cache": False},
                        source=names[start],
                        cut=without,
                        units=units,
                        reads=reads,
                        mask=self.read.counted(inputs),
                        skip=blocks[: trace.onset + (start[1] == "resid")],
                        stack=stack,
                    )
                for end in ends:
                    here = moved[names[end]]
                    before = found.get((start, end))
                    found[start, end] = (
                        here if before is None else [a.merge(b) for a, b in zip(before, here, strict=True)]
                    )
            progress("edges", done, len(batches))
        return {(start, end): torch.stack([each.delta for each in moved]) for (start, end), moved in found.items()}

    @staticmethod
    def load(model: nn.Module, folder: str | Path, adapter: Adapter = DECODER) -> Trace:
        """A trace that `Trace.save` wrote, made sure to be of this model.

        Raises:
            ValueError: for a folder without a whole trace, or another model.
        """
        trace = Trace.load(folder)
        trace.check(model, adapter)
        return trace

    def _batches(self, texts: Sequence[str]) -> Batches:
        return in_batches(texts, self.batch_size)


def _reading(trace: Trace, key: Key) -> Encode:
    """From activations [..., d] to the path's units [..., K] of one place."""
    units, sae = trace.path[key], trace.saes.get(key)

    def read(a: Tensor) -> Tensor:
        if trace.unit == "coordinate" or sae is None:
            return a[..., units.to(a.device)]
        return sae.to(a.device).selected(a, units.to(a.device))

    return read
