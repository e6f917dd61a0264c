"""What a survival model did on patients it was not trained on, in numbers, tables and a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from aisec_common.table import markdown
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]

TREATMENT_WARNING = (
    "Treatment is an input. It is given after the first day, so that a patient must live long enough to receive it "
    "(immortal-time bias), and to those who need it (confounding by indication): "
    'compare with `cohort.without("treatment")`, and read no effect of a treatment out of the model.'
)
SMALL = 20  # comparable pairs below which no C-index is printed


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A Kaplan-Meier estimate: survival `[t]` at the times `[t]` in months, with its 95 % band."""

    label: str
    n: int
    time: FloatArray
    survival: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, kw_only=True, eq=False)
class SurvivalReport:
    """The evaluation of one model on one test cohort; made by `icfnet.sksurv_report.evaluate`.

    Args:
        name: of the model.
        n: patients.
        events: of them, with an event.
        c_index: Harrell's, ties within 1e-8.
        c_low: lower end of its 95 % bootstrap interval over patients.
        c_high: upper end.
        ipcw: Uno's C-index, weighted by the inverse probability of censoring in the training cohort.
        auc: cumulative / dynamic AUC, mean over `times`, weighted likewise.
        ibs: integrated Brier score over `times`.
        logrank_p: of the halves above and below the median risk.
        times: months at which survival was evaluated.
        horizon: months at which calibration was read.
        calibration: rows of predicted and observed survival at the horizon, by quarter of the prediction.
        subgroups: C-index, predicted and observed survival by group; n/a (NaN) below 20 comparable pairs.
        curves: of the halves, lower risk first.
        risk: of each patient.
        draws: C-index in each bootstrap sample; the samples are the same for every model of one test cohort.
        warnings: what the reader has to know.
        refit: name of an arm -> its report on the same cohorts; None where the training cohort is not at hand.

    >>> SurvivalReport.__name__
    'SurvivalReport'
    """

    name: str
    n: int
    events: int
    c_index: float
    c_low: float
    c_high: float
    ipcw: float
    auc: float
    ibs: float
    logrank_p: float
    times: FloatArray
    horizon: float
    calibration: pd.DataFrame
    subgroups: pd.DataFrame
    curves: tuple[Curve, ...]
    risk: FloatArray
    draws: FloatArray
    warnings: tuple[str, ...]
    refit: Callable[[str], SurvivalReport] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The headline numbers by name."""
        return {
            "c_index": self.c_index,
            "ipcw": self.ipcw,
            "auc": self.auc,
            "ibs": self.ibs,
            "logrank_p": self.logrank_p,
        }

    def compare(self, *arms: str) -> Comparison:
        """This report beside those of baselines, each fitted anew to the same training cohort.

        Args:
            arms: of `icfnet.arms.ARMS`.

        Raises:
            ValueError: for no arm, an unknown one, one whose modalities a patient lacks altogether, or where the
                training cohort is not at hand.
        """
        if self.refit is None:
            raise ValueError("compare needs the training cohort: give `train` to evaluate")
        if not arms:
            raise ValueError("arms must be at least one")
        return Comparison(reports=(self, *(self.refit(arm) for arm in arms)))

    def to_markdown(self) -> str:
        """The whole report as Markdown."""
        head = Comparison(reports=(self,)).to_markdown()
        return "\n\n".join(
            [
                f"**{self.name}**: {self.n} patients, {self.events} events.",
                head,
                f"Calibration at {self.horizon:.1f} months:",
                _table(self.calibration),
                f"Subgroups (C-index: n/a below {SMALL} comparable pairs; survival at {self.horizon:.1f} months):",
                _table(self.subgroups),
                *(f"Warning: {line}" for line in self.warnings),
            ]
        )

    def figure(self) -> Figure:
        """Kaplan-Meier curves of the halves above and below the median risk."""
        return kaplan_meier_figure({self.name: self.curves}, {self.name: self.logrank_p})


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Reports on one test cohort, the first being the one the others are set against."""

    reports: tuple[SurvivalReport, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row a model; `lead` is the C-index of the first less this one's, 95 % paired bootstrap over patients."""
        first = self.reports[0]
        rows = []
        for each in self.reports:
            row = {
                "model": each.name,
                "C-index": _interval(each.c_index, each.c_low, each.c_high),
                "IPCW C-index": _number(each.ipcw),
                "AUC over time": _number(each.auc),
                "integrated Brier score": _number(each.ibs),
                "log-rank p": f"{each.logrank_p:.2g}" if math.isfinite(each.logrank_p) else "n/a",
            }
            if len(self.reports) > 1:
                low, high = np.nanquantile(first.draws - each.draws, [0.025, 0.975])
                lead = first.c_index - each.c_index
                row[f"{first.name} leads by"] = "" if each is first else _interval(lead, low, high)
            rows.append(row)
        return pd.DataFrame(rows)

    def to_markdown(self) -> str:
        """The table as Markdown."""
        return _table(self.table)


def kaplan_meier_figure(curves: Mapping[str, Sequence[Curve]], p_values: Mapping[str, float]) -> Figure:
    """One panel a model, with the log-rank p of its curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 3.6), layout="constrained")
    for axes, (name, drawn) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for colour, curve in zip(("#1a7f37", "#cf222e"), drawn, strict=False):
            axes.step(curve.time, curve.survival, where="post", color=colour, label=f"{curve.label} (n = {curve.n})")
            axes.fill_between(curve.time, curve.low, curve.high, step="post", color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="months", ylabel="survival", ylim=(0, 1.02), title=f"{name}: log-rank p {p_values[name]:.2g}")
        axes.title.set_fontsize(9)
        axes.legend(fontsize="small", frameon=False)
        axes.grid(alpha=0.3)
    return figure


def _table(frame: pd.DataFrame) -> str:
    lines = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    return markdown(tuple(map(str, frame.columns)), lines)


def _cell(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "n/a"


def _interval(value: float, low: float, high: float) -> str:
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"
