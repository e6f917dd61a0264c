"""The `interference-nn` command: fit a network, climb the ladder, and the run on a real pretrained backbone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from aisec_common.command import run_command
from aisec_common.files import locked, require_writable, write_atomic
from aisec_common.progress import counting
from rich.console import Console
from rich.table import Table

from interference_nn.config import CompareConfig, FitConfig, LadderConfig
from interference_nn.rungs import EFFORTS

if TYPE_CHECKING:
    from aisec_common.torch.linf_pgd import Model

    from interference_nn.ladder_report import LadderReport
    from interference_nn.net import InterferenceNet

NEEDS = {
    "timm": "timm",
    "torchvision": "torchvision",
    "transformers": "hf",
    "skimage": "photographs",
}

CONTROL = "noise average"

Command = (
    Annotated[FitConfig, tyro.conf.subcommand("fit")]
    | Annotated[LadderConfig, tyro.conf.subcommand("ladder")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `interference-nn ARGV`; returns 0, 2 for misuse (one line on stderr) or 130 after Ctrl-C."""
    return run_command("interference-nn", Command, _do, argv, needs=NEEDS)


def _do(config: Any) -> None:
    verbs: dict[type, Callable[[Any], None]] = {FitConfig: _fit, LadderConfig: _ladder, CompareConfig: _compare}
    verbs[type(config)](config)


def _fit(config: FitConfig) -> None:
    from aisec_common.torch.device import resolve_device
    from torch.utils.data import DataLoader

    from interference_nn.backgrounds import BackgroundBank, ProceduralBackgrounds, target_like
    from interference_nn.fit import fit
    from interference_nn.net import InterferenceNet
    from interference_nn.torchvision_backgrounds import ImageFolderBackgrounds
    from interference_nn.torchvision_images import image_folder

    device = resolve_device(config.device)
    require_writable(config.out, "--out")
    data = image_folder(config.data, size=config.size, augment=True)
    bank: BackgroundBank = (
        ProceduralBackgrounds(n=config.bank, classes=config.background_labels, size=config.size, seed=config.seed)
        if config.backgrounds is None
        else ImageFolderBackgrounds(config.backgrounds, n=config.bank, size=config.size, seed=config.seed)
    )
    with locked(config.out, "--out"), counting() as show:
        net = InterferenceNet.from_backbone(
            config.backbone,
            classes=len(data.classes),
            bank=bank,
            alpha=config.alpha,
            interference=config.interference,
            draws=config.draws,
            mode=config.mode,
            head=config.head,
            weights=config.weights,
            size=config.size,
            seed=config.seed,
        ).to(device)
        if config.backgrounds is not None and _has_classes(net):
            target_like(net.bank, net.without_interference)
        history = fit(
            net,
            DataLoader(data, batch_size=config.batch_size, shuffle=True, num_workers=config.workers),
            head_epochs=config.head_epochs,
            finetune_epochs=config.finetune_epochs,
            lr=config.lr,
            adversarial=config.adversarial,
            eps=config.radius,
            seed=config.seed,
            folder=config.out,
            progress=show,
        )
        net.save(config.out)
    for epoch in history:
        print(f"{epoch.stage}: loss {epoch.loss:.3f}, {epoch.passes_per_image:.0f} passes an image")
    print(f"saved: {config.out}")


def _ladder(config: LadderConfig) -> None:
    from aisec_common.torch.device import resolve_device

    from interference_nn.baselines import NoiseAverage
    from interference_nn.ladder import PLAIN, ladder
    from interference_nn.net import InterferenceNet
    from interference_nn.torchvision_images import image_folder, some_images

    device = resolve_device(config.device)
    require_writable(config.out, "--out")
    key = None if config.key is None else config.key.encode()
    fitted = None if config.net is None else InterferenceNet.load(config.net, key=key)
    size = config.size if fitted is None else fitted.bank_images.shape[-1]
    data = image_folder(config.data, size=size)
    plain = None if config.backbone is None else _undefended(config, size, len(data.classes))
    bare = fitted or plain
    assert bare is not None
    if bare.classes != len(data.classes):
        raise ValueError(f"--data has {len(data.classes)} classes, the network {bare.classes}; give its own data")
    net = bare.variant(mode=config.mode, key=key).to(device)
    baselines: dict[str, Model] = {}
    if plain is not None:
        baselines[PLAIN] = undefended = plain.variant(alpha=0.0, draws=1, mode="fixed").to(device)
        if config.control:
            sigma = net.settings.blend * float(net.bank_images.std())
            baselines[CONTROL] = NoiseAverage(undefended, sigma=sigma, draws=net.settings.draws).eval()
    with locked(config.out, "--out"), counting() as show:
        report = ladder(
            net,
            some_images(data, config.images, seed=config.seed),
            eps=config.radii,
            baselines=baselines,
            control=CONTROL if config.control else None,
            effort=config.effort,
            batch_size=config.batch_size,
            seed=config.seed,
            folder=config.out / "samples",
            progress=show,
        )
        _save(config.out, report)


def _compare(config: CompareConfig) -> None:
    from aisec_common.torch.device import resolve_device

    device = resolve_device(config.device)
    require_writable(config.out, "--out")
    from interference_nn.real_comparison import EFFORT, compare  # needs the extras timm and photographs

    effort = EFFORT if config.effort is None else EFFORTS[config.effort]
    with locked(config.out, "--out"), counting() as show:
        report = compare(config.out, images=config.images, effort=effort, device=device, seed=config.seed, show=show)
        _save(config.out, report)


def _undefended(config: LadderConfig, size: int, classes: int) -> InterferenceNet:
    """The pretrained classifier, wrapped as it is."""
    from interference_nn.backgrounds import ProceduralBackgrounds
    from interference_nn.net import InterferenceNet

    assert config.backbone is not None
    bank = ProceduralBackgrounds(size=size, seed=config.seed)
    net = InterferenceNet.from_backbone(
        config.backbone, classes=classes, bank=bank, weights=config.weights, size=size, seed=config.seed
    )
    if not _has_classes(net):
        raise ValueError(f"--backbone {config.backbone} was not trained for the {classes} classes of --data; use fit")
    return net


def _has_classes(net: InterferenceNet) -> bool:
    pretrained = net.backbone.pretrained
    return pretrained is not None and len(pretrained[0]) == net.classes


def _save(out: Path, report: LadderReport) -> None:
    table = report.table()
    write_atomic(out / "ladder.csv", table.round(4).to_csv(index=False))
    write_atomic(out / "ladder.md", report.to_markdown())
    report.save(out / "ladder.html")
    shown = Table(*table.columns, title=report.header())
    for row in table.itertuples(index=False):
        shown.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    # a pipe has no width of its own; do not fold the table to 80 columns there
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(shown)
    print(f"{report.verdict}: {report.reason}")
    print(f"saved: {', '.join(str(out / name) for name in ('ladder.csv', 'ladder.md', 'ladder.html'))}")


if __name__ == "__main__":
    sys.exit(main())
