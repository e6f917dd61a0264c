"""The paper's claims on scikit-learn's digits: is it the method, or would another seed of TRADES have done as well?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from aisec_common import Claim, Outcome, Scale, Study, TrialLog
from aisec_common.result import values_of
from aisec_common.stats import PairedMean

from uadat.arms import ARMS, BETA, chosen_beta, trained_model
from uadat.digits import EPS, digits
from uadat.image_splits import ImageSplits, as_tensors

if TYPE_CHECKING:
    from aisec_common.torch.robustness import RobustnessReport
    from matplotlib.figure import Figure

ABLATION = ("standard", "noise", "at", "trades", "trades_reseeded", "dist", "ref", "stat", "iga", "uad")


@dataclass(frozen=True, kw_only=True)
class RobustScale(Scale):
    """Epochs of training, test images, attacks, whether masked gradients are looked for, and the grid of beta.

    Every arm with an alignment takes its beta from the same grid, by accuracy under PGD-10 on validation images; a
    grid of one value chooses nothing. `radii`: further eps for the attacks, in units of that of the training.
    """

    epochs: int
    images: int
    attacks: Literal["quick", "standard", "full"]
    flags: bool
    betas: tuple[float, ...] = (BETA,)
    radii: tuple[float, ...] = ()


def prepare(seed: int, scale: RobustScale) -> ImageSplits:
    """The digits of one seed, split anew."""
    return digits(seed)


def trial(arm: str, data: ImageSplits, seed: int, scale: RobustScale, log: TrialLog) -> dict[str, float]:
    """Trains one arm and attacks it.

    clean, pgd_20, apgd_ce, apgd_t, noise and at larger scales further rungs: accuracy under each attack of the scale.
    aa: per-sample worst case over all of them; no number where a flag says that gradients are masked (an arm may not
    win by that), in which case worst_case still has it. masked: whether. beta: of the grid. worst_case@F: at F eps.
    """
    from aisec_common.torch.robustness import robustness_report, standard_rungs

    images, labels = as_tensors(data.test, scale.images)
    for name in ("train", "validation", "test"):
        log.data(name, as_tensors(getattr(data, name))[0].numpy())
    rungs = standard_rungs(scale.attacks)
    order = {rung.name: number for number, rung in enumerate(rungs)}

    def train(what: str, done: int, total: int) -> None:
        log.progress(4 * done, 5 * total)

    def attack(what: str, done: int, total: int) -> None:
        number = order.get(what.rpartition(" at ")[0], len(rungs) - 1)  # the flags' probes come last
        log.progress((4 * len(rungs) + number) * total + done, 5 * len(rungs) * total)

    beta = chosen_beta(arm, data, seed, epochs=scale.epochs, betas=scale.betas)
    report = robustness_report(
        trained_model(arm, data, seed, epochs=scale.epochs, beta=beta, progress=train),
        images,
        labels,
        eps=(EPS, *(factor * EPS for factor in scale.radii)),
        rungs=rungs,
        seed=seed,
        flags=scale.flags,
        progress=attack,
    )
    _log_samples(report, log)
    found = {name_of(name): report.accuracy(name) for name in ("clean", *(rung.name for rung in rungs))}
    found |= {f"worst_case@{factor:g}": report.worst_case(factor * EPS) for factor in scale.radii}
    worst = report.worst_case()
    return {
        **found,
        "worst_case": worst,
        "aa": float("nan") if report.masked else worst,
        "masked": float(report.masked),
        "beta": beta,
    }


def name_of(rung: str) -> str:
    """A rung's name as a metric.

    >>> name_of("APGD-CE")
    'apgd_ce'
    """
    return rung.lower().replace("-", "_").replace(" ", "_")


def _log_samples(report: RobustnessReport, log: TrialLog) -> None:
    rungs = ["clean", *(rung.name for rung in report.rungs)]
    for number, right in enumerate(np.stack([report.right(name) for name in rungs], axis=1).tolist()):
        log.sample(str(number), **dict(zip(map(name_of, rungs), right, strict=True)))


def accuracies(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """The ablation: clean, PGD-20 and worst-case accuracy of every arm, mean and seeds, with 95 % intervals."""
    from matplotlib.figure import Figure

    arms = [arm for arm in ARMS if values_of(outcomes, arm, "clean")]
    figure = Figure(figsize=(10, 0.3 * len(arms) + 1.2), layout="constrained")
    titles = ("clean", "PGD-20", "worst case of all attacks")
    for axes, metric, title in zip(
        figure.subplots(1, 3, sharey=True), ("clean", "pgd_20", "worst_case"), titles, strict=True
    ):
        for y, arm in enumerate(reversed(arms)):
            seeds = values_of(outcomes, arm, metric)
            if len(seeds) > 1:
                axes.plot(PairedMean(seeds).interval(0.95), [y, y], "-", color="C3")
            axes.plot(seeds, [y] * len(seeds), "o", color="C7", markersize=3, alpha=0.6)
            axes.plot([np.mean(seeds)], [y], "|", color="C3", markersize=12)
        axes.set(title=title, xlabel="accuracy")
        axes.set_yticks(range(len(arms)), list(reversed(arms)), fontsize="small")
        axes.grid(axis="x", alpha=0.3)
    return figure


def over_trades(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """What each arm gains over TRADES of the same seed in worst-case accuracy against what it loses on clean images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color="k", linewidth=0.5)
    axes.axvline(0, color="k", linewidth=0.5)
    near = [arm for arm in ARMS if arm not in ("standard", "noise", "trades")]
    for number, arm in enumerate(near):
        pairs = [
            tuple(by_arm[arm].metrics[metric] - by_arm["trades"].metrics[metric] for metric in ("clean", "worst_case"))
            for by_arm in outcomes.values()
            if {arm, "trades"} <= set(by_arm) and by_arm[arm].metrics and by_arm["trades"].metrics
        ]
        if pairs:
            clean, worst = np.array(pairs).T
            axes.plot(clean, worst, ".", color=f"C{number % 10}", alpha=0.3)
            style = "X" if arm == "trades_reseeded" else "o"
            axes.plot([clean.mean()], [worst.mean()], style, color=f"C{number % 10}", markersize=9, label=arm)
    axes.set(xlabel="clean accuracy, difference from TRADES", ylabel="worst-case accuracy, difference from TRADES")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


STUDY = Study(
    room="uadat",
    trial=trial,
    prepare=prepare,
    arms=tuple(ARMS),
    scales={
        "quick": RobustScale(
            seeds=3,
            arms=("standard", "trades", "trades_reseeded", "uad"),
            epochs=12,
            images=150,
            attacks="quick",
            flags=False,
        ),
        "standard": RobustScale(seeds=8, arms=ABLATION, epochs=40, images=300, attacks="standard", flags=True),
        "full": RobustScale(
            seeds=20,
            epochs=40,
            images=600,
            attacks="full",
            flags=True,
            betas=(2.0, 4.0, 6.0, 9.0),
            radii=(0.5, 1.5),
        ),
    },
    figures=(accuracies, over_trades),
    claims=(
        Claim(
            text="TRADES is far more robust than standard training",
            metric="aa",
            arm="trades",
            over="standard",
            margin=0.25,
            premise=True,
        ),
        Claim(
            text="AT is far more robust than standard training",
            metric="aa",
            arm="at",
            over="standard",
            control="noise",
            margin=0.25,
        ),
        Claim(
            text="UAD is far more robust than standard training",
            metric="aa",
            arm="uad",
            over="standard",
            control="noise",
            margin=0.25,
        ),
        Claim(text="TRADES is more robust than AT", metric="aa", arm="trades", over="at", control="noise"),
        Claim(
            text="UAD is more robust than TRADES",
            metric="aa",
            arm="uad",
            over="trades",
            control="trades_reseeded",
            paper="state of the art on four benchmarks (no number available)",
        ),
        Claim(text="UAD is no less robust than TRADES", metric="aa", arm="uad", over="trades", margin=-0.02),
        Claim(
            text="UAD keeps the clean accuracy of TRADES",
            metric="clean",
            arm="uad",
            over="trades",
            margin=-0.02,
            paper="natural accuracy kept",
        ),
    ),
)
