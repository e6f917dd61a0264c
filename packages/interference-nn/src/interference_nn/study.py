"""The paper's claim on digits, climbed with the ladder: what a weak attack shows, and what is left of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common import Claim, Outcome, Scale, Study, TrialLog
from aisec_common.result import values_of
from aisec_common.seeding import derived_seed, torch_rng
from aisec_common.stats import PairedMean
from aisec_common.study import Metrics
from aisec_common.torch.linf_pgd import Model, linf_pgd
from aisec_common.torch.robustness.result import WORST

from interference_nn.agreement import agreement_auroc
from interference_nn.arms import ARMS, EPS, Bench
from interference_nn.ladder import ladder
from interference_nn.ladder_report import NET, R0, LadderReport
from interference_nn.net import InterferenceNet
from interference_nn.rungs import NAMES, EffortName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAN = 0.95
QUICK = ("plain", "interference", "no_blend")
STANDARD = tuple(arm for arm in ARMS if arm != "adversarial")
_NAMES = {R0: "clean", WORST: "worst"}


@dataclass(frozen=True, kw_only=True)
class LadderScale(Scale):
    """Test images, how hard the rungs try, radii (claims are at `EPS`), and images that flags probe."""

    images: int
    effort: EffortName
    eps: tuple[float, ...] = (EPS,)
    probes: int = 0
    epochs: int = 25


def prepare(seed: int, scale: LadderScale) -> Bench:
    """Data and the undefended classifier of one seed; every arm trains its own model, or reads it from the cache."""
    bench = Bench(seed, scale.epochs)
    bench.model("plain")
    return bench


def trial(arm: str, bench: Bench, seed: int, scale: LadderScale, log: TrialLog) -> dict[str, float]:
    """The accuracy of one arm's model on every rung.

    clean, R1..R8, noise, worst: accuracy, right in all of ten passes where the model is random; over_claim: R1 - worst;
    gap: R3 - R5; RUNG@EPS at further radii; F1..F6: whether the flag is raised, masked: any; passes: forward and
    backward passes of the training an image; agreement: how well the background head tells clean images from those of
    an attack averaged over 8 draws (area under the ROC curve; .5 is chance).
    """
    digits = bench.digits
    images, labels = digits.test_images[: scale.images], digits.test_labels[: scale.images]
    log.data("images", images.numpy())
    model = bench.model(arm)
    surrogates: dict[str, Model] = {"plain": bench.plain}
    if "pgd_at" in (scale.arms or ARMS):
        surrogates["PGD-AT"] = bench.model("pgd_at")
    report = ladder(
        model,
        (images, labels),
        eps=scale.eps,
        surrogates=surrogates,
        effort=scale.effort,
        seed=derived_seed(seed, "ladder"),
        probes=scale.probes,
        progress=lambda what, done, total: log.progress(done, total),
    )
    rights = {_NAMES.get(rung, rung): report.right(rung, EPS) for rung in report.climbed()}
    for i, label in enumerate(labels.tolist()):
        log.sample(str(i), label=label, **{name: bool(right[i]) for name, right in rights.items()})
    found = _metrics(report) | {"passes": bench.passes(arm)}
    if isinstance(model, InterferenceNet) and model.random:
        rng = torch_rng(seed, "agreement")
        once = partial(model.once, generator=rng)
        attacked = linf_pgd(once, images, labels, eps=EPS, steps=20, draws=8, generator=rng)
        found["agreement"] = agreement_auroc(model, images, attacked, rng)
    return found


def _metrics(report: LadderReport) -> dict[str, float]:
    found: dict[str, float] = {}
    for eps in report.eps:
        at = "" if eps == EPS else f"@{eps:g}"
        values = {rung: report.accuracy(rung, eps) for rung in report.climbed()}
        found |= {f"{_NAMES.get(rung, rung)}{at}": value for rung, value in values.items()}
        found[f"over_claim{at}"] = values["R1"] - values[WORST]
        found[f"gap{at}"] = values["R3"] - values["R5"]
    flags = report.reports[NET].flags
    if flags is not None:
        raised = {flag.code for flag in flags}
        found |= {f"F{i}": float(f"F{i}" in raised) for i in range(1, 7)} | {"masked": float(bool(raised))}
    return found


def accuracy_by_rung(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """Accuracy on every rung, a line an arm, mean over seeds: what each attacker would report."""
    from matplotlib.figure import Figure

    rungs = [rung for rung in ("clean", *NAMES, "worst") if any(values_of(outcomes, arm, rung) for arm in ARMS)]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, arm in enumerate(ARMS):
        means = [(place, _mean(outcomes, arm, rung)) for place, rung in enumerate(rungs)]
        points = [(place, mean) for place, mean in means if mean is not None]
        if points:
            style, width = ("o-", 2.5) if arm == "interference" else (".-", 1.0)
            axes.plot(*zip(*points, strict=True), style, linewidth=width, color=_colour(number), label=arm)
    axes.set(ylabel=f"accuracy at eps {EPS:g}", ylim=(-0.03, 1.03))
    axes.set_xticks(range(len(rungs)), rungs)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def worst_case_and_cost(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """Worst-case accuracy over the passes of the training an image, with its 95 % interval over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, arm in enumerate(ARMS):
        seeds, cost = values_of(outcomes, arm, "worst"), _mean(outcomes, arm, "passes")
        if seeds and cost is not None:
            if len(seeds) > 1:
                axes.plot([cost, cost], PairedMean(seeds).interval(0.95), "-", color=_colour(number))
            axes.plot([cost], [np.mean(seeds)], "o", color=_colour(number), label=arm)
    axes.set(xlabel="forward and backward passes of training, an image", ylabel=f"worst case at eps {EPS:g}")
    if axes.lines:
        axes.set_xscale("log")
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def _colour(number: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](number)  # there are more arms than colours in the usual cycle


def _mean(outcomes: Mapping[int, Mapping[str, Outcome]], arm: str, metric: str) -> float | None:
    values = values_of(outcomes, arm, metric)
    return float(np.mean(values)) if values else None


def _above_clean(metrics: Mapping[str, Metrics]) -> float:
    return metrics["interference"]["clean"] - CLEAN


STUDY = Study(
    room="interference-nn",
    trial=trial,
    prepare=prepare,
    arms=ARMS,
    scales={
        "quick": LadderScale(seeds=3, arms=QUICK, images=50, effort="quick"),
        "standard": LadderScale(seeds=8, arms=STANDARD, images=100, effort="standard", probes=50),
        "full": LadderScale(seeds=20, images=300, effort="full", eps=(EPS, 0.0125, 0.025, 0.05, 0.2), probes=200),
    },
    figures=(accuracy_by_rung, worst_case_and_cost),
    claims=(
        Claim(
            text=f"premise: the interference network is right on {CLEAN:.0%} of the clean images",
            arm="interference",
            effect=_above_clean,
            premise=True,
        ),
        Claim(
            text="the interference network withstands more than PGD adversarial training (worst case)",
            metric="worst",
            arm="interference",
            over="pgd_at",
            control="noise",
            paper="better than the state of the art under PGD",
        ),
        Claim(
            text="a transfer attack promises more than is left, by .08 more than it does of the plain network",
            metric="over_claim",
            arm="interference",
            over="plain",
            control="no_blend",
            margin=0.08,
        ),
        Claim(
            text="one background a step makes the network look better than the average over backgrounds does (R3 - R5)",
            metric="gap",
            arm="interference",
            control="no_blend",
        ),
        Claim(
            text="with adversarial training inside, the wrapper does no harm to it (worst case)",
            metric="worst",
            arm="adversarial",
            over="pgd_at",
            margin=-0.05,
        ),
    ),
)
