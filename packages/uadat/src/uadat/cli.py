"""The `uadat` command: train a classifier against adversarial images, and attack what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aisec_common.command import run_command
from aisec_common.files import require_writable, write_atomic, write_figure
from aisec_common.progress import counting

from uadat.config import EvaluateConfig, TrainConfig, UadatConfig

if TYPE_CHECKING:
    from aisec_common.torch.robustness import RobustnessReport
    from torch import nn

    from uadat.robust_loss import RobustLoss

NEEDS = {"torchvision": "torchvision", "timm": "timm", "skimage": "photographs"}
SAVED = ("report.md", "report.csv", "report.png", "report.html", "samples.jsonl")
COLUMNS = {"val_clean": "clean", "val_pgd10": "PGD-10"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `uadat ARGV`; returns 0, 2 for misuse (one line on stderr) or 130 after Ctrl-C."""
    return run_command("uadat", UadatConfig, _do, argv, needs=NEEDS)


def _do(config: Any) -> None:
    verbs: dict[type, Callable[[Any], None]] = {TrainConfig: _train, EvaluateConfig: _evaluate}
    verbs[type(config)](config)


def _train(config: TrainConfig) -> None:
    require_writable(config.out, "--out")
    from uadat.hf_trainer import RobustTrainer
    from uadat.image_splits import loader
    from uadat.run import Run, build_model, load_data

    data = load_data(config.dataset, config.data, size=config.side, validation=config.validation, seed=config.seed)
    model = build_model(config.model_name, data.classes, data.channels, seed=config.seed)
    with counting() as show:
        trainer = RobustTrainer(
            model,
            _loss(config, model),
            epochs=config.epochs,
            optimizer={"lr": config.rate, "weight_decay": config.weight_decay, "momentum": 0.9},
            schedule=config.schedule,
            awp=config.awp or None,
            seed=config.seed,
            out=config.out,
            device=config.device,
            progress=show,
        )
        batches = loader(data.train, config.batch_size, shuffle_seed=config.seed, workers=config.workers)
        run = Run(
            dataset=config.dataset,
            size=config.side,
            validation=len(data.validation),  # type: ignore[arg-type]
            model=config.model_name,
            classes=data.classes,
            channels=data.channels,
            eps=config.radius,
            loss=config.loss,
            seed=config.seed,
        )
        run.save(config.out)
        history = trainer.fit(batches, loader(data.validation, config.batch_size, workers=config.workers))
    key = "val_pgd10" if "val_pgd10" in history[-1] else "val_clean"
    best = max(history, key=lambda row: row[key])  # of equals the trainer keeps the last
    best = [row for row in history if row[key] == best[key]][-1]
    for name, row in (("best", best), ("last", history[-1])):
        told = ", ".join(f"{words} {row[metric]:.3f}" for metric, words in COLUMNS.items() if metric in row)
        print(f"{name}: epoch {row['epoch'] + 1:.0f} of {config.epochs}, validation accuracy {told}")
    print(f"saved: {config.out / 'best.safetensors'}, {config.out / 'last.safetensors'}, {config.out / 'history.json'}")


def _loss(config: TrainConfig, model: nn.Module) -> RobustLoss:
    from uadat.baselines import ATLoss, MARTLoss, StandardLoss, TRADESLoss
    from uadat.loss import UADLoss
    from uadat.run import stage_end

    beta = 6.0 if config.beta is None else config.beta
    if config.loss == "standard":
        return StandardLoss()
    if config.loss == "at":
        return ATLoss(config.radius, steps=config.steps)
    if config.loss in ("trades", "mart"):
        return {"trades": TRADESLoss, "mart": MARTLoss}[config.loss](config.radius, beta=beta, steps=config.steps)
    return UADLoss(
        config.radius,
        config.layer or stage_end(config.model_name, model),
        beta=config.beta,
        samples=config.samples,
        kappa=config.kappa,
        cov=config.cov,
        refine=config.refine,
        stat=config.stat,
        iga=config.iga,
        iga_mode=config.iga_mode,
        base=config.base,
        steps=config.steps,
    )


def _evaluate(config: EvaluateConfig) -> None:
    from uadat.comparison_figure import figure
    from uadat.run import Run

    out = config.out or config.run / f"report-{config.weights}-{config.attacks}"
    if len({folder.resolve().name for folder in (config.run, *config.compare)}) <= len(config.compare):
        raise ValueError("compare must name folders with distinct names, none of them that of the run")
    first = Run.load(config.run)  # all of them before a folder is made or an image attacked
    for folder in config.compare:
        other = Run.load(folder)
        if (other.dataset, other.size, other.seed) != (first.dataset, first.size, first.seed):
            raise ValueError(f"compare: {folder} must be a run on the images of {config.run} (data set, size, seed)")
    require_writable(out, "--out")
    with counting() as show:
        reports = {
            folder.resolve().name: _report(config, folder, out if number == 0 else out / f"other-{number}", show)
            for number, folder in enumerate((config.run, *config.compare))
        }
    name, *others = reports
    report = reports[name]
    comparison = report.compare({other: reports[other] for other in others}, name=name)
    text = report.to_markdown() + ("\n" + comparison.to_markdown() if others else "")
    print(text)
    write_atomic(out / "report.md", text)
    table = comparison.table().replace({"flags": {"": "none"}})
    write_atomic(out / "report.csv", table.round(4).to_csv(index=False))
    write_figure(out / "report.png", figure(comparison))
    report.save(out / "report.html")
    print(f"saved: {', '.join(str(out / name) for name in SAVED)}")


def _report(config: EvaluateConfig, folder: Path, out: Path, show: Callable[[str, int, int], None]) -> RobustnessReport:
    from aisec_common.torch.device import resolve_device

    from uadat.image_splits import as_tensors
    from uadat.report import robust_report
    from uadat.run import Run

    run, first = Run.load(folder), Run.load(config.run)
    device = resolve_device(config.device)
    surrogate = None
    if config.surrogate is not None:
        surrogate = Run.load(config.surrogate).trained(config.surrogate, config.weights).to(device)
    model = run.trained(folder, config.weights).to(device)
    images, labels = as_tensors(first.data(config.data).test, config.images)
    return robust_report(
        model,
        (images, labels),
        config.radii or (first.eps,),
        attacks=config.attacks,
        seeds=config.seeds,
        surrogate=surrogate,
        folder=out,
        batch_size=config.batch_size,
        progress=lambda rung, done, total: show(f"{folder.name} {rung}", done, total),
        about={
            "model": run.model,
            "loss": run.loss,
            "trained against eps": f"{run.eps:.4g}",
            "weights": config.weights,
        },
    )
