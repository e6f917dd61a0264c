"""The figure of an evaluation: how many images each model keeps, attack by attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aisec_common.torch.robustness.result import CLEAN, WORST, Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(comparison: Comparison) -> Figure:
    """Accuracy of every model, clean, under each attack and in the worst case, with Wilson intervals; a panel an eps.

    A model whose gradients look masked has a star behind its name.

    Args:
        comparison: of one or more reports of the same images.
    """
    from matplotlib.figure import Figure

    reports = comparison.reports
    radii = next(iter(reports.values())).eps
    rungs = list(dict.fromkeys(rung.name for report in reports.values() for rung in report.rungs))
    rows = [CLEAN, *rungs, WORST]
    drawn = Figure(figsize=(max(6.0, 1.1 * len(rows)), 3.2 * len(radii)), layout="constrained")
    width = 0.8 / len(reports)
    for eps, axes in zip(radii, drawn.subplots(len(radii), squeeze=False)[:, 0], strict=True):
        for number, (name, report) in enumerate(reports.items()):
            known = {CLEAN, WORST, *(rung.name for rung in report.rungs)}
            at = [place for place, row in enumerate(rows) if row in known]
            shares = [report.accuracy(rows[place], eps) for place in at]
            ends = [report.interval(rows[place], eps) for place in at]
            below = [share - low for share, (low, _) in zip(shares, ends, strict=True)]
            above = [high - share for share, (_, high) in zip(shares, ends, strict=True)]
            places = [place + (number - (len(reports) - 1) / 2) * width for place in at]
            axes.bar(
                places,
                shares,
                width,
                yerr=[below, above],
                error_kw={"linewidth": 0.8},
                label=name + ("*" if report.masked else ""),
            )
        axes.set(ylabel=f"accuracy, eps = {eps:.4g}", ylim=(0, 1.05), xticks=range(len(rows)), xticklabels=rows)
        axes.spines[["top", "right"]].set_visible(False)
    drawn.axes[0].legend(fontsize=8, title="* gradients flagged" if any(r.masked for r in reports.values()) else None)
    return drawn
