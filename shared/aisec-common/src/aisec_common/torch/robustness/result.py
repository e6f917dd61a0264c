"""What a robustness report found: accuracies with intervals, the worst case, flags; as tables, figure and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aisec_common.torch.robustness.flags import Flag
from aisec_common.torch.robustness.rungs import Rung

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

CLEAN, WORST = "clean", "worst case"


@dataclass(frozen=True, kw_only=True)
class RobustnessReport:
    """The outcome of `robustness_report`.

    Args:
        rungs: the attacks, in order.
        eps: the radii, in order; the first is what methods take by default.
        passes: forward passes an image had to be right in.
        samples: one row an image and attack: rung, eps, id, right, mean (share of passes right), distance (max
            ``|x' - x|``); eps 0 for `"clean"`. An image that is wrong as it is counts as wrong under every attack and
            keeps its clean mean.
        cost: rung, eps, forward and backward passes of the attack an image; scoring is not counted.
        flags: raised flags, or None where they were not looked for.
        about: what else the header of the tables says.
    """

    rungs: tuple[Rung, ...]
    eps: tuple[float, ...]
    passes: int
    samples: pd.DataFrame
    cost: pd.DataFrame
    flags: tuple[Flag, ...] | None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def masked(self) -> bool:
        """Whether a flag is raised; False also where flags were not looked for (see `verdict`)."""
        return bool(self.flags)

    @property
    def verdict(self) -> str:
        """`"undecided (masking suspected)"` where a flag is raised, else what was looked for."""
        if self.flags is None:
            return "masking was not looked for"
        return "undecided (masking suspected)" if self.flags else "no sign of masking"

    def raise_if_masked(self) -> None:
        """Stops a pipeline that must not count on masked numbers.

        Raises:
            ValueError: in one line, if a flag is raised or flags were not looked for.
        """
        if self.flags is None:
            raise ValueError("flags: masking was not looked for; run the report with flags=True")
        if self.flags:
            raise ValueError(
                f"model: masking suspected, do not count on its accuracy: {'; '.join(map(str, self.flags))}"
            )

    def right(self, rung: str, eps: float | None = None) -> NDArray[np.bool_]:
        """Whether each image was right in all passes [n], in the order given.

        Args:
            rung: a rung's name, `"clean"`, or `"worst case"`: right under every rung.
            eps: default the first.

        Raises:
            ValueError: for a rung or eps that was not run.
        """
        import numpy as np

        if rung == WORST:
            every = [self.right(name, eps) for name in (CLEAN, *(rung.name for rung in self.rungs))]
            worst: NDArray[np.bool_] = np.logical_and.reduce(every)
            return worst
        return self._column("right", rung, eps).astype(bool)

    def accuracy(self, rung: str = WORST, eps: float | None = None) -> float:
        """Share of the images right in all passes under `rung`; names as in `right`."""
        return float(self.right(rung, eps).mean())

    def worst_case(self, eps: float | None = None) -> float:
        """Share of the images right under every rung: the headline."""
        return self.accuracy(WORST, eps)

    def interval(self, rung: str = WORST, eps: float | None = None, level: float = 0.95) -> tuple[float, float]:
        """Wilson interval of `accuracy`."""
        from scipy.stats import binomtest

        right = self.right(rung, eps)
        interval = binomtest(int(right.sum()), len(right)).proportion_ci(level, method="wilson")
        return float(interval.low), float(interval.high)

    def table(self) -> pd.DataFrame:
        """One row for clean, each rung and the worst case, at every eps.

        Columns: rung, kind, eps, accuracy (right in all passes) with its 95 % Wilson interval low to high, mean (over
        passes; NaN for the worst case), distance (largest), forward and backward (passes of the attack an image).
        """
        import pandas as pd

        rows = [self._row(CLEAN, "", 0.0)]
        for eps in self.eps:
            rows += [self._row(rung.name, rung.kind, eps) for rung in self.rungs]
            rows.append(self._row(WORST, "", eps))
        return pd.DataFrame(rows)

    def to_markdown(self) -> str:
        """The table in Markdown, after what was done and the flags."""
        return f"{self.header()}\n\n{markdown(*self.cells())}\n\n{self.flag_text()}\n"

    def cells(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Columns and rows of the table as text."""
        columns = ("rung", "attacker", "eps", "accuracy", "95 %", "mean", "forward", "backward")
        return columns, [
            (
                row["rung"],
                row["kind"].replace("_", " "),
                f"{row['eps']:.4g}",
                f"{row['accuracy']:.3f}",
                f"{row['low']:.3f} to {row['high']:.3f}",
                "–" if row["rung"] == WORST else f"{row['mean']:.3f}",
                f"{row['forward']:.0f}",
                f"{row['backward']:.0f}",
            )
            for row in self.table().to_dict("records")
        ]

    def header(self) -> str:
        """Images, threat model and scoring in one line."""
        n = len(self.right(CLEAN))
        radii = ", ".join(f"{eps:.4g}" for eps in self.eps)
        told = "".join(f"; {key}: {value}" for key, value in self.about.items())
        passes = "one pass" if self.passes == 1 else f"all of {self.passes} passes"
        return (
            f"{n} images, l_inf, eps {radii} in units of [0, 1]; right means right in {passes}; worst case: right "
            f"under every rung of the table; forward and backward: passes of the attack an image{told}."
        )

    def flag_text(self) -> str:
        """The verdict and every raised flag, in one line."""
        return f"Flags: {self.verdict}" + "".join(f"; {flag}" for flag in self.flags or ()) + "."

    def figure(self) -> Figure:
        """Accuracy against eps, one line a rung, the worst case in black."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        radii = sorted(self.eps)
        for rung in self.rungs:
            axes.plot(
                [0.0, *radii],
                [self.accuracy(CLEAN), *(self.accuracy(rung.name, e) for e in radii)],
                ".-",
                label=rung.name,
            )
        worst = [self.accuracy(CLEAN), *(self.worst_case(e) for e in radii)]
        axes.plot([0.0, *radii], worst, "k.-", linewidth=2, label=WORST)
        axes.set(xlabel="eps", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.legend(fontsize=8)
        return figure

    def save(self, path: str | Path) -> Path:
        """Writes one self-contained HTML page: figure, flags, table.

        Raises:
            ValueError: if the name does not end in `.html`.
        """
        from aisec_common.torch.robustness.page import save_page

        return save_page(self, Path(path))

    def compare(self, others: Mapping[str, RobustnessReport], *, name: str = "this") -> Comparison:
        """This report beside others of the same images, this one first, as `name`.

        Raises:
            ValueError: if images, eps or passes differ, or `others` has `name` already.
        """
        if name in others:
            raise ValueError(f"name: {name!r} is also in others; choose another name for this report")
        return Comparison(reports={name: self, **others})

    def _column(self, column: str, rung: str, eps: float | None) -> NDArray[Any]:
        radius = 0.0 if rung == CLEAN else self.eps[0] if eps is None else eps
        rows = self.samples[(self.samples["rung"] == rung) & (self.samples["eps"] == radius)]
        if rows.empty:
            names = ", ".join(rung.name for rung in self.rungs)
            raise ValueError(f"rung: {rung!r} was not run at eps {radius:g}; there are {names} at {list(self.eps)}")
        return rows[column].to_numpy()

    def _row(self, rung: str, kind: str, eps: float) -> dict[str, Any]:
        low, high = self.interval(rung, eps)
        row = {"rung": rung, "kind": kind, "eps": eps, "accuracy": self.accuracy(rung, eps), "low": low, "high": high}
        at = self.cost["eps"] == eps
        if rung == WORST:
            names = [rung.name for rung in self.rungs]
            spent = self.cost[at & self.cost["rung"].isin(names)][["forward", "backward"]].sum()
            distance = max(float(self._column("distance", name, eps).max()) for name in names)
            return {**row, "mean": float("nan"), "distance": distance, **spent}
        spent = self.cost[at & (self.cost["rung"] == rung)][["forward", "backward"]].sum()
        mean, distance = self._column("mean", rung, eps).mean(), self._column("distance", rung, eps).max()
        return {**row, "mean": float(mean), "distance": float(distance), **spent}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several reports of the same images, by name.

    Raises:
        ValueError: if their images, eps or passes differ.
    """

    reports: Mapping[str, RobustnessReport]

    def __post_init__(self) -> None:
        first, *others = self.reports.values()
        for report in others:
            same = list(report.samples["id"].unique()) == list(first.samples["id"].unique())
            if not same or (report.eps, report.passes) != (first.eps, first.passes):
                raise ValueError("others must be reports of the same ids, eps and passes; run them on the same images")

    def table(self) -> pd.DataFrame:
        """One row a model and eps: clean, every rung (NaN where not run), worst case with interval, flags, cost."""
        import pandas as pd

        rows = []
        for name, report in self.reports.items():
            codes = "not looked for" if report.flags is None else " ".join(dict.fromkeys(f.code for f in report.flags))
            table = report.table()
            for eps in report.eps:
                at = table[(table["eps"] == eps) & (table["rung"] != CLEAN)]
                low, high = report.interval(WORST, eps)
                worst = at[at["rung"] == WORST].iloc[0]
                rows.append(
                    {"model": name, "eps": eps, CLEAN: report.accuracy(CLEAN)}
                    | dict(zip(at["rung"], at["accuracy"], strict=True))
                    | {"low": low, "high": high, "flags": codes}
                    | {"forward": worst["forward"], "backward": worst["backward"]}
                )
        found = pd.DataFrame(rows)
        order = ["model", "eps", CLEAN, *(c for c in found.columns if c not in _ENDS), *_ENDS[3:]]
        return found[order]

    def to_markdown(self) -> str:
        """The table in Markdown; the interval is that of the worst case."""
        table = self.table()
        columns = [column for column in table.columns if column not in ("low", "high")]
        rows = []
        for row in table.to_dict("records"):
            interval = f" ({row['low']:.3f} to {row['high']:.3f})"
            rows.append([_cell(column, row[column]) + (interval if column == WORST else "") for column in columns])
        return markdown(columns, rows) + "\n"


_ENDS = ("model", "eps", CLEAN, WORST, "low", "high", "flags", "forward", "backward")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(["a"], [["1"]]))
    | a |
    |---|
    | 1 |
    """
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)])


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str):
        return value or "none"
    if value != value:
        return "–"
    return (
        f"{value:.4g}" if column == "eps" else f"{value:.0f}" if column in ("forward", "backward") else f"{value:.3f}"
    )
