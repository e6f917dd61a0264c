"""Figures of a trace: where the concept enters, and the path that is severed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from tracerouter.sites import Key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tracerouter.path import Trace

SHOWN = 12  # units drawn at one place; the others are counted in words
EDGES_SHOWN = 4  # strongest edges drawn from each source unit


def path_figure(trace: Trace, edges: Mapping[tuple[Key, Key], Tensor] | None = None) -> Figure:
    """Sensitivity by layer above, and below the units that are cut at every layer and site.

    The area of a dot is the unit's share of the score at its place (ΔWFS at l*, FIS behind it). With edges, lines lead
    from each source unit to the units that it moves most; the darker, the more.

    Args:
        trace: to draw.
        edges: as `TraceRouter.edges` gives them.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, 2.5 + 0.35 * trace.blocks), 6.0), layout="constrained")
    if trace.onset_curve:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
        _onset(above, trace)
    else:
        below = figure.subplots()
    _path(below, trace, edges or {})
    return figure


def _onset(axes: Axes, trace: Trace) -> None:
    axes.plot(range(trace.blocks), trace.onset_curve, marker="o", color="0.3")
    axes.plot([trace.onset], [trace.onset_curve[trace.onset]], "o", color="C3", markersize=10)
    axes.annotate(
        f"onset: layer {trace.onset}",
        (trace.onset, trace.onset_curve[trace.onset]),
        textcoords="offset points",
        xytext=(10, 0),
        color="C3",
    )
    axes.set_ylabel("sensitivity")
    axes.margins(y=0.15)


def _path(axes: Axes, trace: Trace, edges: Mapping[tuple[Key, Key], Tensor]) -> None:
    from matplotlib.ticker import MaxNLocator

    lanes = {site: i for i, site in enumerate(trace.sites)}
    spots = {
        key: [
            (key[0] + 0.8 * (lanes[key[1]] + 0.5) / len(lanes) - 0.4, -rank) for rank in range(min(len(units), SHOWN))
        ]
        for key, units in trace.path.items()
    }
    for (start, end), moved in edges.items():
        shown = moved[: len(spots[start]), : len(spots[end])]
        strongest = shown.max().item() if shown.numel() else 0.0
        for s, row in enumerate(shown):
            for m in row.argsort(descending=True)[:EDGES_SHOWN].tolist():
                if row[m] > 0:
                    (x0, y0), (x1, y1) = spots[start][s], spots[end][m]
                    axes.plot([x0, x1], [y0, y1], color="0.4", alpha=0.6 * row[m].item() / strongest, lw=1, zorder=1)
    for site, lane in lanes.items():
        x, y, area = [], [], []
        for key, units in trace.path.items():
            if key[1] == site and len(units):
                score = trace.score(key).clamp(min=0).cpu()
                share = (score / score.sum().clamp(min=1e-12))[units[:SHOWN].cpu()]
                x += [spot[0] for spot in spots[key]]
                y += [spot[1] for spot in spots[key]]
                area += (10 + 400 * share).tolist()
                if len(units) > SHOWN:
                    axes.text(spots[key][0][0], -SHOWN, f"+{len(units) - SHOWN}", ha="center", fontsize="small")
        axes.scatter(x, y, s=area, color=f"C{lane}", label=site, zorder=2)
    axes.axvspan(trace.onset - 0.5, trace.onset + 0.5, color="C3", alpha=0.12, label="source")
    axes.set_xlim(-0.5, trace.blocks - 0.5)
    axes.set_ylim(-SHOWN - 0.8, 0.8)
    axes.set_yticks([0, -SHOWN + 1], ["strongest", f"rank {SHOWN}"])
    axes.set_xlabel("layer (block index)")
    axes.set_title(f"severed {trace.unit} units: {trace.n_units}", loc="left", fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(lanes) + 1, fontsize="small", frameon=False)
