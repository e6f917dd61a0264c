"""What the command line takes; each class is one subcommand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from refusal_index.readers import Format, Marks


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Score graded results: a table (CSV or JSON lines), or logs of lm-evaluation-harness or inspect-ai."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files of the first pass, one per prompt, or one table of all."""
    forced: Path | None = None
    """File of the second pass, where it is not in the same table."""
    format: Format = "auto"
    """What the files are."""
    marks: Annotated[Marks, tyro.conf.arg(name="")] = field(default_factory=Marks)
    penalty: float = 0.2
    """p of the weighted score c - p (1 - r); the paper's large table uses 1."""
    name: str = "model"
    """What to call the model."""
    out: Path | None = None
    """Folder to save the report in."""

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("results: name at least one file")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Ask a model in two passes and score it; the same command goes on where it was interrupted."""

    model: str
    """A checkpoint name (`aisec data list`), a folder, or a hub's org/name."""
    questions: Annotated[str, tyro.conf.arg(aliases=["--data"])]
    """`capitals`, or a CSV or JSON-lines file with question and answer."""
    out: Path | None = None
    """Folder of journal, graded rows and report; refusal-index-results/MODEL-QUESTIONS by default."""
    prompts: tuple[str, ...] = ("refuse-0", "refuse-1", "refuse-4", "refuse-6")
    """First-pass prompts."""
    temperature: float = 0.7
    """0 decodes greedily, which the index is meant for: sampling attenuates it."""
    top_p: float = 0.95
    """Mass of the nucleus."""
    max_new_tokens: int = 4096
    """Longest response; 32 is enough for models that answer without thinking aloud."""
    chat: bool = True
    """Use the model's chat template, if it has one."""
    seed: int = 0
    """Of the samples."""
    limit: int | None = None
    """Ask the first questions only."""
    batch_size: int = 16
    """Texts at a time; what a kill can lose at most."""
    device: str = "cpu"
    """Such as cuda or mps; auto takes what is there."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Auto is the checkpoint's own, but float32 on a CPU."""

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("max_new_tokens", 1), ("limit", 1), ("temperature", 0)):
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")

    @property
    def name(self) -> str:
        """What the report calls the model: its name, or that of its folder."""
        folder = Path(self.model).expanduser()
        return folder.resolve().name if folder.is_dir() else self.model

    @property
    def folder(self) -> Path:
        """Where the run is kept: `out`, or a folder named after model and questions."""
        return self.out or Path("refusal-index-results") / f"{self.name.replace('/', '-')}-{Path(self.questions).stem}"

    def conditions(self) -> dict[str, str | int | float | bool]:
        """What an answer depends on; a run is resumed only under the same conditions."""
        sampling = {"top_p": self.top_p, "seed": self.seed} if self.temperature > 0 else {}
        return {
            "temperature": self.temperature,
            **sampling,
            "max_new_tokens": self.max_new_tokens,
            "chat": self.chat,
            "dtype": self.dtype,
        }


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare reports: differences of the Refusal Index with bootstrap intervals."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Two folders or more that `run` or `score --out` wrote."""
    paired: bool = True
    """The reports answer the same questions."""

    def __post_init__(self) -> None:
        if len(self.folders) < 2:
            raise ValueError("folders: name at least two")
