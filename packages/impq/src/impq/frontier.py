"""What a comparison shows: losses by method and budget, paired differences, and the frontier as a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common.files import write_atomic, write_csv, write_figure
from aisec_common.stats import PairedMean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
DIFFERENCES = "paired differences: over seeds of walks, text fixed; intervals need 3 seeds"


def frontier_table(rows: Rows, quantiser: str) -> list[dict[str, Any]]:
    """Mean held-out loss over seeds by method and budget for one quantiser: a row per method, a column per budget."""
    budgets = sorted({row["avg_bits"] for row in rows})
    by_method: dict[tuple[str, str], dict[float, list[float]]] = {}
    evaluations: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row["quantiser"] == quantiser:
            key = row["method"], row["walks"]
            by_method.setdefault(key, {}).setdefault(row["avg_bits"], []).append(row["nll"])
            evaluations.setdefault(key, []).append(row["evaluations"])
    table = []
    for (method, walks), losses in by_method.items():
        line: dict[str, Any] = {"method": f"{method}, {walks} walks" if walks else method}
        line["evaluations"] = max(evaluations[method, walks])
        line |= {f"{b:g}": f"{np.mean(losses[b]):.2f}" if b in losses else "" for b in budgets}
        table.append(line)
    return table


def differences(rows: Rows) -> list[dict[str, Any]]:
    """Paired differences over seeds of walks, mean over budgets: what each pair term and truncation change.

    Intervals are Student's t over seeds and are missing below three. The text is the same for all, so that they say
    nothing of another one.
    """
    comparisons = [
        ("truncated over full walks, precedence", ("precedence", "truncated"), ("precedence", "full")),
        ("truncated over full walks, shapley", ("shapley", "truncated"), ("shapley", "full")),
        ("covariance over shapley, full walks", ("impq", "full"), ("shapley", "full")),
        ("precedence over shapley, full walks", ("precedence", "full"), ("shapley", "full")),
        ("pairwise_ls over shapley, full walks", ("pairwise_ls", "full"), ("shapley", "full")),
    ]
    loss = {(r["method"], r["walks"], r["quantiser"], r["seed"], r["avg_bits"]): r["nll"] for r in rows}
    seeds, quantisers = sorted({r["seed"] for r in rows if r["walks"]}), sorted({r["quantiser"] for r in rows})
    table = []
    for quantiser in quantisers:
        for text, ours, other in comparisons:
            budgets = sorted({r["avg_bits"] for r in rows if (r["method"], r["walks"]) == ours})
            effects = [
                float(np.mean([loss[(*ours, quantiser, s, b)] - loss[(*other, quantiser, s, b)] for b in budgets]))
                for s in seeds
                if budgets
            ]
            if not effects:
                continue
            mean = PairedMean(effects) if len(effects) > 2 else None
            low, high = mean.interval(0.95) if mean is not None else (math.nan, math.nan)
            table.append(
                {
                    "quantiser": quantiser,
                    "comparison": text,
                    "average bits": f"{budgets[0]:g} to {budgets[-1]:g}",
                    "difference of held-out loss": f"{np.mean(effects):+.3f}",
                    "95 % interval": f"[{low:+.3f}, {high:+.3f}]" if mean is not None else "",
                    "seeds": len(effects),
                }
            )
    return table


def draw_frontier(rows: Rows, ends: Mapping[str, Mapping[str, float]]) -> Figure:
    """Held-out loss against average bits, a panel per quantiser, a line per method; random plans as a band.

    Args:
        rows: of `judge`.
        ends: quantiser -> losses of uniform plans by average bits (`{"rtn": {"2": ..., "3": ..., "4": ...}}`).
    """
    from matplotlib.figure import Figure

    quantisers = list(dict.fromkeys(row["quantiser"] for row in rows))
    figure = Figure(figsize=(4.6 * len(quantisers), 4.2), layout="constrained")
    panels = figure.subplots(1, len(quantisers), squeeze=False, sharey=True)[0]
    keys = list(dict.fromkeys((row["method"], row["walks"]) for row in rows if row["method"] != "random"))
    methods = list(dict.fromkeys(method for method, _ in keys))  # a colour each, whatever the walks
    for axes, quantiser in zip(panels, quantisers, strict=True):
        mine = [row for row in rows if row["quantiser"] == quantiser]
        chance = [row for row in mine if row["method"] == "random"]
        budgets = sorted({row["avg_bits"] for row in mine})
        if chance:
            spread = [[row["nll"] for row in chance if row["avg_bits"] == b] for b in budgets]
            axes.fill_between(
                budgets, *zip(*((min(s), max(s)) for s in spread), strict=True), color="0.85", label="random"
            )
        for method, walks in keys:
            losses = {
                b: [r["nll"] for r in mine if (r["method"], r["walks"], r["avg_bits"]) == (method, walks, b)]
                for b in budgets
            }
            x = [b for b in budgets if losses[b]]
            style = "--" if walks == "truncated" else "-" if walks else ":"
            label = f"{method}, {walks}" if walks else method
            axes.plot(
                x,
                [np.mean(losses[b]) for b in x],
                style,
                marker=".",
                color=f"C{methods.index(method) % 10}",
                label=label,
            )
        uniform = ends.get(quantiser, {})
        axes.plot([float(b) for b in uniform], list(uniform.values()), "k*", markersize=9, label="uniform")
        axes.set(title=quantiser, xlabel="bits per quantised weight")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("held-out loss, nats per token")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside right center", fontsize="x-small")
    return figure


def write_comparison(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes comparison.json, the tables as CSV, and the frontier as a figure."""
    rows = content["rows"]
    write_atomic(folder / "comparison.json", json.dumps(content, indent=1) + "\n")
    for quantiser in dict.fromkeys(row["quantiser"] for row in rows):
        write_csv(folder / f"frontier-{quantiser}.csv", frontier_table(rows, quantiser))
    write_csv(folder / "differences.csv", content["differences"])
    write_figure(folder / "frontier.png", draw_frontier(rows, content["uniform"]))
