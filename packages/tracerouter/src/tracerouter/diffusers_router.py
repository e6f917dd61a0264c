"""TraceRouter on text-to-image pipelines: text encoder and denoiser as one line of blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from aisec_common.seeding import derived_seed
from aisec_common.torch.blocks import find_blocks
from aisec_common.torch.hooks import Edit, edit
from aisec_common.torch.model_hash import model_hash
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from tracerouter.discovery import Show, in_batches, silent
from tracerouter.hf_attention import Score, onset_curve
from tracerouter.onset import onset_layer
from tracerouter.pairs import Pair
from tracerouter.path import Trace
from tracerouter.sites import DECODER, Key, Site, find_sites
from tracerouter.suppression import Suppression
from tracerouter.tracing import Recipe, autoencoders, trace_path

DENOISERS = ("unet", "transformer")
PLACE = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


class Pipeline:
    """The blocks of a pipeline in the order in which they run: those of every text encoder, then the denoiser's.

    All text encoders have to be in: what they say reaches every cross-attention layer, so that a cut in the denoiser
    alone is bypassed. `attn_out` of a denoiser's block is its cross-attention, where it has one.
    """

    def blocks(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """See `tracerouter.sites.Adapter.blocks`; `model` is what `modules_of` gives."""
        found: list[tuple[str, nn.Module]] = []
        for part, module in model.named_children():
            own: dict[str, nn.Module] = {
                name: m for name, m in module.named_modules() if isinstance(m, BasicTransformerBlock)
            }
            if own:
                names = sorted(own, key=lambda name: PLACE.get(name.split(".")[0], 0))  # a UNet lists its middle last
            else:
                stack, blocks = find_blocks(module)
                own = {f"{stack}.{i}": block for i, block in enumerate(blocks)}
                names = list(own)
            found += [(f"{part}.{name}", own[name]) for name in names]
        return found

    def site(self, block: nn.Module, site: Site) -> str:
        """See `tracerouter.sites.Adapter.site`."""
        if site == "attn_out" and getattr(block, "attn2", None) is not None:
            return "attn2"
        return DECODER.site(block, site)


PIPELINE = Pipeline()


def modules_of(pipe: Any) -> nn.ModuleDict:
    """The text encoders and the denoiser of a pipeline, as one module whose layers can be hooked and hashed.

    Raises:
        ValueError: for a pipeline without a text encoder or a denoiser.
    """
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    encoders = sorted(name for name in parts if name.startswith("text_encoder"))
    denoisers = [name for name in DENOISERS if name in parts]
    if not encoders or not denoisers:
        raise ValueError(f"pipe must have a text encoder and a unet or transformer, it has: {', '.join(parts)}")
    return nn.ModuleDict({name: parts[name] for name in (*encoders, *denoisers)})


class DiffusionRouter:
    """Finds the path of a concept through a text-to-image pipeline and attenuates it; see `TraceRouter`.

    Layers count through the text encoders and on through the denoiser. l* lies in the first text encoder. Statistics
    run over all tokens of the text and all places of the image, at every timestep alike: the average over timesteps.
    The same noise is used for every batch, without guidance.

    Args:
        pipe: such as a StableDiffusionPipeline.
        sites: see `TraceRouter`.
        onset: l*, 0-based; default: found in the first text encoder.
        onset_score: how.
        recipe: units, ranking and sizes; `None` for the defaults.
        saes: autoencoders to use in place of trained ones.
        steps: timesteps of a generation while tracing.
        batch_size: prompts at once.
        call: further arguments of the pipeline's call, such as `height`.

    Raises:
        ValueError: for a pipeline that lacks a part, or an onset at the last block.

    Source: arXiv 2601.21900 (text-to-image targets); the layout is ours.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        sites: Sequence[Site] = ("resid",),
        onset: int | None = None,
        onset_score: Score = "js",
        recipe: Recipe | None = None,
        saes: Mapping[Key, SparseAutoencoder] | None = None,
        steps: int = 4,
        batch_size: int = 4,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipe, self.model = pipe, modules_of(pipe)
        self.blocks = len(PIPELINE.blocks(self.model))
        if onset is not None and not 0 <= onset < self.blocks - 1:
            raise ValueError(f"onset must be in 0..{self.blocks - 2}: nothing lies behind the last block; got {onset}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.names = find_sites(self.model, sites, PIPELINE)
        self.sites, self.onset, self.onset_score = tuple(sites), onset, onset_score
        self.recipe, self.saes = recipe or Recipe(), dict(saes or {})
        self.steps, self.batch_size, self.call = steps, batch_size, dict(call or {})

    def fit(self, pairs: Sequence[Pair], neutral: Sequence[str] = (), progress: Show = silent) -> Trace:
        """The path; arguments as `TraceRouter.fit`."""
        if not pairs:
            raise ValueError("pairs is empty: give at least one pair of prompts")
        onset = self.onset
        curve: list[float] = []
        if onset is None:
            encoder: Any = next(iter(self.model.children()))
            curve = onset_curve(encoder, self.pipe.tokenizer, pairs, score=self.onset_score)
            onset = onset_layer(curve)
        source = [key for key in self.names if key[0] == onset]
        later = [key for key in self.names if key[0] > onset]
        plus, minus = [p.sensitive for p in pairs], [p.matched for p in pairs]
        texts = in_batches([*plus, *minus, *neutral], self.batch_size)
        encoded = source + later if self.recipe.unit == "latent" else source
        found = trace_path(
            self.read,
            in_batches(plus, self.batch_size),
            in_batches(minus, self.batch_size),
            source=source,
            later=later,
            saes=autoencoders(self.read, texts, encoded, self.recipe, self.saes, progress),
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
            width=0,
            model_name=str(self.pipe.config.get("_name_or_path") or ""),
            model_hash=model_hash(self.model),
            **found.parts,
        )

    def suppress(self, trace: Trace, gamma: float = 0.0) -> Suppression:
        """The cut, for every image that the pipeline makes while it is on; see `Suppression`."""
        return Suppression(self.model, trace, gamma, adapter=PIPELINE)

    def read(
        self, batch: Sequence[str], keys: Collection[Key], edits: Mapping[Key, Edit] | None = None
    ) -> dict[Key, Tensor]:
        """See `tracerouter.discovery.Read`: rows of all calls of a block, one timestep after the other."""
        rows: dict[Key, list[Tensor]] = {key: [] for key in keys}

        def record(key: Key) -> Edit:
            def keep(a: Tensor) -> Tensor:
                rows[key].append(a.detach().reshape(-1, a.shape[-1]))
                return a

            return keep

        device = next(self.model.parameters()).device
        seeds = [derived_seed(self.recipe.seed, "noise", i) for i in range(len(batch))]
        changes = {self.names[key]: change for key, change in (edits or {}).items()}
        changed = edit(self.model, changes) if changes else contextlib.nullcontext()
        recorded = edit(self.model, {self.names[key]: record(key) for key in keys})
        with torch.no_grad(), changed, recorded, _quiet(self.pipe):
            self.pipe(
                prompt=list(batch),
                num_inference_steps=self.steps,
                guidance_scale=1.0,
                generator=[torch.Generator(device).manual_seed(seed) for seed in seeds],
                output_type="latent",
                **self.call,
            )
        return {key: torch.cat(seen) for key, seen in rows.items()}


@contextlib.contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    before = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
