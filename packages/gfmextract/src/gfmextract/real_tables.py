"""Tables and the figure of the comparison on real models, from the records of its copies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common.files import write_csv, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("comparison.csv", "budgets.png")
METRICS = ("fidelity", "accuracy", "victim_accuracy", "cosine", "cka")


def read_runs(out: Path) -> list[dict[str, Any]]:
    """The records below `out/runs`, in the order of source, attacker and budget.

    Raises:
        ValueError: where there is none.
    """
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((out / "runs").glob("*.json"))]
    if not records:
        raise ValueError(f"{out} holds no record of a copy: run the comparison first")
    return sorted(records, key=_place)


def table(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row a source, attacker and budget: mean over seeds, and lowest to highest of the fidelity."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(_place(record)[:3], []).append(record)
    rows = []
    for (source, attacker, _), runs in groups.items():
        low, high = (f"{each([run['fidelity'] for run in runs]):.2f}" for each in (min, max))
        row = {"queried": source, "copy": attacker, "queries": f"{np.mean([run['queries'] for run in runs]):.0f}"}
        row |= {name: f"{np.mean([run[name] for run in runs]):.3f}" for name in METRICS}
        rows.append(row | {"fidelity of seeds": f"{low} to {high}"})
    return rows


def budget_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Fidelity and cosine against answered queries, a panel a source; lines of copies without a budget are flat."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(record["settings"]["source"] for record in records))
    figure = Figure(figsize=(3.2 * len(sources) + 1, 3.4), layout="constrained")
    attackers = list(dict.fromkeys(record["settings"]["attacker"] for record in records))
    panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    for axes, source in zip(panels, sources, strict=True):
        here = [record for record in records if record["settings"]["source"] == source]
        for number, attacker in enumerate(attackers):
            runs = [record for record in here if record["settings"]["attacker"] == attacker]
            budgets = sorted({record["settings"]["budget"] for record in runs})
            of = [[run for run in runs if run["settings"]["budget"] == budget] for budget in budgets]
            fidelity = [float(np.mean([run["fidelity"] for run in each])) for each in of]
            if len(budgets) > 1:
                queries = [float(np.mean([run["queries"] for run in each])) for each in of]
                axes.plot(queries, fidelity, "o-", color=f"C{number}", label=attacker)
            elif budgets:
                axes.axhline(fidelity[0], linestyle=":", color=f"C{number}", label=attacker)
        axes.set(title=source, xlabel="answered queries", xscale="log", ylim=(-0.03, 1.03))
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="agreement with the victim")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def write_tables(out: Path) -> list[dict[str, str]]:
    """Writes `FILES` into `out` and returns the rows of the table."""
    records = read_runs(out)
    rows = table(records)
    write_csv(out / FILES[0], rows)
    write_figure(out / FILES[1], budget_figure(records))
    return rows


def _place(record: Mapping[str, Any]) -> tuple[str, str, float, int]:
    settings = record["settings"]
    return settings["source"], settings["attacker"], float(settings["budget"]), int(settings["seed"])
