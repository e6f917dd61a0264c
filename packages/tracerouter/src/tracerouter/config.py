"""What the command line takes; each class is one subcommand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

SiteName = Literal["resid", "attn_out", "mlp_hidden", "mlp_out"]
ControlName = Literal["local", "source", "path_only", "delta_wfs", "printed_fis", "random", "direction"]
PlaceName = Literal["resid", "attn_out+mlp_out"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how prompts are put to it."""

    model: str
    """A checkpoint name (`aisec data list`), a folder, or a hub's org/name."""
    device: str = "auto"
    """Such as cpu, cuda or mps; auto takes what is there."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and activations; auto: the checkpoint's own."""
    raw: bool = False
    """Read prompts as they are. By default each becomes a user's turn of the tokenizer's chat template, if it has one;
    pairs that name modifiers or targets are always read as they are."""
    batch_size: int = 16
    """Prompts at once."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True, kw_only=True)
class FitConfig(ModelConfig):
    """Find the path of what the sensitive prompts have and the matched ones have not."""

    pairs: Path
    """JSON lines {"sensitive": ..., "matched": ...}, with optional "modifiers" and "targets"."""
    out: Path
    """Folder for the trace and its figure."""
    neutral: Path | None = None
    """Text file of further prompts for the autoencoders, one a line."""
    unit: Literal["latent", "coordinate"] = "latent"
    """Units that are traced: latents of sparse autoencoders, or coordinates."""
    sites: tuple[SiteName, ...] = ("resid",)
    """Sites of every block."""
    onset: int | None = None
    """The onset layer, 0-based, in place of the one that is found."""
    onset_score: Literal["flow", "js", "entropy"] = "flow"
    """How it is found: attention flow of minimal pairs; or, for any prompts, divergence or entropy of attention."""
    contrast: bool = True
    """Rank by what is more active on sensitive prompts; without it the score is that of the paper."""
    k: int | None = None
    """Units at each layer and site; an elbow at each by default."""
    sae: tuple[str, ...] = ()
    """Pre-trained autoencoders, LAYER:SITE:FOLDER each, as sae-lens or sparsify wrote them; `hook_resid_pre` of block N
    is resid of layer N - 1."""
    sae_width: int | None = None
    """Latents of trained autoencoders; 8 times the site's width by default."""
    sae_k: int = 32
    """Latents that a token keeps."""
    sae_steps: int = 1000
    """Training steps of each."""
    seed: int = 0
    """Of everything random."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelConfig):
    """What the cut gains and costs, beside no defence and controls."""

    trace: Path
    """Folder that `tracerouter fit` wrote."""
    harmful: Path
    """Text file of prompts that should not be answered, one a line; put shifted or attacked ones in."""
    benign: Path
    """Text file of prompts that should be answered, one a line. Utility is the share of them answered without a refusal
    phrase; nothing judges whether an answer is right, so read it beside the perplexity."""
    text: Path | None = None
    """Text file for the perplexity, one text a line; by default pages of Python's own documentation."""
    controls: tuple[ControlName, ...] = ("random", "local", "source", "path_only")
    """What else is cut in the path's place; direction needs --pairs."""
    pairs: Path | None = None
    """Pairs, as for fit, whose difference of means is the direction of that control."""
    gamma: float = 0.0
    """Factor left of every unit; 0 cuts."""
    max_new_tokens: int = 64
    """Length of an answer."""
    seed: int = 0
    """Of the random control."""
    out: Path | None = None
    """CSV file for the table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "direction" in self.controls and self.pairs is None:
            raise ValueError("controls: direction is taken from pairs of prompts; give the file with --pairs")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Cut the path and its controls in a real model taught to refuse one harmless topic; goes on where it stopped."""

    out: Path
    """Folder for runs, traces, tables and the figure."""
    places: tuple[PlaceName, ...] = ("resid", "attn_out+mlp_out")
    """Where the path is sought."""
    seeds: int = 2
    """How many times the refusal is taught and traced."""
    device: str = "cpu"
    """Such as cpu, cuda or mps; auto takes what is there."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if not self.places:
            raise ValueError("places must name at least one of resid and attn_out+mlp_out, got none")


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Print a trace."""

    trace: Annotated[Path, tyro.conf.Positional]
    """Folder that `tracerouter fit` wrote."""
