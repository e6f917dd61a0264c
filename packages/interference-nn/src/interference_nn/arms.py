"""The arms of the study: one small classifier trained plainly, and what each method makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from aisec_common.seeding import derived_seed
from aisec_common.study import content_hash
from aisec_common.torch.trained import trained
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from interference_nn.backbone import Backbone
from interference_nn.backgrounds import BackgroundBank, ProceduralBackgrounds, noise_backgrounds
from interference_nn.baselines import Method, NoiseAverage, fit_baseline
from interference_nn.digits import CLASSES, Digits, load_digits
from interference_nn.fit import fit
from interference_nn.net import InterferenceNet
from interference_nn.network import WIDTH, Classifier, conv_backbone
from interference_nn.settings import Settings
from interference_nn.training import Epoch, Recipe

ARMS = (
    "plain",
    "interference",
    "noise",
    "no_blend",
    "extra_class",
    "noise_average",
    "mixup",
    "pgd_at",
    "pgd_at_equal",
    "free_at",
    "fast_at",
    "adversarial",
)
"""The undefended classifier; the method; its backgrounds replaced by Gaussian noise of their mean and variance; its
blending off (a = 0); reading B; the plain classifier averaged over noise; other trainings, PGD-AT also at the compute
of the interference network; the method with adversarial training."""

Made = TypeVar("Made", bound=nn.Module)

EPS = 0.1
DRAWS = 8
ALPHA = 0.5
BACKGROUNDS, LABELS = 256, 8
BATCH = 128
LR, WEIGHT_DECAY = 1e-2, 5e-4
FEATURES = 4 * WIDTH
AT_STEPS, REPLAYS = 7, 4
VERSION = 1  # raise it when a training changes: cached weights of the old one are then left alone


@dataclass(frozen=True)
class Bench:
    """Data and models of one seed; each model is trained when first asked for, and then read from the cache.

    Every other classifier and network starts from the plain one's weights, as the paper starts from a pretrained one.

    Args:
        seed: of split, initial weights, order and backgrounds.
        epochs: of each training.
    """

    seed: int
    epochs: int = 25

    @cached_property
    def digits(self) -> Digits:
        """The data."""
        return load_digits(self.seed)

    @cached_property
    def bank(self) -> ProceduralBackgrounds:
        """The backgrounds: gratings, checkerboards, noise and gradients of eight labels."""
        seed = derived_seed(self.seed, "bank")
        return ProceduralBackgrounds(n=BACKGROUNDS, classes=LABELS, size=8, seed=seed, channels=1)

    @cached_property
    def plain(self) -> Classifier:
        """The undefended classifier."""
        return self._kept("plain", self._new(), partial(self._baseline, "plain", self.epochs))[0]

    def model(self, arm: str) -> nn.Module:
        """The model of an arm in eval mode."""
        return self._made(arm)[0]

    def passes(self, arm: str) -> float:
        """Forward and backward passes of its training for each training image, that of the plain one included."""
        own = self._made(arm)[1]
        return own if arm == "plain" else own + self._made("plain")[1]

    def _made(self, arm: str) -> tuple[nn.Module, float]:
        if arm == "plain":
            return self._kept("plain", self._new(), partial(self._baseline, "plain", self.epochs))
        if arm == "noise_average":
            sigma = ALPHA * float(self.bank.images.std())
            return NoiseAverage(self.plain, sigma=sigma, draws=DRAWS).eval(), 0.0
        if arm in _BASELINES:
            method, cost = _BASELINES[arm]
            epochs = max(1, round(self.epochs / cost))
            return self._kept(arm, self._new(self.plain), partial(self._baseline, method, epochs))
        net = self._net(arm)
        return self._kept(arm, net, partial(self._fit, adversarial=arm == "adversarial"))

    def _new(self, like: Classifier | None = None) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, "weights"))
            made = Classifier(conv_backbone(), FEATURES, CLASSES)
        if like is not None:
            made.load_state_dict(like.state_dict())
        return made

    def _net(self, arm: str) -> InterferenceNet:
        start = self._new(self.plain)
        head = start.head.weight.detach().clone(), start.head.bias.detach().clone()
        bank: BackgroundBank = self.bank if arm != "noise" else noise_backgrounds(self.bank, self.seed)
        if arm == "no_blend":  # no background reaches the network: all draws are one, and that one costs no average
            settings = Settings(alpha=0.0, draws=1, mode="fixed")
        else:
            settings = Settings(alpha=ALPHA, draws=DRAWS, head="extra_class" if arm == "extra_class" else "two")
        return InterferenceNet(
            Backbone(start.backbone, dim=FEATURES, channels=1, pretrained=head),
            classes=CLASSES,
            bank=bank,
            settings=settings,
            seed=derived_seed(self.seed, "heads"),
        )

    def _kept(self, arm: str, model: Made, train: Callable[[nn.Module], tuple[Epoch, ...]]) -> tuple[Made, float]:
        kept = _Counted(model)
        recipe = {
            "arm": arm,
            "seed": self.seed,
            "epochs": self.epochs,
            "version": VERSION,
            "data": content_hash(self.digits.train_images.numpy()),
            "bank": content_hash(self.bank.images.numpy()),
            "settings": [EPS, DRAWS, ALPHA, BATCH, LR, WEIGHT_DECAY, WIDTH, AT_STEPS, REPLAYS],
        }
        trained(kept, f"interference-nn-{arm}", recipe, lambda: kept.train_with(train, len(self.digits.train_images)))
        return model.eval(), float(kept.passes)

    def _loader(self) -> DataLoader[tuple[Tensor, ...]]:
        pairs = TensorDataset(self.digits.train_images, self.digits.train_labels)
        return DataLoader(pairs, batch_size=BATCH, shuffle=True)

    def _baseline(self, method: Method, epochs: int, model: nn.Module) -> tuple[Epoch, ...]:
        recipe = Recipe(epochs=epochs, lr=LR, optimizer="adamw", schedule="onecycle", weight_decay=WEIGHT_DECAY)
        return fit_baseline(
            model, self._loader(), method, recipe, eps=EPS, steps=AT_STEPS, replays=REPLAYS, seed=self._order(method)
        )

    def _fit(self, model: nn.Module, *, adversarial: bool) -> tuple[Epoch, ...]:
        assert isinstance(model, InterferenceNet)
        return fit(
            model,
            self._loader(),
            head_epochs=1,
            finetune_epochs=self.epochs,
            lr=LR,
            optimizer="adamw",
            schedule="onecycle",
            weight_decay=WEIGHT_DECAY,
            adversarial=adversarial,
            eps=EPS,
            attack_steps=3,
            seed=self._order("fit"),
        )

    def _order(self, purpose: str) -> int:
        return derived_seed(self.seed, "order", purpose)


_BASELINES: dict[str, tuple[Method, float]] = {
    "mixup": ("mixup", 1),
    "pgd_at": ("at", 1),
    "pgd_at_equal": ("at", AT_STEPS + 1),
    "free_at": ("free", REPLAYS),
    "fast_at": ("fast", 2),
}
"""Method, and its epochs cut by what: all but `pgd_at`, which has as many epochs, get the compute of one training."""


class _Counted(nn.Module):
    """A model beside the cost of its training, so that both are kept in one file."""

    passes: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("passes", torch.zeros(()))

    def train_with(self, train: Callable[[nn.Module], tuple[Epoch, ...]], images: int) -> None:
        history = train(self.model)
        self.passes.fill_(sum(epoch.forward + epoch.backward for epoch in history) / images)
