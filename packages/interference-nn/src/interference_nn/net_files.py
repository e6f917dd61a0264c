"""The files of an interference network: weights and bank in safetensors, everything else in JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from aisec_common import env
from aisec_common.files import write_atomic
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from interference_nn.backbone import Backbone, backbone_of
from interference_nn.backgrounds import LEVELS, Backgrounds
from interference_nn.net import InterferenceNet
from interference_nn.settings import Settings

SCHEMA = "interference-net/1"
WEIGHTS, ABOUT = "interference.safetensors", "interference.json"


def save_net(net: InterferenceNet, folder: Path) -> None:
    """Writes both files, each atomically; the key of mode "keyed" is in neither."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in net.state_dict().items()}
    state["bank_images"] = _as_bytes(state["bank_images"])
    content = save(state)
    about = {
        "schema": SCHEMA,
        "classes": net.classes,
        "background_classes": net.background_head.out_features,
        "settings": asdict(net.settings),
        "backbone": {
            "source": net.backbone.source,
            "dim": net.backbone.dim,
            "size": net.backbone.size,
            "type": type(net.backbone.features).__name__,
        },
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "versions": env.versions("aisec-interference-nn"),
    }
    write_atomic(folder / WEIGHTS, content)
    write_atomic(folder / ABOUT, json.dumps(about, indent=1) + "\n")


def load_net(folder: Path, *, backbone: nn.Module | None, key: bytes | None) -> InterferenceNet:
    """The network that `save_net` wrote, in eval mode on the CPU; see `InterferenceNet.load`."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        content = (folder / WEIGHTS).read_bytes()
        if not isinstance(about, dict) or about.get("schema") != SCHEMA:
            raise ValueError(f"{ABOUT} is not of schema {SCHEMA}")
        if hashlib.sha256(content).hexdigest() != about["weights_sha256"]:
            raise ValueError(f"{WEIGHTS} is not the one {ABOUT} was written with")
        state = load(content)
        bank = Backgrounds(
            images=_as_floats(state.pop("bank_images")),
            labels=state.pop("bank_labels"),
            classes=about["background_classes"],
        )
        settings = Settings(**about["settings"])
        made = _architecture(about["backbone"], backbone, state, bank.images, settings)
        net = InterferenceNet(made, classes=about["classes"], bank=bank, settings=settings, key=key)
        kept = {"bank_images": net.bank_images, "bank_labels": net.bank_labels}
        net.load_state_dict({**state, **kept})
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror}); give a folder that `save` wrote") from None
    except (KeyError, TypeError, RuntimeError, SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{folder}: no interference network can be made of it ({reason})") from None
    return net.eval()


def _architecture(
    about: dict[str, Any], given: nn.Module | None, state: dict[str, Tensor], images: Tensor, settings: Settings
) -> Backbone:
    """The backbone before widening, with the normalisation of the file; its weights follow."""
    if given is None and about["source"] is None:
        raise ValueError(f"its backbone was a {about['type']} of the user's own; pass one as backbone=")
    channels, height, width = images.shape[1:]
    source: str | nn.Module = about["source"] if given is None else given
    weights = "random" if given is None and about["source"].startswith("hf:") else None
    made = backbone_of(source, weights=weights, channels=channels, image_size=(height, width), size=about["size"])
    made.mean = state["backbone.mean"][:, :channels].clone()
    made.std = state["backbone.std"][:, :channels].clone()
    return made


def _as_bytes(images: Tensor) -> Tensor:
    """Bytes where that loses nothing: a quarter of the room."""
    levels = (images * LEVELS).round()
    return levels.to(torch.uint8) if torch.equal(levels / LEVELS, images) else images


def _as_floats(images: Tensor) -> Tensor:
    return images.float() / LEVELS if images.dtype == torch.uint8 else images
