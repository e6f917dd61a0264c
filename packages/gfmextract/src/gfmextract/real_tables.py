"""Tables and the figure of the comparison on real models, from the records of its copies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common.files import write_csv, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("comparison.csv", "budgets.png")
VALIDITY = "validity.csv"
"""Written where a victim was compared with the texts alone."""
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


def validity(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """One row a graph that the victim never saw: what it gains over the texts of nodes alone, see `gain_over_text`.

    The victim is one and its answers do not depend on a seed, so that the first record of a graph says all.
    """
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        if "gain" in record:
            source = record["settings"]["source"]
            told = {"queried, read": source, "nodes": str(record["nodes"]), "texts alone": f"{record['accuracy']:.3f}"}
            told |= {"texts of neighbours too": f"{record['neighbours_accuracy']:.3f}"}
            told |= {"victim": f"{record['victim_accuracy']:.3f}", "gain": f"{record['gain']:+.3f}"}
            told["interval"] = f"{record['gain_low']:+.3f} to {record['gain_high']:+.3f}"
            rows.setdefault(source, told | {"valid": "yes" if record["gain_low"] > 0 else "no"})
    return list(rows.values())


def budget_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Fidelity and cosine against answered queries, a panel a source; lines of copies without a budget are flat."""
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(record["settings"]["source"] for record in records))
    lines = 1 if len(sources) <= 4 else 2
    columns = -(-len(sources) // lines)
    figure = Figure(figsize=(3.2 * columns + 1, 3.2 * lines + 0.2), layout="constrained")
    attackers = list(dict.fromkeys(record["settings"]["attacker"] for record in records))
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for axes in panels[len(sources) :]:
        axes.set_axis_off()
    for axes, source in zip(panels, sources, strict=False):
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
        asked = sorted({round(record["queries"]) for record in here if record["queries"]})
        asked = [few for few, more in pairwise([*asked, math.inf]) if more > 1.2 * few]  # or labels overlap
        axes.set_xticks(asked, [str(each) for each in asked])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    for axes in panels[::columns]:
        axes.set(ylabel="agreement with the victim")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


def write_tables(out: Path) -> list[dict[str, str]]:
    """Writes `FILES` into `out`, and `VALIDITY` where there is any, and returns the rows of the table."""
    records = read_runs(out)
    rows = table(records)
    write_csv(out / FILES[0], rows)
    write_figure(out / FILES[1], budget_figure(records))
    if told := validity(records):
        write_csv(out / VALIDITY, told)
    return rows


def _place(record: Mapping[str, Any]) -> tuple[str, str, float, int]:
    settings = record["settings"]
    return settings["source"], settings["attacker"], float(settings["budget"]), int(settings["seed"])
