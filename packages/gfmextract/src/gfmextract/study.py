"""The paper's claims on the embedded default: a small victim, a graph it answers for, and graphs it never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from aisec_common import Claim, Outcome, Scale, Study, TrialLog
from aisec_common.result import values_of
from aisec_common.study import Metrics

from gfmextract.arms import ARMS, BACKBONES, DEFENDED, SCENARIOS, Bench, at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ("victim", "text-only", "untrained", "gps", "sage", "permuted")
BUDGETS = (0.05, 0.25, 1.0)
FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
VISIBLE = (0.1, 0.25, 0.5, 0.75, 1.0)
GAP, ABOVE_TEXT, ABOVE_PERMUTED = 0.03, 0.04, 0.3
FIRST_WORLD = 2
"""Worlds 0 and 1 are for validation: the victim's recipe was chosen there, among about fifteen."""


@dataclass(frozen=True, kw_only=True)
class LeakScale(Scale):
    """Sizes of the world, and which grids are run besides S1 and S6 over `budgets` and S2.

    `fractions` is the grid of S4, `visible` that of S5; `layers` the depths that are crossed with the backbones in S3
    (the others of `BACKBONES` run at their default depth).
    """

    nodes: int = 240
    domains: int = 240
    victim_epochs: int = 4
    epochs: int = 30
    budgets: tuple[float, ...] = BUDGETS
    fractions: tuple[float, ...] = ()
    visible: tuple[float, ...] = ()
    layers: tuple[int, ...] = ()


def prepare(seed: int, scale: LeakScale) -> Bench:
    """The world of one seed and the victim pretrained in it; the victim is read from the cache once it was made."""
    return Bench.of(
        FIRST_WORLD + seed,
        nodes=scale.nodes,
        domains=scale.domains,
        victim_epochs=scale.victim_epochs,
        epochs=scale.epochs,
    )


def trial(arm: str, bench: Bench, seed: int, scale: LeakScale, log: TrialLog) -> dict[str, float]:
    """What one surrogate, or one defence, comes to.

    s1, s2, s6: another graph of the queried one's domain, its other half, a graph of another domain; each with
    .accuracy, .fidelity, .gap, .cosine, .cka and .certified. s1.5.METRIC, s6.5.METRIC: with 5 % of the nodes queried;
    s2.5.METRIC: of the half that may be queried (S4). s5.50.METRIC: with 50 % of the nodes visible. s3.LAYERS.METRIC:
    depths. Of a defence, SETTING.utility: the victim's own accuracy through it, .fidelity: of a surrogate that takes
    the answers as they come, .adaptive: of the best attacker of all; of a watermark also .pvalue and .adaptive_pvalue,
    of a monitor .alarm, .auroc and .false_alarms. Seconds are kept with the samples, FLOPs here.
    """
    for graph in (bench.queried, bench.sibling, bench.other):
        log.data(f"texts of {graph.name}", "\n".join(graph.texts))
        log.data(f"edges of {graph.name}", graph.edge_index.numpy())
    if arm in DEFENDED:
        return bench.defended(arm, log)
    if arm == "victim":
        return bench.of_victim()
    return bench.attacked(
        arm,
        log,
        budgets=scale.budgets if arm in ("gps", "sage", "permuted") else (1.0,),
        fractions=scale.fractions if arm == "gps" else (),
        visible=scale.visible if arm == "gps" else (),
        layers=scale.layers if arm in BACKBONES else (),
    )


def fidelity_by_budget(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """Agreement with the victim against the share of nodes queried, a line an arm, mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    panels = figure.subplots(1, len(SCENARIOS), sharey=True)
    for axes, (scenario, title) in zip(panels, SCENARIOS.items(), strict=True):
        for number, arm in enumerate(("gps", "sage", "permuted", "untrained")):
            points = [
                (100 * share, mean)
                for share in BUDGETS
                if (mean := _mean(outcomes, arm, f"{at(scenario, share)}.fidelity")) is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=f"C{number}", label=arm)
        axes.set(title=title, xlabel="% of the graph queried", xscale="log", ylim=(-0.03, 1.03))
        axes.set_xticks([100 * share for share in BUDGETS], [f"{100 * share:g}" for share in BUDGETS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="agreement with the victim")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def frontier(outcomes: Mapping[int, Mapping[str, Outcome]]) -> Figure:
    """Utility left to honest users against fidelity: hollow as the answers come, filled for the adaptive attacker."""
    from gfmextract.frontier import frontier_figure

    rows = []
    for arm in DEFENDED:
        found = {name for by_arm in outcomes.values() if arm in by_arm for name in by_arm[arm].metrics}
        for setting in sorted(name.removesuffix(".utility") for name in found if name.endswith(".utility")):
            told = {"defence": arm, "setting": setting, "utility": _mean(outcomes, arm, f"{setting}.utility")}
            for adaptive, metric in ((False, "fidelity"), (True, "adaptive")):
                rows.append(told | {"adaptive": adaptive, "fidelity": _mean(outcomes, arm, f"{setting}.{metric}")})
    return frontier_figure(rows)


def _mean(outcomes: Mapping[int, Mapping[str, Outcome]], arm: str, metric: str) -> float | None:
    values = values_of(outcomes, arm, metric)
    return float(np.mean(values)) if values else None


def _premise(scenario: str, where: str) -> Claim:
    return Claim(
        text=f"premise: the victim reads {where} better than its texts alone say, by {ABOVE_TEXT:g}",
        metric=f"{scenario}.accuracy",
        arm="victim",
        over="text-only",
        margin=ABOVE_TEXT,
        premise=True,
    )


def _as_accurate(arm: str, scenario: str, number: int) -> Claim:
    return Claim(
        text=f"({number}) {SCENARIOS[scenario]}: a surrogate of backbone {arm} is as accurate as the victim",
        metric=f"{scenario}.accuracy",
        arm=arm,
        over="victim",
        margin=-GAP,
        paper="mean gap .0015 over seven data sets",
    )


def _from_the_answers(arm: str) -> Claim:
    def least(metrics: Mapping[str, Metrics]) -> float:
        names = [f"{scenario}.fidelity" for scenario in SCENARIOS]
        return min(metrics[arm][name] - metrics["permuted"][name] for name in names)

    return Claim(
        text=f"control of (1) and (2): with answers permuted over the queries {arm} agrees less, in S1, S2 and S6 each",
        effect=least,
        arm=arm,
        control="untrained",
        margin=ABOVE_PERMUTED,
    )


def _with_the_budget(low: float, high: float) -> Claim:
    def gained(metrics: Mapping[str, Metrics]) -> float:
        return metrics["gps"][f"{at('s6', high)}.fidelity"] - metrics["gps"][f"{at('s6', low)}.fidelity"]

    return Claim(
        text=f"(3) agreement on another domain grows with the budget: {high:.0%} over {low:.0%} of the graph queried",
        effect=gained,
        arm="gps",
        control="permuted",
    )


def _grows() -> tuple[Claim, ...]:
    return tuple(_with_the_budget(low, high) for low, high in pairwise(BUDGETS))


def _each(claim: Callable[[str], Claim]) -> tuple[Claim, ...]:
    return tuple(claim(scenario) for scenario in SCENARIOS)


STUDY = Study(
    room="gfmextract",
    trial=trial,
    prepare=prepare,
    arms=ARMS,
    scales={
        "quick": LeakScale(seeds=3, arms=QUICK),
        "standard": LeakScale(seeds=8, fractions=FRACTIONS, visible=VISIBLE),
        "full": LeakScale(seeds=20, fractions=FRACTIONS, visible=VISIBLE, layers=(1, 2, 3, 4)),
    },
    figures=(fidelity_by_budget, frontier),
    claims=(
        _premise("s1", "an unseen graph of the queried domain"),
        _premise("s6", "a graph of another domain"),
        *_each(lambda scenario: _as_accurate("gps", scenario, 1)),
        *_each(lambda scenario: _as_accurate("sage", scenario, 2)),
        _from_the_answers("gps"),
        _from_the_answers("sage"),
        *_grows(),
    ),
)
