"""What the command line takes; each class is one subcommand."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from procon.config import CacheDtype, ConstrainedTokens, Norm, ProConConfig, Reduction, ReferenceName

Variant = Literal["s", "wu", "s_safe", "wu_safe", "sft", "sft_safe", "sppft", "kl", "random"]
PROCON = ("s", "wu", "s_safe", "wu_safe", "random")
WARMED = ("wu", "wu_safe", "random")
SAFE = ("s_safe", "wu_safe", "sft_safe")
ALPHA = {"s": 0.1, "s_safe": 0.1, "wu": 1.0, "wu_safe": 1.0, "random": 1.0, "kl": 0.1}  # the paper's; kl: ours
WARMUP_EPOCHS = 4.0  # the paper's for Llama-2-7B and Llama-3-8B; half of it with safety data
ACTS_IN = {
    **{field.name: PROCON for field in fields(ProConConfig) if field.name != "schedule"},  # the variant names that
    "alpha": tuple(ALPHA),
    "warmup_epochs": WARMED,
    "safety_data": SAFE,
}
"""Variants in which a setting has an effect; the others act in all."""


@dataclass(frozen=True, kw_only=True)
class _Probed:
    probe: tuple[Path, Path]
    """Two text files, one prompt a line: flagged prompts that the model refuses, then harmless ones. 100 or more each,
    none of them in training or test data."""
    out: Path
    """Folder for the results."""
    probe_batch_size: int = 16
    """Prompts in one forward pass."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes what is there."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights. auto: float32 on a CPU, else the checkpoint's own."""

    def __post_init__(self) -> None:
        if self.probe_batch_size < 1:
            raise ValueError(f"probe_batch_size must be at least 1, got {self.probe_batch_size}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Probed):
    """Fine-tunes a chat model with LoRA so that it keeps refusing what it refused."""

    model: str
    """A checkpoint name (`aisec data list`), a folder, or a hub's org/name."""
    data: Path
    """Training samples, JSON lines: `prompt` and `completion`, or `messages`, or `text`."""
    variant: Variant = "wu"
    """s: ProCon with constant alpha. wu: with warm-up. *_safe: with safety data mixed in. sft: plain fine-tuning.
    sppft: safety layers frozen. kl: divergence from the base model. random: wu with random directions."""
    safety_data: Path | None = None
    """Flagged prompts with refusals, in the format of `data`; the *_safe variants need it."""
    alpha: float | None = None
    """Weight of the projection term, or of the divergence (kl). Left out: the paper's 0.1 (s), 1 (wu); 0.1 (kl)."""
    warmup_epochs: float | None = None
    """Added epochs with the term (wu). Left out: 4, or 2 with safety data."""
    norm: Norm = "abs"
    """Of the moved projections: the paper's equation (abs), its figure 1 (l2_tokens), or their square."""
    reduction: Reduction = "mean"
    """Over tokens and blocks: mean, tokens alone (layer_sum), or samples alone, as the paper prints it. Alpha does not
    carry over between norms and reductions."""
    normalize: bool = False
    """Divide by the spread of the projections, so that alpha means the same for every model."""
    tokens: ConstrainedTokens = "response"
    """Where projections are held."""
    layers: Literal["all"] | tuple[int, ...] = "all"
    """Blocks whose outputs are held, from 0; negative ones count from the last."""
    reference: ReferenceName = "cache"
    """Where reference projections come from; cache is fastest and takes disk space in `out`."""
    cache_dtype: CacheDtype = "float32"
    """Of the cache; float16 takes half of the space and rounds projections to three digits."""
    epochs: float = 10.0
    """Standard epochs; a warm-up comes on top."""
    batch_size: int = 8
    """Samples in one forward pass, per device."""
    accumulate: int = 8
    """Forward passes in one step."""
    learning_rate: float = 2e-4
    """The highest; it falls along a cosine."""
    max_length: int = 1024
    """Longest sample, in tokens."""
    lora_rank: int = 8
    """r; lora_alpha is twice that."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Names of the modules that get adapters."""
    seed: int = 0
    """Of adapters, data order and random directions."""
    resume: bool = False
    """Continue from the last checkpoint in `out`, with the settings, data and model that it was begun with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant in SAFE and self.safety_data is None:
            raise ValueError(f"safety_data is missing: --variant {self.variant} needs --safety-data FILE")
        for field in fields(self):
            variants = ACTS_IN.get(field.name)
            if variants and self.variant not in variants and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} has no effect with --variant {self.variant}; leave it out or take "
                    f"{', '.join(variants)}"
                )
        if self.reference != "cache" and self.cache_dtype != "float32":
            raise ValueError(f"cache_dtype has no effect with --reference {self.reference}; leave it out or take cache")
        for name in ("batch_size", "accumulate", "lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.alpha is None:
            object.__setattr__(self, "alpha", ALPHA.get(self.variant))
        if self.warmup_epochs is None and self.variant in WARMED:
            object.__setattr__(self, "warmup_epochs", WARMUP_EPOCHS / (2 if self.variant in SAFE else 1))
        if self.variant in PROCON:
            self.procon()  # what it refuses is refused before anything is loaded

    def procon(self) -> ProConConfig:
        """The settings of the projection term, for a variant that has one."""
        given = {field.name: getattr(self, field.name, None) for field in fields(ProConConfig)}
        given["schedule"] = "warmup" if self.variant in WARMED else "constant"
        return ProConConfig(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class DriftConfig(_Probed):
    """Reports how far the refusal directions of one model are turned in another."""

    before: Annotated[str, tyro.conf.Positional]
    """The model as it was: a checkpoint name, a folder, or a hub's org/name."""
    after: Annotated[str, tyro.conf.Positional]
    """The tuned model, the folder of an adapter for `before`, or the one that `procon train` wrote."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Fine-tunes SmolLM2-135M-Instruct, taught to refuse the weather, with and without ProCon, and compares.

    Needs `aisec data fetch smollm2-135m-instruct`; goes on where it was stopped, at the last finished run.
    """

    out: Path
    """Folder for the runs, the table and the figures."""
    seeds: int = 2
    """How often everything is done."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps; auto takes what is there."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
