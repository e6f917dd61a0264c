"""The interference network: a backbone that sees every image through backgrounds, and two heads."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from aisec_common.seeding import derived_seed
from aisec_common.torch.linf_pgd import check_images
from torch import Tensor, nn

from interference_nn.backbone import Backbone, backbone_of
from interference_nn.backgrounds import BackgroundBank, Backgrounds, check_bank
from interference_nn.draws import Draws, fixed_draws, keyed_draws, random_draws
from interference_nn.interference import OPERATORS, QUADRANTS
from interference_nn.settings import Head, Interference, Mode, Settings

CHUNK = {"cpu": 2**16}
"""Input values that go through the backbone in one pass on a kind of device, as far as one image's draws fit: what a
processor's cache holds (measured: larger passes are slower)."""
LARGE_CHUNK = 2**24
"""On any other device: 64 MiB of float32."""
CPU_ROWS = 128
"""No more rows than so many, of small images (measured: 8 draws of digits take 1.8 times as long in passes of 256)."""


def images_at_once(images: Tensor, draws: int) -> int:
    """Images whose draws go through a backbone in one pass.

    >>> images_at_once(torch.zeros(100, 1, 8, 8), 8)
    16
    """
    values = CHUNK.get(images.device.type, LARGE_CHUNK) // (draws * images[0].numel())
    return max(1, min(values, CPU_ROWS // draws) if images.device.type == "cpu" else values)


class InterferenceNet(nn.Module):
    """A classifier that averages over M backgrounds, with log p as its logits.

        p(x) = (1/M) sum_m softmax(W_t phi(I(x, b_m))),    returned: log p(x), [B, K]

    The M draws are rows of one batch. Everything from pixels in [0, 1] to log p is inside, so that attacks see all of
    it. Both readings of the paper stand behind this class: A, an operator I and two heads (or one joint head); B,
    `head="extra_class"`, where backgrounds only train L further classes and prediction is among the K real ones.

    Args:
        backbone: phi; used as it is and changed by training.
        classes: K.
        bank: the backgrounds.
        settings: see `Settings`.
        key: of mode "keyed"; any bytes, kept out of saved files. The attribute may be replaced.
        seed: of the heads' initial weights; W_t is the backbone's own classifier where that has K classes.

    Raises:
        ValueError: for an empty or invalid bank, fewer than two classes, more draws than backgrounds without
            replacement, a bank whose channels are not those of the backbone, or mode "keyed" without a key.

    Source: arXiv 2310.05947, of which the abstract is all that is public: operators, heads and modes are ours [design].

    >>> from interference_nn import ProceduralBackgrounds
    >>> bank = ProceduralBackgrounds(n=8, classes=4, size=4)
    >>> net = InterferenceNet.from_backbone(nn.Flatten(), classes=3, bank=bank, draws=2)
    >>> net(torch.rand(5, 3, 4, 4)).exp().sum(1).round(decimals=4).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """

    bank_images: Tensor
    bank_labels: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        classes: int,
        bank: BackgroundBank,
        settings: Settings | None = None,
        key: bytes | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_bank(bank)
        settings = settings or Settings()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, not {classes}")
        channels = bank.images.shape[1]
        if backbone.channels != channels:
            raise ValueError(
                f"bank has {channels} channels, the backbone takes {backbone.channels}; make the bank with as many"
            )
        if settings.interference == "channel" and settings.head != "extra_class":
            backbone.widen()
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "heads"))
            self.target_head = nn.Linear(backbone.dim, classes)
            self.background_head = nn.Linear(backbone.dim, bank.classes)
        if backbone.pretrained is not None and len(backbone.pretrained[0]) == classes:
            with torch.no_grad():
                self.target_head.weight.copy_(backbone.pretrained[0])
                self.target_head.bias.copy_(backbone.pretrained[1])
        self.register_buffer("bank_images", bank.images.detach().clone())
        self.register_buffer("bank_labels", bank.labels.detach().clone().long())
        where = next(backbone.parameters(), self.bank_images)
        self.to(where.device)
        self.key = key
        self._set(settings)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | nn.Module,
        *,
        classes: int,
        bank: BackgroundBank,
        alpha: float | Literal["random"] = 0.5,
        interference: Interference = "superpose",
        draws: int = 8,
        mode: Mode = "random",
        head: Head = "two",
        weight: float = 0.5,
        replacement: bool = True,
        weights: str | None = None,
        size: int | None = None,
        key: bytes | None = None,
        seed: int = 0,
    ) -> InterferenceNet:
        """Wraps a copy of an existing backbone.

        Args:
            backbone: a name or a module; see `backbone_of`, which also explains `weights` and `size`.
            classes, bank, key, seed: see the class.
            alpha, interference, draws, mode, head, weight, replacement: see `Settings`.

        Returns:
            The network, untrained: `fit` it.

        Raises:
            ValueError, TypeError: as `backbone_of`, `Settings` and the class do.
        """
        check_bank(bank)
        settings = Settings(
            interference=interference,
            alpha=alpha,
            draws=draws,
            mode=mode,
            head=head,
            weight=weight,
            replacement=replacement,
        )
        channels, height, width = bank.images.shape[1:]
        made = backbone_of(backbone, weights=weights, channels=channels, image_size=(height, width), size=size)
        return cls(made, classes=classes, bank=bank, settings=settings, key=key, seed=seed)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """log p of the M-average; in mode "random" with fresh backgrounds at every call.

        Args:
            images: in [0, 1], of the bank's size.
            generator: of the draws in mode "random"; None takes torch's default one.

        Returns:
            Log probabilities.
        """
        return self.with_agreement(images, generator)[0]

    def once(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """log p through one background for each image instead of M."""
        self._check(images)
        return self._mean(self._logits_of(images, self._draws(images, 1, generator))[0])

    def with_agreement(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """log p, and the share of the M backgrounds that the background head recognised, for each image.

        A low share says that something disturbs the network; see `agreement_auroc`. Reading B blends nothing: NaN.
        """
        self._check(images)
        if self.settings.head == "extra_class":
            return self.without_interference(images), images.new_full((len(images),), math.nan)
        draws = self._draws(images, self.settings.draws, generator)
        target, background = self._logits_of(images, draws)
        labels = self.bank_labels[draws.backgrounds.to(self.bank_labels.device)]
        return self._mean(target), (background.argmax(-1) == labels).to(images).mean(1)

    def without_interference(self, images: Tensor) -> Tensor:
        """log softmax(W_t phi(x)), the interference layer left out: what an attacker sees who overlooks it.

        Further channels (interference "channel") hold the mean colour, which normalisation takes to 0.
        """
        self._check(images)
        if self.backbone.channels != images.shape[1]:
            grey = self.backbone.mean[:, images.shape[1] :].to(images).expand(len(images), -1, *images.shape[2:])
            images = torch.cat([images, grey], dim=1)
        log_p: Tensor = self.target_head(self.backbone(images)).log_softmax(-1)
        return log_p

    def probabilities_over(self, images: Tensor, backgrounds: Tensor) -> Tensor:
        """The exact expectation of p over given backgrounds, all of them (and all quadrants of the mosaic).

        With the whole bank, what mode "random" estimates; the gradient is the one EOT estimates.
        """
        self._check(images)
        check_images(backgrounds, "backgrounds")
        places = QUADRANTS if self.settings.interference == "mosaic" else 1
        every = torch.arange(len(backgrounds) * places).expand(len(images), -1)
        draws = Draws(backgrounds=every // places, places=every % places)
        return self._mean(self._logits_of(images, draws, backgrounds)[0]).exp()

    def logits_of(self, images: Tensor, draws: Draws, alpha: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of both heads for given draws, one row a draw: what training looks at.

        Args:
            images: in [0, 1], of the bank's size.
            draws: M for each image.
            alpha: a of each image; None takes that of the settings.
        """
        self._check(images)
        return self._logits_of(images, draws, alpha=alpha)

    def variant(self, *, key: bytes | None = None, **changes: Any) -> InterferenceNet:
        """The same network, weights shared, with other settings of inference: `mode`, `draws`, `alpha`, a `key`.

        Raises:
            ValueError: for a change of `head` or `interference`, which weights are trained for.
        """
        if fixed := {"head", "interference"} & changes.keys():
            raise ValueError(f"{min(fixed)} belongs to the weights; make another network")
        other = copy.copy(self)
        other.key = self.key if key is None else key
        other._set(replace(self.settings, **changes))
        return other

    @property
    def random(self) -> bool:
        """Whether two calls may differ."""
        return self.settings.mode == "random" and self.settings.head != "extra_class"

    @property
    def deterministic(self) -> bool:
        """Whether two calls give the same."""
        return not self.random

    @property
    def classes(self) -> int:
        """K."""
        return self.target_head.out_features

    @property
    def bank(self) -> Backgrounds:
        """The bank it draws from."""
        classes = self.background_head.out_features
        return Backgrounds(images=self.bank_images, labels=self.bank_labels, classes=classes)

    def save(self, folder: Path | str) -> None:
        """Writes weights, bank and settings to a folder (safetensors and JSON), without the key; see `load`."""
        from interference_nn.net_files import save_net

        save_net(self, Path(folder))

    @classmethod
    def load(
        cls, folder: Path | str, *, backbone: nn.Module | None = None, key: bytes | None = None
    ) -> InterferenceNet:
        """The network of a folder, on the CPU.

        Args:
            folder: that `save` wrote.
            backbone: the module, if it was one of the user's own; its weights are replaced in a copy.
            key: of a network in mode "keyed", which no file holds.

        Raises:
            ValueError: in one line, if files are missing, changed or do not fit.
        """
        from interference_nn.net_files import load_net

        return load_net(Path(folder), backbone=backbone, key=key)

    def _set(self, settings: Settings) -> None:
        if settings.mode == "keyed" and self.key is None:
            raise ValueError("key is missing: mode 'keyed' needs key=b'...'")
        if settings.draws > len(self.bank_images) and (settings.mode == "fixed" or not settings.replacement):
            raise ValueError(
                f"draws must be at most the {len(self.bank_images)} backgrounds of the bank without replacement or in "
                f"mode 'fixed', not {settings.draws}"
            )
        self.settings = settings

    def _draws(self, images: Tensor, draws: int, generator: torch.Generator | None) -> Draws:
        bank, replacement = len(self.bank_images), self.settings.replacement
        if self.settings.mode == "random":
            return random_draws(len(images), draws, bank, replacement=replacement, generator=generator)
        if self.settings.mode == "fixed":
            return fixed_draws(len(images), draws, bank)
        assert self.key is not None
        return keyed_draws(images, self.key, draws, bank, replacement=replacement)

    def _logits_of(
        self, images: Tensor, draws: Draws, bank: Tensor | None = None, alpha: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        bank = self.bank_images if bank is None else bank.to(images)
        if self.settings.head == "extra_class":
            features = self.backbone(images)[:, None].expand(-1, draws.backgrounds.shape[1], -1)
            return self.target_head(features), self.background_head(features)
        blend = self.settings.blend if alpha is None else alpha
        operator, count = OPERATORS[self.settings.interference], draws.backgrounds.shape[1]
        # BatchNorm's statistics are of the whole batch, so that in training it must not be cut
        at_once = len(images) if self.training else images_at_once(images, count)
        features = []
        for start in range(0, len(images), at_once):
            part = slice(start, start + at_once)
            repeated = images[part, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
            seen = bank[draws.backgrounds[part].flatten().to(bank.device)].to(images)
            a = blend[part].repeat_interleave(count) if isinstance(blend, Tensor) else blend
            features.append(self.backbone(operator(repeated, seen, a, draws.places[part].flatten())))
        rows = torch.cat(features).reshape(len(images), count, -1)
        return self.target_head(rows), self.background_head(rows)

    @staticmethod
    def _mean(logits: Tensor) -> Tensor:
        """The log of the mean probability over the draws, [B, M, K] to [B, K]."""
        if logits.shape[1] == 1:
            return logits[:, 0].log_softmax(-1)
        return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])

    def _check(self, images: Tensor) -> None:
        check_images(images)
        if images.shape[1:] != self.bank_images.shape[1:]:
            raise ValueError(
                f"images are {list(images.shape[1:])}, the bank's backgrounds {list(self.bank_images.shape[1:])}; "
                "make the bank of the images' size"
            )
