"""What the command line takes; each class is one subcommand."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from impq.interaction import Interaction

if TYPE_CHECKING:
    from impq.backend import GroupSize

BackendName = Literal["rtn", "gptq", "hqq", "quanto"]  # `impq.backend.BACKENDS`, which would load torch for --help
PYDOC = "pydoc"
BUDGETS = (2.25, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75)


def _at_least(config: object, **least: float) -> None:
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and not value >= low:
            raise ValueError(f"{name} must be at least {low}, got {value}")


def _even(permutations: int, why: str) -> None:
    if permutations % 2:
        raise ValueError(f"permutations must be even {why} walks are antithetic, got {permutations}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and the text it reads."""

    model: Annotated[str, tyro.conf.Positional]
    """A checkpoint name (`aisec data list`), a folder, or a hub's org/name."""
    tokens: int = 2048
    """How many tokens of the calibration text are read, rounded down to whole windows."""
    window: int = 512
    """Tokens of one sequence."""
    device: str = "cpu"
    """Such as cuda or mps; auto takes what is there."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights and activations. auto: float32 on a CPU, else the checkpoint's own. The loss is always float32."""
    calib: Annotated[str, tyro.conf.arg(aliases=["--data"])] = PYDOC
    """Calibration text: a UTF-8 file, or `pydoc`, the calibration pages of Python's own documentation."""

    def __post_init__(self) -> None:
        _at_least(self, tokens=2, window=2)

    @property
    def name(self) -> str:
        """The model's name, or that of its folder."""
        folder = Path(self.model).expanduser()
        return folder.resolve().name if folder.is_dir() else self.model


def groups_of(group_size: str) -> GroupSize:
    """A group size as backends take it.

    Raises:
        ValueError: if the text is no group size.

    >>> groups_of("64"), groups_of("row")
    (64, 'row')
    """
    if group_size == "row":
        return "row"
    if group_size == "tensor":
        return "tensor"
    if not re.fullmatch(r"[1-9]\d*", group_size):
        raise ValueError(f"group_size must be a number of weights, row or tensor, got {group_size!r}")
    return int(group_size)


@dataclass(frozen=True, kw_only=True)
class GameConfig(ModelConfig):
    """How the game's weights are quantised."""

    backend: BackendName = "rtn"
    """The quantiser; hqq and quanto need the extra of that name."""
    group_size: str = "64"
    """Weights that share a scale along the input: a number, or `row`, or `tensor`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.groups  # noqa: B018

    @property
    def groups(self) -> GroupSize:
        """The group size as backends take it."""
        return groups_of(self.group_size)


@dataclass(frozen=True, kw_only=True)
class EstimateConfig(GameConfig):
    """Measure the game of a model; the same command goes on where it was interrupted."""

    out: Path
    """Folder of journal and game."""
    preset: Literal["paper", "aisec"] = "aisec"
    """paper: independent full walks. aisec: ours, antithetic walks, which demote no more blocks than the tightest
    budget needs where that is half of them or fewer."""
    permutations: int = 100
    """M, the number of walks at full depth, even in preset aisec; shallower walks are as many as cost the same."""
    avg_bits: tuple[float, ...] = BUDGETS
    """Budgets the plans will be asked for; they set the depth in preset aisec."""
    depth: int | None = None
    """Blocks demoted in a walk, instead of what the preset says."""
    bits: tuple[int, ...] = (4, 2)
    """Widths, the widest first."""
    granularity: Literal["block", "group", "linear"] = "block"
    """What one player is: a block, its attention or MLP, or a single linear layer."""
    blocks: str | None = None
    """Name of the block list in the model, such as model.layers; the longest one by default."""
    payoff: Literal["quantize", "prune"] = "quantize"
    """prune: a demoted block is left out (the ablation the paper argues against)."""
    direction: Literal["demote", "promote"] = "demote"
    """promote: walks begin with every block at the low width, and are full unless --depth is given."""
    stop_early: bool = False
    """Stop once no plan for --avg-bits changes within 95 % intervals, under the objective that `impq plan` uses
    by default (precedence)."""
    seed: int = 0
    """Of the walks."""
    shard: str = "1/1"
    """i/n: only the walks of this share, for n processes or hosts; `impq merge` joins them."""
    jobs: int = 1
    """Processes, each with its share of the walks and a model of its own."""
    parallel: Literal["joblib", "ray"] = "joblib"
    """Where they run: joblib on this machine, ray on the hosts of a Ray cluster (RAY_ADDRESS), which all must find
    model and texts; extra `ray`."""
    weights: Literal["packed", "resident"] = "packed"
    """packed: codes are unpacked as a block runs; resident: every width stays unpacked, faster and larger."""
    cache_gib: float = 4.0
    """Memory for hidden states between blocks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, permutations=2, depth=1, seed=0, jobs=1)
        if self.preset == "aisec":
            _even(self.permutations, "in preset aisec, as its")
        if not self.cache_gib > 0:
            raise ValueError(f"cache_gib must be above 0, got {self.cache_gib}")
        self.share  # noqa: B018
        if self.parallel == "ray" and self.jobs < 2:
            raise ValueError(f"jobs must be at least 2 with parallel ray, got {self.jobs}")
        if self.jobs > 1 and self.share != (0, 1):
            raise ValueError("jobs and shard exclude each other: run one shard a process")
        if self.stop_early and (self.jobs > 1 or self.share != (0, 1)):
            raise ValueError("stop_early needs all walks in one process: leave out shard and jobs")

    @property
    def share(self) -> tuple[int, int]:
        """(index from 0, number of shards)."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        index, number = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= index <= number:
            raise ValueError(f"shard must be i/n with i from 1 to n, got {self.shard!r}")
        return index - 1, number


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Solve for the bit plan of a budget."""

    game: Annotated[Path, tyro.conf.Positional]
    """Folder that `impq estimate` wrote."""
    avg_bits: float | None = None
    """Bits per quantised weight, on average."""
    effective: bool = False
    """Count scales and zeros in --avg-bits."""
    bytes: int | None = None
    """Size of the whole model, instead of --avg-bits; what is not quantised counts as `impq estimate` loaded it, see
    its --dtype."""
    interaction: Interaction = "precedence"
    """The objective's pair term; covariance is the paper's, precedence the one we recommend."""
    alpha: float = 0.5
    """Shrinkage of the paper's covariance to its diagonal; 1 switches interactions off."""
    time_limit: float = 10.0
    """Seconds for the solver."""
    out: Path = Path("plan.json")
    """File of the plan."""

    def __post_init__(self) -> None:
        if (self.avg_bits is None) == (self.bytes is None):
            raise ValueError("give either avg_bits or bytes")
        _at_least(self, time_limit=0)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class PlannedConfig(ModelConfig):
    """A model, a plan for it, and how its weights are quantised."""

    plan: Annotated[Path, tyro.conf.Positional]
    """File that `impq plan` wrote."""
    backend: BackendName | None = None
    """The quantiser; that of the plan's game by default."""
    group_size: str | None = None
    """As in `impq estimate`; that of the plan's game by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.groups  # noqa: B018

    @property
    def groups(self) -> GroupSize | None:
        """The group size as backends take it; None for that of the plan's game."""
        return None if self.group_size is None else groups_of(self.group_size)


@dataclass(frozen=True, kw_only=True)
class ApplyConfig(PlannedConfig):
    """Quantise a model by a plan and save the packed weights."""

    out: Path
    """Folder of the quantised model."""
    sequential: bool = False
    """gptq only: calibrate each block on what the quantised blocks before it give."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(PlannedConfig):
    """Perplexity of a model under a plan, beside that of the unquantised model."""

    text: str = PYDOC
    """Text it is judged on: a file, or `pydoc`, the held-out pages of Python's own documentation."""
    text_tokens: int = 4096
    """How many of its tokens, in windows spread evenly over it; rounded down to whole windows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, text_tokens=2)


@dataclass(frozen=True, kw_only=True)
class CompareConfig(GameConfig):
    """Plans of every method on one model: the frontier of bits against held-out perplexity."""

    out: Path | None = None
    """Folder of journals, table and figure; impq-results/MODEL by default. The same command resumes."""
    text: str = PYDOC
    """Text the plans are judged on: a file, or `pydoc`, the held-out pages of Python's own documentation."""
    text_tokens: int = 4096
    """How many of its tokens, in windows spread evenly over it; rounded down to whole windows."""
    deploy: tuple[BackendName, ...] = ("rtn", "gptq")
    """Quantisers the plans are applied with."""
    permutations: int = 16
    """M, even: walks are antithetic."""
    seeds: int = 3
    """Independent sets of walks; intervals need 3."""
    avg_bits: tuple[float, ...] = BUDGETS
    """Budgets."""
    shallow: float = 3.5
    """Truncated walks serve the budgets from this one up, at the cost of the full walks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, text_tokens=2, permutations=2, seeds=1)
        _even(self.permutations, "as")
        if not self.deploy:
            raise ValueError("deploy: name at least one quantiser")

    @property
    def folder(self) -> Path:
        """Where the comparison is kept."""
        return self.out or Path("impq-results") / self.name.replace("/", "-")


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Join the journals of shards to one game."""

    shards: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `impq estimate --shard i/n` wrote."""
    out: Path
    """Folder of the joint game."""

    def __post_init__(self) -> None:
        if not self.shards:
            raise ValueError("shards: name at least one folder")
