"""What the ladder found: accuracies by rung, worst cases, over-claim, masking flags and the verdict."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from aisec_common.files import write_atomic
from aisec_common.report import STYLE
from aisec_common.stats import PairedMean
from aisec_common.table import markdown
from aisec_common.torch.robustness.result import CLEAN, WORST, RobustnessReport
from numpy.typing import NDArray

from interference_nn.rungs import NAMES, Effort

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NET = "interference"
R0 = "R0"
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class LadderReport:
    """The reports of all models on the same images, and what they say together.

    Attributes:
        reports: of each model by name; `"interference"` is the network the ladder is about.
        eps: radii.
        left_out: by model, rungs that were asked for and could not be climbed, with the reason.
        effort: how hard each rung tried.
        over: the baseline the verdict compares with; None takes the one with the best worst case.
        control: a baseline with the key part replaced, or None.
    """

    reports: Mapping[str, RobustnessReport]
    eps: tuple[float, ...]
    left_out: Mapping[str, Mapping[str, str]]
    effort: Effort
    over: str | None = None
    control: str | None = None

    def right(self, rung: str, eps: float, model: str = NET) -> NDArray[np.bool_]:
        """Which images are right under a rung, in all passes [n], in the order of the data.

        Args:
            rung: `"R0"` (clean), `"R1"`..`"R8"` (all that begin so; R1 is the first surrogate), a full name, or
                `"worst case"`.
            eps: one of the radii.
            model: one of the reports.

        Raises:
            KeyError: for a model or a rung that is not there.
            ValueError: for a radius that is not there.
        """
        report = self.reports[model]
        if eps not in self.eps:
            raise ValueError(f"eps must be one of {', '.join(map(str, self.eps))}, not {eps}")
        if rung in (R0, CLEAN):
            return report.right(CLEAN)
        names = [each.name for each in report.rungs]
        chosen = names if rung == WORST else [name for name in names if rung in (name, name.split()[0])]
        if rung == "R1":
            chosen = chosen[:1]
        if not chosen:
            raise KeyError(f"rung {rung} was not climbed by {model}")
        together: NDArray[np.bool_] = np.logical_and.reduce([report.right(name, eps) for name in (CLEAN, *chosen)])
        return together

    def climbed(self, model: str = NET) -> tuple[str, ...]:
        """What can be asked of a model, in order: `"R0"`, the rungs it climbed, `"noise"` and the worst case."""
        first = {rung.name.split()[0] for rung in self.reports[model].rungs}
        return (R0, *(name for name in (*NAMES, "noise") if name in first), WORST)

    def accuracy(self, rung: str, eps: float | None = None, model: str = NET) -> float:
        """Share of images right under a rung; see `right`. `eps` may be left out where there is one."""
        return float(self.right(rung, self._radius(eps), model).mean())

    def worst_case(self, eps: float | None = None, model: str = NET) -> float:
        """Share of images right under every rung that was climbed: the headline."""
        return self.accuracy(WORST, eps, model)

    def over_claim(self, eps: float | None = None, model: str = NET) -> float:
        """R1 - worst case: how much a report of transfer attacks alone would have promised too much.

        Raises:
            KeyError: if R1 was not climbed.
        """
        return self.accuracy("R1", eps, model) - self.worst_case(eps, model)

    def table(self) -> pd.DataFrame:
        """One row a model and radius: R0..R8, noise, worst case, over-claim, flags, passes; NaN: not climbed.

        `forward` and `backward` are passes of all attacks an image; one of an average of M draws counts as one.
        """
        import pandas as pd

        climbed = (R0, *(name for name in NAMES if name in self.effort.rungs), "noise", WORST)
        rows = []
        for model, report in self.reports.items():
            spent = report.cost[report.cost["rung"].isin([rung.name for rung in report.rungs])]
            spent = spent.groupby("eps")[["forward", "backward"]].sum()
            for eps in self.eps:
                nothing = dict.fromkeys(climbed, float("nan"))
                found = nothing | {rung: self.accuracy(rung, eps, model) for rung in self.climbed(model)}
                over = found.get("R1", float("nan")) - found[WORST]
                rows.append(
                    {"model": model, "eps": eps, **found, "over-claim": over, "flags": _codes(report)}
                    | spent.loc[eps].to_dict()
                )
        return pd.DataFrame(rows)

    @property
    def compared_with(self) -> str | None:
        """The baseline of the verdict, or None where there is none."""
        if self.over is not None:
            return self.over
        others = [name for name in self.reports if not name.startswith(NET) and name != self.control]
        return max(others, key=lambda name: float(self._mean_worst(name).mean()), default=None)

    @property
    def verdict(self) -> Literal["holds", "undecided", "fails"]:
        """Whether the network's worst case is better than the baseline's; `reason` says why."""
        return self._judged[0]

    @property
    def reason(self) -> str:
        """The verdict's reason in words."""
        return self._judged[1]

    @cached_property
    def _judged(self) -> tuple[Literal["holds", "undecided", "fails"], str]:
        """On the images, each with its share of radii at which it is right under everything; 95 %."""
        over = self.compared_with
        raised = [f"{name} {flag.code}" for name in (NET, over) if name for flag in self.reports[name].flags or ()]
        if raised:
            return "undecided", f"masking suspected ({', '.join(dict.fromkeys(raised))})"
        if over is None:
            return "undecided", "no baseline was given"
        net = self._mean_worst(NET)
        effect = _paired(net - self._mean_worst(over))
        if effect is None:
            return "undecided", "too few images, or no difference on any of them"
        low, high = effect.interval(LEVEL)
        told = f"worst case {effect.mean:+.3f} [{low:.3f}, {high:.3f}] over {over}, paired over images of given models"
        if high < 0:
            return "fails", told
        if low <= 0:
            return "undecided", f"{told}: the interval holds 0"
        if self.control is None:
            return "holds", f"{told}; no control was given, so what did it is open"
        lead = _paired(net - self._mean_worst(self.control))
        if lead is None or lead.interval(LEVEL)[0] <= 0:
            return "undecided", f"{told}, but the control {self.control} does as well"
        return "holds", f"{told}, and over the control {self.control}"

    def header(self) -> str:
        """What a "PGD accuracy" means nothing without: radius, steps, targets, and what the attacker knows."""
        effort, size = self.effort, len(self.right(R0, self.eps[0]))
        told = {
            "R1": f"R1 transfer, PGD-{effort.transfer_steps} on the undefended model",
            "R2": f"R2 oblivious, PGD-{effort.transfer_steps} without the interference",
            "R3": "R3 PGD-10 through one draw a step",
            "R4": f"R4 PGD-{effort.average_steps} through the average",
            "R5": f"R5 PGD-{effort.eot_steps} through E = {effort.draws} draws, {effort.restarts} starts",
            "R6": f"R6 APGD-{effort.apgd_steps} through E = {effort.apgd_draws} draws",
            "R7": f"R7 gradient-free, {effort.square_queries} queries",
            "R8": "R8 targeted (all others are untargeted)",
        }
        climbed = "; ".join(told[name] for name in sorted(effort.rungs))
        radii = ", ".join(f"{eps:.4g}" for eps in self.eps)
        return (
            f"{size} images, l_inf eps {radii} in units of [0, 1]. From R3 on the attacker knows weights, backgrounds "
            f"and blending, and not the draws to come; a deterministic model has E = 1. {climbed}."
        )

    def to_markdown(self) -> str:
        """Header, table, masking flags, what was left out, and the verdict."""
        table = self.table()
        rows = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
        parts = [self.header(), markdown(tuple(table.columns), rows), f"Verdict: {self.verdict}. {self.reason}."]
        for title, lines in self._notes().items():
            parts += [f"{title}:", "\n".join(f"- {line}" for line in lines)]
        return "\n\n".join(parts) + "\n"

    def figure(self) -> Figure:
        """Accuracy by rung, a line a model, a panel a radius; the last place is the worst case."""
        from matplotlib.figure import Figure

        table = self.table()
        rungs = [name for name in (R0, *NAMES, WORST) if name in table]
        figure = Figure(figsize=(4.6 * len(self.eps), 3.4), layout="constrained")
        panels = figure.subplots(1, len(self.eps), sharey=True, squeeze=False)[0]
        for axes, eps in zip(panels, self.eps, strict=True):
            for colour, model in enumerate(self.reports):
                row = table[(table["model"] == model) & (table["eps"] == eps)].iloc[0]
                climbed = [rung for rung in rungs if row[rung] == row[rung]]
                places = [rungs.index(rung) for rung in climbed]
                style = "o-" if model == NET else ".--"
                axes.plot(places, [row[rung] for rung in climbed], style, color=f"C{colour}", label=model)
            axes.set(title=f"eps {eps:.4g}", ylim=(-0.03, 1.03), xticks=range(len(rungs)), xticklabels=rungs)
            axes.tick_params(axis="x", rotation=60)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("accuracy")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        return figure

    def save(self, file: Path | str) -> None:
        """Writes one self-contained HTML page: the figure first, then the table and what is to be known about it.

        Raises:
            ValueError: if the name does not end in `.html`.
        """
        file = Path(file)
        if file.suffix != ".html":
            raise ValueError(f"file must end in .html, not {file.name!r}")
        drawn = io.BytesIO()
        self.figure().savefig(drawn, format="png", dpi=150)
        image = base64.b64encode(drawn.getvalue()).decode()
        table = self.table().map(_cell).to_html(index=False)
        notes = "".join(
            f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
            for title, lines in self._notes().items()
        )
        page = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>robustness ladder</title><style>{STYLE}</style></head>\n<body><h1>Robustness ladder</h1>"
            f"<p><b>{self.verdict}</b>: {escape(self.reason)}</p>"
            f'<img alt="accuracy by rung" src="data:image/png;base64,{image}">'
            f'<p>{escape(self.header())}</p><div class="wide">{table}</div>{notes}</body></html>\n'
        )
        write_atomic(file, page)

    def _notes(self) -> dict[str, list[str]]:
        flags = [f"{model}: {flag}" for model, report in self.reports.items() for flag in report.flags or ()]
        missing = [f"{model}: {rung} ({why})" for model, left in self.left_out.items() for rung, why in left.items()]
        looked = any(report.flags is not None for report in self.reports.values())
        notes = {"Masking flags": flags or ["none" if looked else "not looked for"]}
        return notes | ({"Not climbed": missing} if missing else {})

    def _mean_worst(self, model: str) -> NDArray[np.float64]:
        together: NDArray[np.float64] = np.mean([self.right(WORST, eps, model) for eps in self.eps], axis=0)
        return together

    def _radius(self, eps: float | None) -> float:
        if eps is None and len(self.eps) > 1:
            raise ValueError(f"eps must say which of {', '.join(map(str, self.eps))} is meant")
        return self.eps[0] if eps is None else eps


def _paired(differences: NDArray[np.float64]) -> PairedMean | None:
    return PairedMean(differences) if len(differences) > 2 and differences.std() > 0 else None


def _codes(report: RobustnessReport) -> str:
    if report.flags is None:
        return "not looked for"
    return " ".join(sorted({flag.code for flag in report.flags})) or "none"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.3g}"
    return str(value)
