from typing import ClassVar

import torch
from aisec_common.data.skimage_photographs import load_photographs
from aisec_common.testing import RoomContract
from torch import nn

from interference_nn import Backgrounds, InterferenceNet, ProceduralBackgrounds, fit, ladder, noise_backgrounds
from interference_nn.art_hopskipjump import hopskipjump
from interference_nn.digits import load_digits
from interference_nn.rungs import Effort
from interference_nn.study import STUDY

BANK = {"n": 8, "classes": 4, "size": 8}


def net(**settings):
    return InterferenceNet.from_backbone(nn.Flatten(), classes=3, bank=ProceduralBackgrounds(**BANK), **settings)


def climb(model=None, images=None, labels=None, **settings):
    images = torch.rand(4, 3, 8, 8) if images is None else images
    labels = torch.tensor([0, 1, 2, 0]) if labels is None else labels
    return ladder(model or net(), (images, labels), **({"eps": 0.1, "effort": Effort(rungs=("R3",))} | settings))


class Pair(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3], images


class Nan(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3] * float("nan")


class TestContract(RoomContract):
    room = "interference-nn"
    plants: ClassVar = {STUDY.claims[0].text: {"clean": (0.95, 0.01)}}
    wrong_inputs = (
        (lambda: net()(torch.full((1, 3, 8, 8), 255.0)), "divide"),
        (lambda: net()(torch.full((1, 3, 8, 8), float("nan"))), "NaN"),
        (lambda: net()(torch.rand(1, 3, 9, 9)), "size"),
        (lambda: net(alpha=2.0), "alpha"),
        (lambda: net(mode="keyed"), "key"),
        (lambda: net(draws=9, replacement=False), "draws"),
        (lambda: ProceduralBackgrounds(n=2, classes=4), "n of the bank"),
        (
            lambda: Backgrounds(images=torch.rand(0, 3, 8, 8), labels=torch.zeros(0, dtype=torch.long), classes=2),
            "empty",
        ),
        (lambda: Backgrounds(images=torch.rand(2, 3, 8, 8), labels=torch.tensor([0, 5]), classes=2), "labels"),
        (lambda: noise_backgrounds(ProceduralBackgrounds(n=0)), "n"),
        (lambda: InterferenceNet.from_backbone("nosuch", classes=3, bank=ProceduralBackgrounds(**BANK)), "nosuch"),
        (lambda: fit(net(), [(torch.rand(2, 3, 8, 8), torch.tensor([0, 7]))]), "labels"),
        (lambda: climb(eps=-0.1), "eps"),
        (lambda: climb(images=torch.rand(4, 3, 8, 8) + 1), "images"),
        (lambda: climb(labels=torch.tensor([0, 1, 2, 9])), "labels"),
        (lambda: climb(over="nosuch"), "over"),
        (lambda: climb(effort="hard"), "effort"),
        (lambda: climb(Pair()), "wrap it"),
        (lambda: climb(Nan()), "NaN"),
        (lambda: ladder(net(), [], eps=0.1), "data"),
        (lambda: Effort(rungs=("R9",)), "rungs"),
        (lambda: hopskipjump(1), "queries"),
        (lambda: load_digits(0, test=1), "test"),
        (lambda: load_photographs(0, train=0), "train"),
    )
