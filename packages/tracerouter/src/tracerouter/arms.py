"""The arms of the study: what each cuts in one trained model, and what the model then does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from aisec_common.seeding import derived_seed
from aisec_common.study import content_hash
from aisec_common.torch.hooks import edit
from aisec_common.torch.model_hash import model_hash
from aisec_common.torch.sparse_autoencoder import SparseAutoencoder, fvu, train_sparse_autoencoder
from aisec_common.torch.trained import trained
from torch import Tensor, nn

from tracerouter.controls import control_path, direction_edits
from tracerouter.evaluation import SafetyCost, evaluate
from tracerouter.hf_flagged_lm import ANSWER_TOKENS, FlaggedLM, Question, is_flagged
from tracerouter.hf_router import TraceRouter
from tracerouter.path import Trace
from tracerouter.sites import Key, Site
from tracerouter.suppression import Suppression

if TYPE_CHECKING:
    from tracerouter.path import UnitKind

ARMS = (
    "none",
    "path",
    "local",
    "printed_fis",
    "delta_wfs",
    "source",
    "path_only",
    "direction",
    "coordinates",
    "random",
)
"""No defence, the method, the controls of `tracerouter.controls`, one direction, and the dense printed recipe.

The last one takes f and μ of absolute values: as printed they pass over negative activations, half of a dense site.
"""

SITES: Mapping[str, tuple[Site, ...]] = {"resid": ("resid",), "branches": ("attn_out", "mlp_out")}
"""What nothing bypasses, and the two halves of a block, which the skip connection bypasses."""

RECIPE = 1  # raise it when the autoencoders' training changes: cached ones of the old one are then left alone
LEAST_UTILITY = 0.9
BATCH = 100
SAE_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to cut at one set of sites: K units at each layer (None: an elbow each), γ, and the autoencoders."""

    sites: str
    k: int | None = None
    gamma: float = 0.0
    latents: int = 512
    sae_k: int = 8


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a model did under one setting of one arm: on prompts as traced, and on shifted ones."""

    direct: SafetyCost
    shifted: SafetyCost
    units: int


@dataclass(frozen=True, eq=False)
class Bench:
    """One trained model with what its arms share; paths and results are made when the first arm needs them."""

    lm: FlaggedLM
    seed: int
    sae_steps: int
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    _traces: dict[tuple[Setting, UnitKind, bool], Trace] = field(default_factory=dict, init=False)
    _saes: dict[tuple[int, int, str], dict[Key, SparseAutoencoder]] = field(default_factory=dict, init=False)
    _calibrated: dict[tuple[Setting, ...], tuple[Setting, bool]] = field(default_factory=dict, init=False)

    @cached_property
    def onsets(self) -> dict[str, tuple[int, list[float]]]:
        """l* and the curve by the attention flow of pairs, and by Jensen-Shannon divergence."""
        return {
            score: TraceRouter(self.lm.model, self.lm.tokenizer, onset_score=score, batch_size=BATCH).onset_of(
                self.lm.pairs
            )
            for score in ("flow", "js")
        }

    def saes(self, setting: Setting) -> dict[Key, SparseAutoencoder]:
        """Autoencoders of one size at a set of sites from l* on; trained once for a model, then read from the cache."""
        known = (setting.latents, setting.sae_k, setting.sites)
        if known not in self._saes:
            self._saes[known] = self._trained_saes(setting)
        return self._saes[known]

    def _trained_saes(self, setting: Setting) -> dict[Key, SparseAutoencoder]:
        blocks, width = self.lm.model.config.num_hidden_layers, self.lm.model.config.hidden_size
        keys: list[Key] = [(at, site) for at in range(self.onsets["flow"][0], blocks) for site in SITES[setting.sites]]
        made = {
            key: SparseAutoencoder(
                width, setting.latents, k=setting.sae_k, seed=derived_seed(self.seed, "autoencoder", *key)
            )
            for key in keys
        }
        kept = nn.ModuleDict({f"{layer}-{site}": sae for (layer, site), sae in made.items()})
        recipe = {
            "model": model_hash(self.lm.model),
            "keys": [list(key) for key in keys],
            "latents": setting.latents,
            "k": setting.sae_k,
            "steps": self.sae_steps,
            "seed": self.seed,
            "texts": content_hash("\0".join(self.texts)),
            "recipe": RECIPE,
        }

        def train() -> None:
            for done, (key, rows) in enumerate(self.activations(setting, keys).items()):
                start = derived_seed(self.seed, "autoencoder", *key)
                train_sparse_autoencoder(made[key], rows, steps=self.sae_steps, batch_size=SAE_BATCH, seed=start)
                self.progress("autoencoders", done + 1, len(keys))

        trained(kept, "tracerouter-autoencoders", recipe, train)
        kept.requires_grad_(False)
        return made

    def activations(self, setting: Setting, keys: Sequence[Key]) -> dict[Key, Tensor]:
        """What the autoencoders are trained on: every token of the prompts traced and of the neutral texts."""
        router = self._router(setting, saes={})
        parts = [router.read(self.texts[i : i + BATCH], keys) for i in range(0, len(self.texts), BATCH)]
        return {key: torch.cat([part[key] for part in parts]) for key in keys}

    @property
    def texts(self) -> list[str]:
        """Both prompts of every pair, and the neutral texts."""
        return [*(text for pair in self.lm.pairs for text in (pair.sensitive, pair.matched)), *self.lm.neutral]

    def unexplained(self, setting: Setting) -> float:
        """The largest fraction of variance that an autoencoder leaves unexplained."""
        saes = self.saes(setting)
        return max(fvu(saes[key], rows) for key, rows in self.activations(setting, list(saes)).items())

    def _router(
        self, setting: Setting, saes: Mapping[Key, SparseAutoencoder], unit: UnitKind = "latent", contrast: bool = True
    ) -> TraceRouter:
        return TraceRouter(
            self.lm.model,
            self.lm.tokenizer,
            unit=unit,
            sites=SITES[setting.sites],
            onset=self.onsets["flow"][0],
            contrast=contrast,
            k=setting.k,
            saes=saes,
            sae_width=setting.latents,
            sae_k=setting.sae_k,
            batch_size=BATCH,
            seed=self.seed,
        )

    def trace(self, setting: Setting, unit: UnitKind = "latent", contrast: bool = True) -> Trace:
        """The path at one setting."""
        setting = Setting(sites=setting.sites, k=setting.k, latents=setting.latents, sae_k=setting.sae_k)  # whatever γ
        known = (setting, unit, contrast)
        if known not in self._traces:
            self._traces[known] = self._router(setting, self.saes(setting), unit, contrast).fit(self.lm.pairs)
        return self._traces[known]

    def cut(self, arm: str, setting: Setting) -> Trace | None:
        """What an arm cuts; None for the two arms that cut no units."""
        if arm in ("none", "direction"):
            return None
        if arm == "coordinates":
            return self.trace(setting, "coordinate", contrast=False)
        trace = self.trace(setting)
        return trace if arm == "path" else trace.with_path(control_path(arm, trace, seed=self.seed))

    @contextlib.contextmanager
    def defended(self, arm: str, setting: Setting) -> Iterator[int]:
        """The model under an arm while the block runs; gives the number of units that are cut."""
        model, trace = self.lm.model, self.cut(arm, setting)
        if trace is not None:
            with Suppression(model, trace, setting.gamma):
                yield trace.n_units
        elif arm == "direction":
            pairs = self.lm.pairs
            edits = direction_edits(
                model,
                self.lm.tokenizer,
                self.trace(setting),
                sensitive=[pair.sensitive for pair in pairs],
                matched=[pair.matched for pair in pairs],
                batch_size=BATCH,
            )
            with edit(model, edits):
                yield 0
        else:
            yield 0

    @cached_property
    def undefended(self) -> Result:
        """The model as it is."""
        return self.result("none", Setting(sites="resid"))

    def result(self, arm: str, setting: Setting) -> Result:
        """Answers to fresh and to shifted test prompts."""
        lm = self.lm
        with self.defended(arm, setting) as units:
            return Result(
                direct=self._judged(lm.flagged, lm.benign),
                shifted=self._judged(lm.shifted, lm.shifted_benign),
                units=units,
            )

    def _judged(self, flagged: list[Question], benign: list[Question]) -> SafetyCost:
        right = {question.prompt: question.answer for question in benign}
        return evaluate(
            self.lm.model,
            self.lm.tokenizer,
            harmful=[question.prompt for question in flagged],
            benign=[question.prompt for question in benign],
            harms=lambda prompt, answer: is_flagged(answer),
            serves=lambda prompt, answer: answer == right[prompt],
            max_new_tokens=ANSWER_TOKENS,
            batch_size=BATCH,
        )

    def calibrated(self, settings: Sequence[Setting]) -> tuple[Setting, bool]:
        """The largest K at which the path keeps utility on calibration prompts, and whether one does (else the least).

        One K for all arms, so that their budgets match.
        """
        known = tuple(settings)
        if known not in self._calibrated:
            self._calibrated[known] = self._calibrate(known)
        return self._calibrated[known]

    def _calibrate(self, settings: Sequence[Setting]) -> tuple[Setting, bool]:
        flagged = [question for question in self.lm.calibration if question.flagged]
        benign = [question for question in self.lm.calibration if not question.flagged]
        for setting in sorted(settings, key=lambda setting: setting.k or 0, reverse=True):
            with self.defended("path", setting):
                if self._judged(flagged, benign).utility.value >= LEAST_UTILITY:
                    return setting, True
        return setting, False

    def edges(self, setting: Setting) -> dict[tuple[Key, Key], Tensor]:
        """Which source unit moves which unit of the path; see `TraceRouter.edges`."""
        trace = self.trace(setting)
        return self._router(setting, trace.saes).edges(trace, self.lm.pairs)
