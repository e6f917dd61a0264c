"""What the command line takes; each class is one subcommand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from aisec_common.radius import radius

LossName = Literal["uad", "trades", "mart", "at", "standard"]
Attacks = Literal["quick", "standard", "full"]
DatasetName = Literal["digits", "photographs", "cifar10", "cifar100", "folder"]
BUNDLED = ("digits", "photographs")
"""With libraries; the others are read from a folder."""
LITE = "efficientnet-lite0"
EPS = {"digits": "0.15", "photographs": "4/255"}
MODELS = {"digits": "small-resnet", "photographs": LITE}


def _at_least(config: object, **least: float) -> None:
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and not value >= low:
            raise ValueError(f"{name} must be at least {low}, got {value}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and where the work is done."""

    data: Path | None = None
    """Folder of the unpacked archive of cifar10 or cifar100; or with train/CLASS/ and test/CLASS/ (or val/CLASS/)."""
    batch_size: int = 128
    """Images a batch."""
    device: str = "auto"
    """Such as cpu, cuda or mps; auto takes what is there."""
    workers: int = 0
    """Processes that load images."""

    def __post_init__(self) -> None:
        _at_least(self, batch_size=1, workers=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataConfig):
    """Train a classifier against adversarial images; the same command goes on where it was interrupted."""

    out: Path
    """Folder of the run: its setting, the curve, the best and the last weights."""
    dataset: DatasetName = "digits"
    """digits and crops of photographs come with libraries; the others are read from --data."""
    size: int | None = None
    """Pixels a side that images from a folder (64) and crops of photographs (128) are brought to."""
    validation: int | None = None
    """Images held out to choose the best epoch by; 100 digits, 90 crops of photographs, 1000 otherwise."""
    model: str | None = None
    """small-resnet (for digits), resnet18, wrn-34-10, timm:NAME, or efficientnet-lite0 (for photographs): the fetched
    checkpoint with ImageNet weights."""
    eps: str | None = None
    """Radius of the l_inf ball, 8/255 where not given; 0.15 for digits, 4/255 for photographs."""
    loss: LossName = "uad"
    """What is minimised; every switch below except --beta and --awp belongs to uad."""
    layer: str | None = None
    """Whose features the distributional adversary perturbs, or `input`; by default the end of the second stage (of the
    third in EfficientNet: `blocks.2`), from which the features of a model of ImageNet are an eighth as wide as it."""
    beta: float | None = None
    """Weight of the alignment of uad, trades and mart; 6, or 4 with --base at."""
    samples: int = 2
    """M, draws of the distributional adversary; 0 turns it off."""
    kappa: float = 0.5
    """Spread of the draws in units of the batch's."""
    cov: Literal["diag", "lowrank"] = "diag"
    """Covariance of the draws."""
    refine: bool = True
    """Refine the reference of images that are misclassified."""
    stat: float = 0.1
    """Weight of the distance between distributions; 0 turns it off."""
    iga: float = 0.2
    """Weight of the alignment of input gradients; 0 turns it off."""
    iga_mode: Literal["exact", "indirect"] = "exact"
    """indirect: first-order, half the memory."""
    base: Literal["trades", "at"] = "trades"
    """at: cross-entropy on adversarial images."""
    awp: float = 0.0
    """Adversarial weight perturbation, relative size; 0.005 is usual, 0 turns it off."""
    steps: int = 10
    """Of the attack in training."""
    epochs: int = 110
    """Passes over the training images."""
    lr: float | None = None
    """Learning rate of SGD with momentum .9; 0.1, or 0.03 for efficientnet-lite0, on which 0.1 diverges."""
    weight_decay: float = 5e-4
    """Of SGD."""
    schedule: Literal["multistep", "onecycle"] = "multistep"
    """multistep: a tenth at 75 and 90 % of the epochs."""
    seed: int = 0
    """Of initial weights, order, crops and draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, size=8, epochs=1, beta=0, samples=0, kappa=0, stat=0, iga=0, awp=0, steps=1, validation=1)
        if self.rate <= 0:
            raise ValueError(f"lr must be above 0, got {self.rate}")
        if (self.data is None) != (self.dataset in BUNDLED):
            raise ValueError(f"data must name a folder for every dataset but {' and '.join(BUNDLED)}, which take none")
        self.radius  # noqa: B018

    @property
    def radius(self) -> float:
        """eps as a number."""
        return radius(self.eps or EPS.get(self.dataset, "8/255"))

    @property
    def side(self) -> int:
        """The size, or the usual one for the data set."""
        return self.size or (128 if self.dataset == "photographs" else 64)

    @property
    def model_name(self) -> str:
        """The model, or the usual one for the data set."""
        return self.model or MODELS.get(self.dataset, "resnet18")

    @property
    def rate(self) -> float:
        """lr, or the usual one for the model."""
        return (0.03 if self.model_name == LITE else 0.1) if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DataConfig):
    """Attack what `uadat train` left and report per-sample worst cases with the signs of masked gradients."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    attacks: Attacks = "standard"
    """quick: PGD and APGD; standard: also Square, CW and the rest; full: AutoAttack."""
    eps: tuple[str, ...] = ()
    """Radii, such as 4/255 8/255; that of the training by default."""
    weights: Literal["best", "last"] = "best"
    """best: of the epoch with the highest validation PGD-10 accuracy."""
    images: int | None = None
    """Of the test part, the first so many; all by default."""
    seeds: int = 1
    """How often every attack is run; the worst counts."""
    surrogate: Path | None = None
    """Folder of another run, whose adversarial images are transferred to this one."""
    compare: tuple[Path, ...] = ()
    """Folders of other runs, evaluated alike and shown side by side."""
    out: Path | None = None
    """Folder of the report; RUN/report-WEIGHTS-ATTACKS by default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, images=1, seeds=1)
        self.radii  # noqa: B018

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii as numbers."""
        return tuple(map(radius, self.eps))


UadatConfig = (
    Annotated[TrainConfig, tyro.conf.subcommand("train")] | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
)
