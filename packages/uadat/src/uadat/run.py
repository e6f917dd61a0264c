"""The folder of a training: what was trained on which images, enough to build model and data again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from aisec_common.files import write_atomic
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from uadat.config import LITE
from uadat.digits import digits
from uadat.image_splits import ImageSplits
from uadat.network import small_resnet

FILE = "run.json"
SAME_LAYERS = {LITE: "timm:tf_efficientnet_lite0"}  # to be given the weights of a run, without the checkpoint
OTHERS = 1000  # validation images where the data do not come with a library


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training was made of, apart from the loss, whose settings stand in the trainer's own files.

    Args:
        dataset: "digits", "photographs", "cifar10", "cifar100" or "folder".
        size: pixels a side that images from a folder and crops of photographs are brought to.
        validation: images held out.
        model: "small-resnet", "resnet18", "wrn-34-10", "timm:NAME" or "efficientnet-lite0".
        classes, channels: of the data.
        eps: radius trained against.
        loss: what was minimised.
        seed: of split and weights.
    """

    dataset: str
    size: int
    validation: int
    model: str
    classes: int
    channels: int
    eps: float
    loss: str
    seed: int

    def save(self, folder: Path) -> None:
        """Writes `run.json`.

        Raises:
            ValueError: if the folder holds another run.
        """
        if (folder / FILE).exists() and (other := Run.load(folder)) != self:
            differing = [name for name, value in asdict(self).items() if getattr(other, name) != value]
            raise ValueError(f"out: {folder} holds a run of another {' and '.join(differing)}; choose another folder")
        write_atomic(folder / FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Reads `run.json`.

        Raises:
            ValueError: if there is none, or it is not one of ours.
        """
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ValueError(
                f"run: {folder} must be the folder of a run, with a {FILE} that `uadat train` wrote"
            ) from None

    def data(self, folder: Path | None) -> ImageSplits:
        """The images, from `folder` where they do not come with a library."""
        return load_data(self.dataset, folder, size=self.size, validation=self.validation, seed=self.seed)

    def trained(self, folder: Path, weights: Literal["best", "last"]) -> nn.Module:
        """The trained model.

        Raises:
            ValueError: if the weights are missing, torn, or of another model.
        """
        name = SAME_LAYERS.get(self.model, self.model)
        model = build_model(name, self.classes, self.channels, seed=self.seed)
        file = folder / f"{weights}.safetensors"
        try:
            model.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"run: {file} must hold the weights of {self.model} ({reason})") from None
        return model.eval()


def build_model(name: str, classes: int, channels: int, *, seed: int) -> nn.Module:
    """A classifier with weights drawn from a seed; `efficientnet-lite0` has those of ImageNet but in its last layer.

    Raises:
        ValueError: if the name is unknown, or the images are grey and the weights of colour images.
        FileNotFoundError: before `aisec data fetch efficientnet-lite0`.

    >>> type(build_model("small-resnet", 10, 1, seed=0)).__name__
    'SmallResNet'
    """
    import torch
    from aisec_common.seeding import derived_seed

    if name == "small-resnet":
        return small_resnet(classes, channels, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "initial weights"))
        if name == "resnet18":
            from uadat.torchvision_resnet import SmallImageResNet18

            return SmallImageResNet18(classes, channels=channels)
        if name == "wrn-34-10":
            from uadat.wide_resnet import WideResNet

            return WideResNet(classes, channels=channels)
        if name.startswith("timm:"):
            from uadat.timm_classifier import timm_classifier

            return timm_classifier(name.removeprefix("timm:"), classes, channels=channels)
        if name == LITE:
            from uadat.timm_classifier import pretrained_lite0

            if channels != 3:
                raise ValueError(f"model {LITE} takes colour images; for those of {channels} channel take small-resnet")
            return pretrained_lite0(classes)
    raise ValueError(f"model must be small-resnet, resnet18, wrn-34-10, {LITE} or timm:NAME, not {name!r}")


def stage_end(name: str, model: nn.Module) -> str:
    """The layer after which features are perturbed where no other is asked for.

    Args:
        name: of the model, as in `build_model`.
        model: what that gave.

    Returns:
        The end of the second stage; for a model of timm, of the last one whose features are an eighth as wide as the
        image (`layer2` of a ResNet, `blocks.2` of an EfficientNet), or `layer2` where it names none.

    >>> stage_end("small-resnet", nn.Identity())
    'stage2'
    """
    if name == "small-resnet":
        return "stage2"
    if name == LITE or name.startswith("timm:"):
        from uadat.timm_classifier import layer_of_stride

        return layer_of_stride(model, 8) or "layer2"
    return "layer2"


def load_data(
    dataset: str, folder: Path | None, *, size: int, validation: int | None = None, seed: int = 0
) -> ImageSplits:
    """The images of a named data set; unless told, it holds out 100 digits, 90 crops of photographs, or 1000 images.

    Raises:
        ValueError: if the files are not there, or the name is unknown.
    """
    if dataset == "digits":
        return digits(seed, validation=validation or 100)
    if dataset == "photographs":
        from uadat.photographs import photographs

        return photographs(seed, size=size, validation=validation or 90)
    if folder is None:
        raise ValueError(f"data must name the folder of {dataset}")
    from uadat.torchvision_data import cifar, image_folder

    if dataset == "folder":
        return image_folder(folder, size=size, validation=validation or OTHERS, seed=seed)
    return cifar(dataset, folder, validation=validation or OTHERS, seed=seed)
