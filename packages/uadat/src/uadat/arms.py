"""The arms of the study: what each trains with, and the models they lead to on the digits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from aisec_common.seeding import derived_seed, torch_rng
from aisec_common.study import content_hash
from aisec_common.torch import linf_pgd as pgd
from aisec_common.torch.trained import trained

from uadat import (
    adversary,
    awp,
    baselines,
    distributed,
    gradient_alignment,
    hf_trainer,
    image_splits,
    loss,
    matching,
    network,
    reference,
    robust_loss,
    split,
    statistics,
)
from uadat.awp import AWP
from uadat.baselines import ATLoss, MARTLoss, StandardLoss, TRADESLoss
from uadat.digits import CLASSES, EPS
from uadat.hf_trainer import RobustTrainer
from uadat.image_splits import ImageSplits, as_tensors, loader
from uadat.loss import UADLoss
from uadat.network import SmallResNet, small_resnet
from uadat.robust_loss import RobustLoss

LAYER = "stage2"
BETA = 6.0
BATCH = 100
OPTIMIZER = {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9}
DECISIVE: tuple[ModuleType, ...] = (
    adversary, awp, baselines, distributed, gradient_alignment, hf_trainer, image_splits, loss, matching, network, pgd,
    reference, robust_loss, split, statistics,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training.

    Args:
        loss: from the weight beta of the alignment to the loss.
        aligned: whether beta means anything to it.
        reseeded: other initial weights, order and draws than the other arms of the seed.
    """

    loss: Callable[[float], RobustLoss]
    aligned: bool = True
    reseeded: bool = False


def _uad(**switches: Any) -> Callable[[float], RobustLoss]:
    """TRADES with the named parts of the method switched on."""
    off: dict[str, Any] = {"samples": 0, "refine": False, "stat": 0.0, "iga": 0.0}
    return lambda beta: UADLoss(EPS, LAYER, beta=beta, **{**off, **switches})


def _full(**changes: Any) -> Callable[[float], RobustLoss]:
    """The whole method."""
    return lambda beta: UADLoss(EPS, LAYER, **{"beta": beta, **changes})


ARMS: Mapping[str, Arm] = {
    "standard": Arm(loss=lambda _: StandardLoss(), aligned=False),
    "noise": Arm(loss=lambda beta: TRADESLoss(EPS, beta, steps=0)),  # no attack: a random point of the ball
    "at": Arm(loss=lambda _: ATLoss(EPS), aligned=False),
    "trades": Arm(loss=lambda beta: TRADESLoss(EPS, beta)),
    "trades_reseeded": Arm(loss=lambda beta: TRADESLoss(EPS, beta), reseeded=True),
    "dist": Arm(loss=_uad(samples=2)),
    "ref": Arm(loss=_uad(refine=True)),
    "stat": Arm(loss=_uad(stat=0.1)),
    "iga": Arm(loss=_uad(iga=0.2)),
    "uad": Arm(loss=_full()),
    "uad_indirect": Arm(loss=_full(iga_mode="indirect")),
    "uad_lowrank": Arm(loss=_full(cov="lowrank")),
    "mart": Arm(loss=lambda beta: MARTLoss(EPS, beta)),
    "trades_awp": Arm(loss=lambda beta: AWP(TRADESLoss(EPS, beta))),
    "uad_awp": Arm(loss=lambda beta: AWP(_full()(beta))),
    "at_kl": Arm(loss=_uad(base="at")),
    "at_uad": Arm(loss=_full(base="at")),
}


@cache
def training_code() -> str:
    """sha256 of the source that decides the weights; other code trains anew."""
    return content_hash("\0".join(inspect.getsource(module) for module in DECISIVE))


def trained_model(
    name: str,
    data: ImageSplits,
    seed: int,
    *,
    epochs: int,
    beta: float = BETA,
    progress: Callable[[str, int, int], None] | None = None,
) -> SmallResNet:
    """The model of one arm after its last epoch: SGD with momentum, one cycle, batches of 100.

    Kept in the user's cache under a hash of everything that decides it.

    Args:
        name: of the arm.
        data: see `digits`.
        seed: of initial weights, order and draws.
        epochs: passes over the training images.
        beta: weight of the alignment.
        progress: called with what is done, how many epochs are finished, and of how many.
    """
    arm = ARMS[name]
    own = derived_seed(seed, "another") % 2**31 if arm.reseeded else seed
    objective = arm.loss(beta)
    model = small_resnet(CLASSES, seed=own)
    images, labels = as_tensors(data.train)
    recipe = {
        "loss": type(objective).__name__,
        "inner": type(objective.loss).__name__ if isinstance(objective, AWP) else "",
        "settings": dict(objective.settings),
        "optimizer": OPTIMIZER,
        "epochs": epochs,
        "batch": BATCH,
        "seed": own,
        "images": content_hash(images.numpy()),
        "labels": content_hash(labels.numpy()),
        "code": training_code(),
    }

    def train() -> None:
        trainer = RobustTrainer(
            model,
            objective,
            epochs=epochs,
            optimizer=OPTIMIZER,
            schedule="onecycle",
            seed=own,
            device="cpu",
            progress=progress,
        )
        trainer.fit(loader(data.train, BATCH, shuffle_seed=own))

    trained(model, "uadat", recipe, train)
    return model.eval()


def chosen_beta(name: str, data: ImageSplits, seed: int, *, epochs: int, betas: tuple[float, ...]) -> float:
    """The beta of the grid whose model is right most often under PGD-10 on the validation images.

    The same grid for every arm; the first of equals. An arm without an alignment has nothing to choose.
    """
    if not ARMS[name].aligned or len(betas) == 1:
        return betas[0]
    images, labels = as_tensors(data.validation)

    def right(beta: float) -> float:
        model = trained_model(name, data, seed, epochs=epochs, beta=beta)
        found = pgd.linf_pgd(model, images, labels, eps=EPS, steps=10, generator=torch_rng(seed, "validation"))
        with torch.no_grad():
            return float((model(found).argmax(1) == labels).float().mean())

    return max(betas, key=right)
