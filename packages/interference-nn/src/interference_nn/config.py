"""The words of the `interference-nn` command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aisec_common.radius import radius

from interference_nn.rungs import EffortName
from interference_nn.settings import Head, Interference, Mode


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Wraps a backbone in backgrounds and trains it, in two stages; goes on where it was killed.

    Args:
        backbone: `resnet152` or another name of torchvision, `timm:NAME`, `hf:ORG/NAME`, or `efficientnet-lite0`.
        weights: of the backbone, such as IMAGENET1K_V2 or pretrained; random ones without.
        data: training images, a subfolder for each class.
        out: folder for the network.
        backgrounds: background images, a subfolder for each label; procedural textures without.
        bank: number of backgrounds.
        background_labels: of procedural backgrounds.
        size: side of the images in pixels.
        interference: superpose, mosaic or channel.
        alpha: share of the background in a blend, or `random` for each training image.
        draws: backgrounds averaged over in a prediction.
        mode: random or fixed; a keyed network is made from either in Python, because no file keeps its key.
        head: two, joint or extra_class.
        head_epochs: of the first stage, heads alone.
        finetune_epochs: of the second, all weights.
        lr: of the second.
        adversarial: PGD inside of the second stage.
        eps: its radius, such as 8/255.
        batch_size: images at once.
        workers: processes that read images.
        device: auto, cpu, cuda or mps.
        seed: of all draws.

    Raises:
        ValueError: if a number is out of its range.
    """

    backbone: str
    data: Path
    out: Path
    weights: str | None = None
    backgrounds: Path | None = None
    bank: int = 256
    background_labels: int = 8
    size: int = 224
    interference: Interference = "superpose"
    alpha: float | Literal["random"] = 0.5
    draws: int = 8
    mode: Literal["random", "fixed"] = "random"
    head: Head = "two"
    head_epochs: int = 1
    finetune_epochs: int = 3
    lr: float = 1e-3
    adversarial: bool = False
    eps: str = "4/255"
    batch_size: int = 256
    workers: int = 0
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 1, "bank", "background_labels", "size", "batch_size")
        _at_least(self, 0, "workers", "head_epochs", "finetune_epochs")
        self.radius  # noqa: B018

    @property
    def radius(self) -> float:
        """eps as a number."""
        return radius(self.eps)


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Climbs the ladder of attacks with a fitted network, or with a pretrained backbone behind backgrounds as it is.

    Args:
        data: labelled images, a subfolder for each class, named and sorted as in training.
        net: folder that `fit` wrote.
        backbone: a pretrained classifier with as many classes as the data has subfolders: the undefended baseline that
            R1 attacks, and without `net` what is put behind backgrounds.
        weights: of that backbone.
        control: also climb with that backbone averaged over noise as strong as the backgrounds', which must not do as
            well for the verdict to be theirs; it costs what the network costs.
        images: of the data, chosen at random.
        eps: radii, such as 4/255 16/255.
        effort: quick, standard or full.
        mode: of the network's draws.
        key: of mode keyed; it is shown in the list of processes, so take one that protects nothing.
        size: side of the images in pixels, for a backbone.
        batch_size: images attacked at once.
        device: auto, cpu, cuda or mps.
        seed: of all draws.
        out: folder for samples (the run goes on from there when it was killed), table and page.

    Raises:
        ValueError: if neither `net` nor `backbone` is given, or a number is out of its range.
    """

    data: Path
    out: Path
    net: Path | None = None
    backbone: str | None = None
    weights: str | None = None
    control: bool = False
    images: int = 1000
    eps: tuple[str, ...] = ("4/255", "16/255")
    effort: EffortName = "standard"
    mode: Mode = "random"
    key: str | None = None
    size: int = 224
    batch_size: int = 64
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.net is None and self.backbone is None:
            raise ValueError("give --net, a folder that fit wrote, or --backbone, a pretrained classifier, or both")
        if self.weights is not None and self.backbone is None:
            raise ValueError("--weights belong to --backbone")
        if self.control and self.backbone is None:
            raise ValueError("--control needs --backbone, the classifier that is averaged over noise")
        if (self.mode == "keyed") != (self.key is not None):
            raise ValueError("--key belongs to --mode keyed, and that mode needs it")
        _at_least(self, 1, "images", "size", "batch_size")
        if not self.eps:
            raise ValueError("--eps must be one radius or more, such as 4/255 16/255")
        self.radii  # noqa: B018

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii as numbers."""
        return tuple(map(radius, self.eps))


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Puts a real pretrained backbone behind backgrounds, over crops of bundled photographs, and climbs the ladder.

    Args:
        out: folder for models, samples and tables; what is there is not repeated.
        images: test crops that are attacked.
        effort: standard or full, for an accelerator; without, as hard as a CPU does in hours.
        device: auto, cpu, cuda or mps.
        seed: of crops, heads and draws.

    Raises:
        ValueError: if `images` is not positive.
    """

    out: Path
    images: int = 18
    effort: Literal["standard", "full"] | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 1, "images")


def _at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(config, name)}")
