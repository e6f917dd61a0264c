"""What the runs of `real_comparison` say: C-index by fold, leads with their intervals, Kaplan-Meier curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common.files import write_csv, write_figure
from aisec_common.stats import PairedMean

from icfnet.report import kaplan_meier_figure
from icfnet.sksurv_report import risk_halves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from icfnet.cohort import Cohort

Record = Mapping[str, Any]
METHOD = "icfnet-all-minilm-l6-v2"
DRAWN = (METHOD, "coxnet", "rsf")
FILES = ("comparison.csv", "leads.csv", "kaplan_meier.png")


def load_runs(folder: Path) -> dict[str, list[Record]]:
    """Setting -> its records in the order of the folds, for settings of which every fold is there.

    Raises:
        ValueError: where there is none.
    """
    found: dict[str, list[Record]] = {}
    for file in sorted((folder / "runs").glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(record["settings"]["setting"], []).append(record)
    folds = max((len(records) for records in found.values()), default=0)
    if not folds:
        raise ValueError(f"{folder} has no finished run; start with `icfnet compare --out {folder}`")
    for records in found.values():
        records.sort(key=lambda record: int(record["settings"]["fold"]))
    return {name: records for name, records in found.items() if len(records) == folds}


def comparison(runs: Mapping[str, Sequence[Record]], cohort: Cohort) -> list[dict[str, str]]:
    """One row a setting: C-index of each fold, its mean and population deviation, and the other scores' means."""
    rows = []
    for name, records in sorted(runs.items(), key=lambda item: -_mean(item[1], "c_index")):
        scores = [float(record["c_index"]) for record in records]
        curve = [record["best_epoch"] for record in records]
        rows.append(
            {
                "model": name,
                **{f"fold {fold}": f"{score:.3f}" for fold, score in enumerate(scores)},
                "C-index, last epoch": f"{np.mean(scores):.3f} ± {np.std(scores):.3f}",
                "best epoch on the test fold (optimistic)": "–" if None in curve else f"{np.mean(curve):.3f}",
                "IPCW C-index": f"{_mean(records, 'ipcw'):.3f}",
                "integrated Brier score": f"{_mean(records, 'ibs'):.3f}",
                "pooled log-rank p": f"{pooled_halves(records, cohort)[1]:.2g}",
            }
        )
    return rows


def leads(runs: Mapping[str, Sequence[Record]]) -> list[dict[str, str]]:
    """C-index of ICFNet with the real text tower less that of each other setting, paired over folds.

    Intervals are 95 % each, by Student's t over the folds, and not adjusted for their number. Training sets of
    folds overlap, so that they are somewhat too narrow.
    """
    if METHOD not in runs:
        return []
    method = [float(record["c_index"]) for record in runs[METHOD]]
    rows = []
    for name, records in runs.items():
        if name == METHOD:
            continue
        mean = PairedMean([a - float(b["c_index"]) for a, b in zip(method, records, strict=True)])
        low, high = mean.interval(0.95)
        brier = PairedMean([a["ibs"] - b["ibs"] for a, b in zip(runs[METHOD], records, strict=True)])
        below, above = brier.interval(0.95)
        rows.append(
            {
                f"{METHOD} less": name,
                "C-index": f"{mean.mean:+.3f} [{low:+.3f}, {high:+.3f}]",
                "integrated Brier score (negative is better)": f"{brier.mean:+.3f} [{below:+.3f}, {above:+.3f}]",
            }
        )
    return rows


def pooled_halves(records: Sequence[Record], cohort: Cohort) -> tuple[Any, float]:
    """Curves and log-rank p of all test patients, each in the half of its own fold (risks differ in scale).

    Records hold risks; outcomes stay with the cohort they belong to.
    """
    place = {name: row for row, name in enumerate(cohort.ids)}
    rows, ranks = [], []
    for record in records:
        risk = np.array([patient["risk"] for patient in record["patients"]])
        rows += [place[patient["id"]] for patient in record["patients"]]
        ranks.append((risk > np.median(risk)).astype(np.float64))
    return risk_halves(cohort.surv()[rows], np.concatenate(ranks))


def figure(runs: Mapping[str, Sequence[Record]], cohort: Cohort) -> Figure:
    """Kaplan-Meier curves of the pooled halves, a panel for ICFNet and each peer."""
    halves = {name: pooled_halves(runs[name], cohort) for name in DRAWN if name in runs}
    return kaplan_meier_figure({n: curves for n, (curves, _) in halves.items()}, {n: p for n, (_, p) in halves.items()})


def write_tables(folder: Path, cohort: Cohort) -> list[dict[str, str]]:
    """Writes `comparison.csv`, `leads.csv` and `kaplan_meier.png` from the runs in a folder; returns the leads."""
    runs = load_runs(folder)
    found = leads(runs)
    for name, rows in (("comparison", comparison(runs, cohort)), ("leads", found)):
        write_csv(folder / f"{name}.csv", rows)
    write_figure(folder / "kaplan_meier.png", figure(runs, cohort))
    return found


def _mean(records: Sequence[Record], metric: str) -> float:
    return float(np.mean([record[metric] for record in records]))
