"""The ladder on a real pretrained backbone: EfficientNet-Lite0, over crops of bundled photographs.

Its ImageNet classifier is replaced by a head of nine classes, one a photograph; every crop that is attacked comes from
the half of a photograph that no training crop touches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from aisec_common.data.skimage_photographs import Photographs, load_photographs
from aisec_common.study import content_hash
from aisec_common.torch.trained import trained
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from interference_nn.backbone import LITE, Backbone, backbone_of
from interference_nn.backgrounds import ProceduralBackgrounds
from interference_nn.baselines import NoiseAverage, fit_baseline
from interference_nn.fit import fit
from interference_nn.ladder import ladder
from interference_nn.ladder_report import LadderReport
from interference_nn.net import InterferenceNet
from interference_nn.network import Classifier
from interference_nn.rungs import NAMES, Effort
from interference_nn.training import Recipe

Show = Callable[[str, int, int], None]
EPS = (1 / 255,)  # at more, little of a network without adversarial training is left to compare
SIZE = 128
CROPS = 24  # of each photograph, for training
HEAD_EPOCHS, EPOCHS, LR = 2, 3, 2e-3
ALPHA, DRAWS = 0.5, 8
BATCH = 24
EFFORT = Effort(
    rungs=NAMES[:7],  # R8 is for comparing with targeted numbers on ImageNet's thousand classes
    transfer_steps=20,
    average_steps=10,
    eot_steps=20,
    draws=4,
    restarts=1,
    apgd_steps=10,
    apgd_draws=4,
    square_queries=100,
    decision_queries=0,
)
"""What a CPU does in hours: a draw costs a pass of the whole backbone."""
PROBES = 4  # zero gradients, their cosine and grey images show on a few; what is tested pairwise needs more


def compare(
    out: Path,
    *,
    images: int = 18,
    effort: Effort = EFFORT,
    device: torch.device | str = "cpu",
    seed: int = 0,
    show: Show | None = None,
) -> LadderReport:
    """Climbs the ladder with the plain classifier, its average over noise, and the interference network.

    All three have the same pretrained backbone, finetuned for as many epochs. Weights are kept in the user's cache,
    samples in `out/samples`; a run that was killed goes on.

    Args:
        out: folder.
        images: crops attacked, as many of each photograph.
        effort: how hard each rung tries.
        device: where it runs.
        seed: of crops, heads and draws.
        show: called as `show(what, done, total)`.

    Returns:
        The report, with the noise average as control.

    Raises:
        FileNotFoundError: before `aisec data fetch efficientnet-lite0`.
    """
    backbone = backbone_of(LITE, size=SIZE)
    test = max(1, -(-images // 9))
    crops = load_photographs(seed, train=CROPS, test=test, size=SIZE)
    chosen = torch.arange(len(crops.test_labels)).reshape(-1, test).T.flatten()[:images]
    plain = _plain(backbone, crops, seed, device, show)
    net = _interference(backbone, crops, seed, device, show)
    sigma = ALPHA * float(net.bank_images.std())
    return ladder(
        net,
        (crops.test_images[chosen], crops.test_labels[chosen]),
        eps=EPS,
        baselines={"plain": plain, "noise average": NoiseAverage(plain, sigma=sigma, draws=DRAWS).eval()},
        effort=effort,
        over="plain",
        control="noise average",
        batch_size=BATCH,
        seed=seed,
        folder=out / "samples",
        probes=min(images, PROBES),
        progress=show,
    )


def _plain(
    backbone: Backbone, crops: Photographs, seed: int, device: torch.device | str, show: Show | None
) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(backbone_of(backbone), backbone.dim, len(crops.names)).to(device)
    recipe = Recipe(epochs=HEAD_EPOCHS + EPOCHS, lr=LR)

    def train() -> None:
        fit_baseline(model, _loader(crops), "plain", recipe, seed=seed, progress=show)

    _kept("plain", model, crops, seed, train)
    return model.eval()


def _interference(
    backbone: Backbone, crops: Photographs, seed: int, device: torch.device | str, show: Show | None
) -> InterferenceNet:
    net = InterferenceNet(
        backbone_of(backbone),
        classes=len(crops.names),
        bank=ProceduralBackgrounds(size=SIZE, seed=seed),
        seed=seed,
    ).to(device)
    train = partial(
        fit,
        net,
        _loader(crops),
        head_epochs=HEAD_EPOCHS,
        finetune_epochs=EPOCHS,
        lr=LR,
        seed=seed,
        progress=show,
    )
    _kept("interference", net, crops, seed, train)
    return net.eval()


def _loader(crops: Photographs) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(crops.train_images, crops.train_labels), batch_size=BATCH, shuffle=True)


def _kept(name: str, model: nn.Module, crops: Photographs, seed: int, train: Callable[[], object]) -> None:
    recipe = {
        "backbone": LITE,
        "data": content_hash(crops.train_images.numpy()),
        "seed": seed,
        "settings": [SIZE, HEAD_EPOCHS, EPOCHS, LR, ALPHA, DRAWS, BATCH],
    }
    trained(model, f"interference-nn-{LITE}-{name}", recipe, train)
