"""Backbones of transformers: image classifiers behind a thin adapter that returns tensors."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from interference_nn.backbone import Backbone, split_head


class Logits(nn.Module):
    """A transformers image classifier as a plain module: pixel values to `.logits`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, or features where the classifier was taken off."""
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


def load(name: str, weights: str | None = None) -> Backbone:
    """An image classifier of a hub or a folder, without its last linear layer; no code of its own is run.

    Args:
        name: a folder, or a hub's `org/name`.
        weights: `"random"` for a fresh network of that configuration; None for the checkpoint's.

    Returns:
        phi with mean and std of the checkpoint's image processor.

    Raises:
        ValueError: if it cannot be loaded as an image classifier.
    """
    if weights not in (None, "random"):
        raise ValueError(f"weights of 'hf:{name}' come with it; leave them out (or 'random'), not {weights!r}")
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)  # type: ignore[no-untyped-call]
        if weights == "random":
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
            model = AutoModelForImageClassification.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        else:
            model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"backbone: {name} cannot be loaded as an image classifier ({str(error).splitlines()[0]})"
        ) from None
    return _backbone(model, mean=processor.image_mean, std=processor.image_std, source=f"hf:{name}")


def wrap(model: PreTrainedModel) -> Backbone:
    """A transformers classifier object; it is expected to take images in [0, 1], normalised to mean .5 and std .5.

    Most of the library's image processors do so; where one does not, change `mean` and `std` of the Backbone.
    """
    return _backbone(model, mean=0.5, std=0.5, source=None)


def _backbone(
    model: PreTrainedModel, *, mean: float | list[float], std: float | list[float], source: str | None
) -> Backbone:
    features, pretrained, dim = split_head(Logits(model))
    channels = getattr(model.config, "num_channels", 3)
    return Backbone(features, dim=dim, channels=channels, mean=mean, std=std, pretrained=pretrained, source=source)
