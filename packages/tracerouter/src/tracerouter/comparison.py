"""What the runs of `hf_comparison` say: a table of cuts, the path against each control, and the figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common.files import write_csv, write_figure
from aisec_common.stats import PairedMean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
FILES = ("comparison.csv", "differences.csv", "frontier.png")
COLUMNS = (
    ("units", "units", "d"),
    ("flagged topic refused", "asr", ".2f"),
    ("countries right", "utility", ".2f"),
    ("countries refused", "over_refusal", ".2f"),
    ("perplexity", "perplexity", ".1f"),
)
AGAINST = ("none", "local", "random", "delta_wfs", "printed_fis")


def load_runs(folder: Path) -> list[Record]:
    """The records of all finished runs in `folder/runs`.

    Raises:
        ValueError: where there is none.
    """
    runs = [json.loads(file.read_text()) for file in sorted((folder / "runs").glob("*.json"))]
    if not runs:
        raise ValueError(f"{folder} has no finished run; start with `tracerouter compare --out {folder}`")
    return runs


def table(records: Sequence[Record]) -> list[dict[str, str]]:
    """One row a place, budget and setting; seeds are few and may differ widely, so each is shown."""
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for record in sorted(records, key=_seed):
        groups.setdefault(_where(record), []).append(record)
    rows = []
    for (sites, budget, setting), group in sorted(groups.items()):
        each = {
            name: " / ".join(format(record.get(field, 0), digits) for record in group)
            for name, field, digits in COLUMNS
        }
        rows.append({"sites": sites or "–", "K": str(budget or "–"), "cut": setting, **each})
    return rows


def differences(records: Sequence[Record]) -> list[dict[str, str]]:
    """J = utility - ASR of the path less that of each other setting at the same place and budget, a column a seed.

    Both shares are over the same prompts, flagged and neutral paired by their number; 95 % over prompts, for the model
    of that seed alone.
    """
    seeds = sorted({_seed(record) for record in records})
    rows = []
    for sites, budget in sorted({_where(record)[:2] for record in records if _where(record)[2] == "path"}):
        for other in AGAINST:
            found = {}
            for seed in seeds:
                path = _find(records, seed, sites, budget, "path")
                against = _find(records, seed, *(("", 0) if other == "none" else (sites, budget)), other)
                if path and against:
                    found[f"J, seed {seed}"] = _told(PairedMean(_gain(path) - _gain(against)))
            if found:
                columns = {f"J, seed {seed}": found.get(f"J, seed {seed}", "–") for seed in seeds}
                rows.append({"sites": sites, "K": str(budget), "path over": other, **columns})
    return rows


def _told(mean: PairedMean) -> str:
    low, high = mean.interval(0.95)
    verdict = "holds" if low > 0 else "fails" if high < 0 else "undecided"
    return f"{mean.mean:.2f} [{low:.2f}, {high:.2f}] {verdict}"


def write_comparison(folder: Path) -> list[dict[str, str]]:
    """Writes `comparison.csv`, `differences.csv` and `frontier.png` from the runs in a folder."""
    records = load_runs(folder)
    found = differences(records)
    for name, rows in (("comparison", table(records)), ("differences", found)):
        write_csv(folder / f"{name}.csv", rows)
    write_figure(folder / "frontier.png", frontier_figure(records))
    return found


def frontier_figure(records: Sequence[Record]) -> Figure:
    """Refusals of the flagged topic over the perplexity elsewhere, a panel for each place, a mark for each cut."""
    from matplotlib.figure import Figure

    places = sorted({_where(record)[0] for record in records} - {""})
    figure = Figure(figsize=(5.2 * max(1, len(places)), 4.2), layout="constrained")
    settings = dict.fromkeys(str(record["settings"]["setting"]) for record in records)
    panels = figure.subplots(1, max(1, len(places)), sharex=True, squeeze=False)[0]
    for place, axes in zip(places, panels, strict=False):
        for colour, setting in enumerate(settings):
            chosen = [r for r in records if r["settings"]["setting"] == setting and _where(r)[0] in (place, "")]
            x, y = [r["perplexity"] for r in chosen], [r["asr"] for r in chosen]
            axes.plot(x, y, "o" if setting != "path" else "*", ms=6 if setting != "path" else 12, color=f"C{colour}")
            axes.lines[-1].set_label(setting)
        axes.set(title=place, xlabel="perplexity of documentation pages", ylabel="flagged topic refused", xscale="log")
        axes.set_ylim(-0.05, 1.05)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _where(record: Record) -> tuple[str, int, str]:
    about = record["settings"]
    return str(about.get("sites", "")), int(about.get("budget", 0)), str(about["setting"])


def _seed(record: Record) -> int:
    return int(record["settings"]["seed"])


def _find(records: Sequence[Record], seed: int, sites: str, budget: int, setting: str) -> Record | None:
    for record in records:
        if _seed(record) == seed and _where(record) == (sites, budget, setting):
            return record
    return None


def _gain(record: Record) -> Any:
    return np.array(record["served"], dtype=float) - np.array(record["attacked"], dtype=float)
