"""What the runs of `trl_comparison` say: a table of arms, refusal at equal task loss, and the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from aisec_common.files import write_atomic, write_csv, write_figure
from aisec_common.stats import PairedMean
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("comparison.csv", "equal-task-loss.json", "frontier.png", "drift.png")

Record = Mapping[str, Any]
Floats = NDArray[np.float64]


def load_runs(folder: Path) -> list[Record]:
    """The records of all finished runs in `folder/runs`.

    Raises:
        ValueError: where there is none.
    """
    runs = [json.loads(file.read_text()) for file in sorted((folder / "runs").glob("*.json"))]
    if not runs:
        raise ValueError(f"{folder} has no finished run; start with `procon compare --out {folder}`")
    return runs


def label(record: Record) -> str:
    """`before`, or the arm's name and α."""
    arm = record["settings"]["arm"]
    if arm is None:
        return "before"
    return f"{arm['name']}-{arm['alpha']:g}" if arm["alpha"] else str(arm["name"])


def table(records: Sequence[Record]) -> list[dict[str, str]]:
    """One row an arm, means over seeds: refusal, over-refusal, task loss and the drift of the two deepest blocks."""
    rows = []
    for name in dict.fromkeys(map(label, records)):
        of_arm = [record for record in records if label(record) == name]

        def mean(value: Any, of_arm: Sequence[Record] = of_arm) -> str:
            return f"{np.mean([value(record) for record in of_arm]):.2f}"

        rows.append(
            {
                "arm": name,
                "seeds": str(len(of_arm)),
                "refusal rate": mean(lambda r: np.mean(r["flagged"]["refused"])),
                "refusal log-odds": mean(lambda r: np.mean(r["flagged"]["log_odds"])),
                "over-refusal": mean(lambda r: np.mean(r["neutral"]["refused"])),
                "task loss": mean(lambda r: np.mean(r["task_loss"])),
                "cosine, two deepest": mean(lambda r: np.mean(r["cosines"][-2:])),
            }
        )
    return rows


def at_equal_task_loss(records: Sequence[Record], *, points: int = 21) -> dict[str, Any]:
    """Whether ProCon's curve of refusal over task loss lies above the random directions'.

    Of every seed both curves run through plain fine-tuning (α = 0) and the arms' α. At `points` task losses that both
    reach, refusal log-odds are interpolated for each question; its effect is the mean difference over losses and seeds.
    The interval is over questions (paired, 95 %) for these given models: it says nothing on further seeds.

    Returns:
        `effect`, `low`, `high`, `verdict`, `seeds` (the effect in each), `losses` (range per seed).
    """
    effects, ranges = [], []
    for seed in sorted({int(record["settings"]["seed"]) for record in records}):
        curves = {name: _curve(records, name, seed) for name in ("procon_s", "random")}
        if any(len(losses) < 2 for losses, _ in curves.values()):
            continue
        low = max(losses[0] for losses, _ in curves.values())
        high = min(losses[-1] for losses, _ in curves.values())
        ranges.append([float(low), float(high)])
        if low >= high:
            continue
        losses = np.linspace(low, high, points)
        at = {name: _interpolated(losses, *curve) for name, curve in curves.items()}
        effects.append((at["procon_s"] - at["random"]).mean(axis=0))
    if not effects:
        return {"verdict": "undecided: the curves share no task loss", "losses": ranges}
    mean = PairedMean(np.mean(effects, axis=0))
    low, high = mean.interval(0.95)
    verdict = "holds" if low > 0 else "fails" if high < 0 else "undecided"
    seeds = [float(effect.mean()) for effect in effects]
    return {"effect": mean.mean, "low": low, "high": high, "verdict": verdict, "seeds": seeds, "losses": ranges}


def write_comparison(folder: Path) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Writes `FILES` from the runs in a folder; returns `table` and `at_equal_task_loss`.

    Raises:
        ValueError: where there is no finished run.
    """
    records = load_runs(folder)
    rows, found = table(records), at_equal_task_loss(records)
    write_csv(folder / "comparison.csv", rows)
    write_atomic(folder / "equal-task-loss.json", json.dumps(found, indent=1) + "\n")
    write_figure(folder / "frontier.png", frontier_figure(records))
    write_figure(folder / "drift.png", drift_figure(records))
    return rows, found


def frontier_figure(records: Sequence[Record]) -> Figure:
    """Refusal log-odds over task loss: one line a method through its α, thin lines for seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.add_subplot()
    seeds = sorted({int(record["settings"]["seed"]) for record in records})
    for name, title, colour in (("procon_s", "ProCon", "C0"), ("random", "random direction", "C1")):
        for seed in seeds:
            losses, odds = _curve(records, name, seed)
            if len(losses):
                axes.plot(losses, odds.mean(axis=1), "o-", color=colour, alpha=0.8, label=title if not seed else None)
    for name, title, marker in (
        ("procon_wu", "ProCon, warm-up", "s"),
        ("random_wu", "random direction, warm-up", "x"),
        ("sft_long", "SFT, as many steps", "^"),
    ):
        for record in (r for r in records if r["settings"]["arm"] and r["settings"]["arm"]["name"] == name):
            first = not record["settings"]["seed"]
            x, y = np.mean(record["task_loss"]), np.mean(record["flagged"]["log_odds"])
            axes.plot(x, y, marker, color="0.3", label=title if first else None)
    axes.axhline(0, color="0.7", lw=0.8)
    axes.set(
        xlabel="loss on held-out task rows (nats per token)", ylabel="refusal log-odds, held-out flagged questions"
    )
    axes.legend(frameon=False)
    return figure


def drift_figure(records: Sequence[Record]) -> Figure:
    """Signed cosine of the refusal direction before and after, by block, mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.add_subplot()
    for name in dict.fromkeys(map(label, records)):
        if name != "before":
            cosines = np.mean([record["cosines"] for record in records if label(record) == name], axis=0)
            axes.plot(np.arange(1, len(cosines) + 1), cosines, label=name)
    axes.axhline(0, color="0.7", lw=0.8)
    axes.set(xlabel="block", ylabel="cosine of r before and after", ylim=(None, 1.02))
    axes.legend(frameon=False, fontsize="small", ncols=2)
    return figure


def _curve(records: Sequence[Record], name: str, seed: int) -> tuple[Floats, Floats]:
    """Task losses in ascending order, and log-odds [points, questions]."""
    points = [
        (float(np.mean(record["task_loss"])), record["flagged"]["log_odds"])
        for record in records
        if (arm := record["settings"]["arm"]) and arm["name"] in (name, "sft") and record["settings"]["seed"] == seed
    ]
    points.sort(key=lambda point: point[0])
    return np.array([loss for loss, _ in points]), np.array([odds for _, odds in points])


def _interpolated(at: Floats, losses: Floats, odds: Floats) -> Floats:
    return np.stack([np.interp(at, losses, odds[:, question]) for question in range(odds.shape[1])], axis=1)
