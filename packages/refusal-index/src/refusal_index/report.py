"""The report of a two-pass evaluation: indices, comparison metrics, stability and homogeneity over prompts."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from aisec_common.files import write_atomic
from aisec_common.result import finite, text_hash
from numpy.random import Generator
from scipy.special import ndtri

from refusal_index import metrics
from refusal_index.comparison import paired_difference
from refusal_index.estimate import NO_INTERVAL, RefusalIndex, check_resamples, refusal_index
from refusal_index.graded import Outcomes, graded_table, outcomes, stacked
from refusal_index.homogeneity import Homogeneity, homogeneity, paired_homogeneity
from refusal_index.intervals import bootstrap_counts, bootstrap_ri, check_level, percentile_interval
from refusal_index.readers import read_rows
from refusal_index.stability import coefficient_of_variation, relative_range
from refusal_index.table import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
METRICS = ("correct_rate", "refusal_rate", "correct_given_attempted", "f_score", "weighted_score")


@dataclass(frozen=True, kw_only=True, eq=False)
class RefusalReport:
    """What a two-pass evaluation of one model says, under each of its prompts.

    Args:
        table: graded results, see `graded_table`.
        model: name of the model.
        settings: how the answers were made, such as temperature and grader.
        penalty: p of the weighted score c - p (1 - r).
        level: confidence level of all intervals.
        resamples: bootstrap replicates.

    Raises:
        ValueError: in one line, for results that cannot be scored (a refused question without a second-pass label is
            named), or a level, number of resamples or penalty out of range.

    >>> report = RefusalReport(table=[
    ...     {"question_id": i, "prompt": "p", "pass": 1, "label": label}
    ...     for i, label in enumerate(["CORRECT"] * 40 + ["INCORRECT"] * 20 + ["NOT_ATTEMPTED"] * 20)
    ... ] + [
    ...     {"question_id": i, "prompt": "forced", "pass": 2, "label": "CORRECT" if i < 66 else "INCORRECT"}
    ...     for i in range(60, 80)
    ... ])
    >>> print(report.summary()[["prompt", "RI [95 %]", "n11", "n10"]].to_string(index=False))
    prompt         RI [95 %] n11 n10
         p 0.50 [0.17, 0.77]  14   6
    """

    table: pd.DataFrame
    model: str = "model"
    settings: Mapping[str, Any] = field(default_factory=dict)
    penalty: float = 0.2
    level: float = 0.95
    resamples: int = 1000

    def __post_init__(self) -> None:
        check_level(self.level)
        check_resamples(self.resamples)
        if not math.isfinite(self.penalty):
            raise ValueError(f"penalty must be a finite number, not {self.penalty}")
        object.__setattr__(self, "table", graded_table(self.table))
        _ = self.outcomes

    @cached_property
    def outcomes(self) -> dict[str, Outcomes]:
        """Refusals and errors by prompt."""
        return outcomes(self.table)

    @cached_property
    def indices(self) -> dict[str, RefusalIndex]:
        """Refusal Index by prompt; what would be a warning stands in the column `notes` of `to_frame`."""
        found = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for prompt, outcome in self.outcomes.items():
                found[prompt] = refusal_index(counts=outcome.counts, level=self.level, resamples=self.resamples)
        return found

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt: ri and the comparison metrics with interval ends, counts and notes.

        Columns `X`, `X_low`, `X_high` for X in ri, correct_rate c, refusal_rate r, correct_given_attempted C/A,
        f_score F and weighted_score; then n11, n10, n01, n00, n, interval (how that of ri was made), boundary,
        small_cells and notes.
        """
        rows = []
        for prompt, index in self.indices.items():
            row: dict[str, Any] = {"prompt": prompt}
            row |= _with_interval("ri", index.ri, index.ci)
            counts = np.array(index.counts, dtype=float)
            values = self._metrics(counts)
            resampled = self._metrics(bootstrap_counts(counts, self.resamples))
            for name in METRICS:
                row |= _with_interval(name, float(values[name]), percentile_interval(resampled[name], self.level))
            row |= dict(zip(("n11", "n10", "n01", "n00"), index.counts, strict=True), n=index.n)
            row |= {"interval": index.ci_kind, "boundary": index.boundary, "small_cells": index.small_cells}
            rows.append(row | {"notes": _notes(index)})
        return pd.DataFrame(rows).set_index("prompt")

    def summary(self) -> pd.DataFrame:
        """`to_frame` for people: one column of text per metric, the index with its interval, counts and notes."""
        frame = self.to_frame()
        shown: dict[str, list[str]] = {"prompt": [str(prompt) for prompt in frame.index]}
        ri = zip(frame["ri"], frame["ri_low"], frame["ri_high"], strict=True)
        shown[f"RI [{100 * self.level:g} %]"] = [interval_text(*ends) for ends in ri]
        for short, name in zip(("c", "r", "C/A", "F", "weighted"), METRICS, strict=True):
            shown[short] = [number_text(value) for value in frame[name]]
        for cell in ("n11", "n10", "n01", "n00"):
            shown[cell] = [f"{value:g}" for value in frame[cell]]
        return pd.DataFrame({**shown, "notes": frame["notes"].tolist()})

    def stability(self) -> pd.DataFrame:
        """How much each metric moves over the prompts: `delta` (signed, most less least refusing) and `cv`.

        Raises:
            ValueError: for a single prompt.
        """
        if len(self.indices) < 2:
            raise ValueError("stability needs at least 2 prompts")
        frame = self.to_frame()
        rates = frame["refusal_rate"].to_numpy()
        values = {name: frame[name].to_numpy() for name in ("ri", *METRICS)}
        moved = {name: float(relative_range(v, rates)) for name, v in values.items()}
        spread = {name: float(coefficient_of_variation(v)) for name, v in values.items()}
        return pd.DataFrame({"delta": moved, "cv": spread}).rename_axis("metric")

    def homogeneity(self, prompts: Sequence[str] | None = None) -> Homogeneity:
        """Whether one index is enough for these prompts (all by default): a small p-value says no.

        Prompts of which no two share a question are tested against chi-square. All others are tested by a paired
        bootstrap on the questions that every one of them has; questions that some lack are left out.

        Raises:
            ValueError: for fewer than 2 prompts, an unknown one, one with an empty cell (no standard error), or
                prompts of which some share questions while none is common to all.
        """
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of names such as [{prompts!r}], not one text")
        chosen = list(self.indices) if prompts is None else list(prompts)
        if unknown := set(chosen) - set(self.indices):
            raise ValueError(f"prompts: {sorted(unknown)[0]!r} is none of {', '.join(self.indices)}")
        if len(chosen) < 2:
            raise ValueError("homogeneity needs at least 2 prompts")
        asked = [set(self.outcomes[name].ids) for name in chosen]
        disjoint = len(set.union(*asked)) == sum(map(len, asked))
        common = set.intersection(*asked)
        if not disjoint and not common:
            raise ValueError("prompts: some share questions but none is common to all; choose prompts that do")
        kept = {name: self.outcomes[name] if disjoint else self.outcomes[name].only(common) for name in chosen}
        if empty := [name for name, outcome in kept.items() if min(outcome.counts) == 0]:
            raise ValueError(f"prompts: an empty cell leaves no standard error for {', '.join(empty)}")
        if disjoint:
            return homogeneity([self.indices[name] for name in chosen])
        _, refused, wrong = stacked(kept)
        return paired_homogeneity(refused, wrong, resamples=self.resamples)

    def plot(self) -> Figure:
        """Correct rate against refusal rate of every prompt, on the iso-RI curves behind them."""
        from refusal_index.iso_curve import plot_iso_curves

        return plot_iso_curves({self.model: list(self.indices.values())})

    def save(self, folder: Path | str) -> None:
        """Writes `graded.jsonl` (a row per question, prompt and pass), `report.json` and `summary.csv`, each whole."""
        folder = Path(folder)
        lines = self.table.to_dict("records")
        text = "".join(json.dumps(_present(line), ensure_ascii=False) + "\n" for line in lines)
        summary = {
            "schema": SCHEMA,
            "model": self.model,
            "settings": dict(self.settings),
            "penalty": self.penalty,
            "level": self.level,
            "resamples": self.resamples,
            "graded_sha256": text_hash(text),
            "prompts": self.to_frame().reset_index().to_dict("records"),
        }
        if len(self.indices) > 1:
            summary["stability"] = self.stability().reset_index().to_dict("records")
        write_atomic(folder / "graded.jsonl", text)
        content = json.dumps(finite(summary), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(folder / "report.json", f"{content}\n")
        write_atomic(folder / "summary.csv", self.summary().to_csv(index=False))

    @classmethod
    def load(cls, folder: Path | str) -> RefusalReport:
        """Reads what `save` wrote.

        Raises:
            ValueError: in one line naming the file, if it is missing, of another kind or was changed.
        """
        path, rows = Path(folder) / "report.json", Path(folder) / "graded.jsonl"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
            named = {name: content[name] for name in ("model", "settings", "penalty", "level", "resamples")}
            digest = content["graded_sha256"]
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}); give the folder of a report") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: is not a report of refusal-index ({error})") from None
        table = read_rows(rows)
        if text_hash(rows.read_text(encoding="utf-8")) != digest:
            raise ValueError(f"{rows}: does not belong to {path.name}; it was changed after the report was written")
        return cls(table=table, **named)

    def _metrics(self, counts: Floats) -> dict[str, Floats]:
        c, r = metrics.correct_rate(counts), metrics.refusal_rate(counts)
        return {
            "correct_rate": c,
            "refusal_rate": r,
            "correct_given_attempted": metrics.correct_given_attempted(c, r),
            "f_score": metrics.f_score(c, r),
            "weighted_score": metrics.weighted_score(c, r, self.penalty),
        }


def compare(
    reports: Mapping[str, RefusalReport],
    *,
    paired: bool = True,
    level: float = 0.95,
    resamples: int = 1000,
    rng: int | Generator = 0,
) -> pd.DataFrame:
    """Differences of Refusal Indices between models, for every pair of reports and every prompt they share.

    Args:
        reports: at least two reports by name.
        paired: the reports share their questions, which are then resampled jointly; False resamples each report on
            its own and suits different question sets. There a cell below 5 puts the analytic interval, the difference
            +- z sqrt(SE_a^2 + SE_b^2), in place of the bootstrap.
        level: confidence level.
        resamples: bootstrap replicates.
        rng: seed or generator.

    Returns:
        Rows a, b, prompt, ri_a, ri_b, difference (a less b), low, high, dropped (share of resamples without a
        difference; above 5 % the interval is NaN, as it is where an empty cell puts an index on its bound) and notes.

    Raises:
        ValueError: for fewer than two reports, no shared prompt, a level or number of resamples out of range, or, when
            paired, questions that one of them lacks.

    >>> rows = [{"question_id": i, "prompt": "p", "pass": 1, "label": "CORRECT"} for i in range(60)]
    >>> rows += [{"question_id": i, "prompt": "p", "pass": 1, "label": "INCORRECT"} for i in range(60, 80)]
    >>> rows += [{"question_id": i, "prompt": "p", "pass": 1, "label": "NOT_ATTEMPTED"} for i in range(80, 110)]
    >>> def forced(right):
    ...     answers = [("CORRECT" if i < 80 + right else "INCORRECT") for i in range(80, 110)]
    ...     rows2 = [{"question_id": 80 + i, "prompt": "p", "pass": 2, "label": a} for i, a in enumerate(answers)]
    ...     return RefusalReport(table=rows + rows2)
    >>> compare({"a": forced(5), "b": forced(25)})[["a", "b", "prompt", "difference"]].round(2).values.tolist()
    [['a', 'b', 'p', 0.92]]
    """
    if len(reports) < 2:
        raise ValueError("reports: needs at least 2 reports to compare")
    check_level(level)
    check_resamples(resamples)
    rows = []
    for a, b in combinations(reports, 2):
        first, second = reports[a], reports[b]
        shared = [prompt for prompt in first.outcomes if prompt in second.outcomes]
        if not shared:
            raise ValueError(f"reports: {a!r} and {b!r} share no prompt")
        for prompt in shared:
            ends = first.indices[prompt], second.indices[prompt]
            if paired:
                both = {a: first.outcomes[prompt], b: second.outcomes[prompt]}
                ci, dropped = _paired(both, level, resamples, rng)
            else:
                ci, dropped = _apart(*ends, level, resamples, rng)
            ri_a, ri_b = (index.ri for index in ends)
            row = {"a": a, "b": b, "prompt": prompt, "ri_a": ri_a, "ri_b": ri_b, "difference": ri_a - ri_b}
            notes = _difference_notes(dict(zip((a, b), ends, strict=True)), ci, dropped, paired)
            rows.append({**row, "low": ci[0], "high": ci[1], "dropped": dropped, "notes": notes})
    return pd.DataFrame(rows)


def _paired(
    both: Mapping[str, Outcomes], level: float, resamples: int, rng: int | Generator
) -> tuple[tuple[float, float], float]:
    try:
        _, refused, wrong = stacked(both)
    except ValueError as error:
        raise ValueError(f"reports: {error}; answer the same questions, or compare with paired=False") from None
    found = paired_difference(refused[0], wrong[0], refused[1], wrong[1], level=level, resamples=resamples, rng=rng)
    return found.ci, found.dropped


def _apart(
    x: RefusalIndex, y: RefusalIndex, level: float, resamples: int, rng: int | Generator
) -> tuple[tuple[float, float], float]:
    streams = np.random.default_rng(rng).spawn(2)
    replicates = [
        bootstrap_ri(np.array(index.counts, dtype=float), resamples, stream)
        for index, stream in zip((x, y), streams, strict=True)
    ]
    differences = replicates[0] - replicates[1]
    ci, dropped = percentile_interval(differences, level), float(np.isnan(differences).mean())
    if x.boundary or y.boundary or math.isnan(ci[0]):
        return NO_INTERVAL, dropped
    if x.small_cells or y.small_cells:
        centre, half = x.ri - y.ri, float(ndtri((1 + level) / 2)) * math.hypot(x.se, y.se)
        ci = max(-2.0, centre - half), min(2.0, centre + half)
    return ci, dropped


def _difference_notes(ends: Mapping[str, RefusalIndex], ci: tuple[float, float], dropped: float, paired: bool) -> str:
    notes = [f"{name} undefined: {index.undefined}" for name, index in ends.items() if index.undefined]
    if notes:
        return "; ".join(notes)
    if bound := [name for name, index in ends.items() if index.boundary]:
        return f"no interval: an empty cell puts the index of {' and '.join(bound)} on its bound"
    small = [name for name, index in ends.items() if index.small_cells]
    if small and not math.isnan(ci[0]):
        kind = "take the interval with care" if paired else "analytic interval"
        notes.append(f"a cell below 5 in {' and '.join(small)}: {kind}")
    if dropped > 0:
        notes.append(_dropped(dropped, ci))
    return "; ".join(notes)


def _dropped(share: float, ci: tuple[float, float]) -> str:
    return f"{'no interval: ' if math.isnan(ci[0]) else ''}{share:.1%} of the resamples undefined"


def _with_interval(name: str, value: float, ci: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_low": ci[0], f"{name}_high": ci[1]}


def _notes(index: RefusalIndex) -> str:
    if index.undefined:
        return f"undefined: {index.undefined}"
    if index.boundary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            near = refusal_index(counts=index.counts, ci="analytic", level=index.level, correction=0.5)
        inside = interval_text(near.ri, *near.ci)
        return f"an empty cell puts the index on its bound, without an interval; {inside} with 0.5 more in every cell"
    if math.isnan(index.ci[0]):
        return _dropped(index.dropped, index.ci)
    notes = ["a cell below 5: analytic interval"] if index.small_cells else []
    if index.dropped > 0:
        notes.append(_dropped(index.dropped, index.ci))
    return "; ".join(notes)


def interval_text(value: float, low: float, high: float) -> str:
    """A number with its interval, or without where there is none.

    >>> interval_text(0.5, 0.25, 0.75), interval_text(1.0, float("nan"), float("nan"))
    ('0.50 [0.25, 0.75]', '1.00')
    """
    return number_text(value) if np.isnan(low) else f"{number_text(value)} [{number_text(low)}, {number_text(high)}]"


def number_text(value: float) -> str:
    """Two decimals, or a dash for NaN."""
    return "–" if np.isnan(value) else f"{value:.2f}"


def _present(row: Mapping[Any, Any]) -> dict[str, Any]:
    # concatenated tables fill columns that one of them lacks with NaN
    return {str(name): value for name, value in row.items() if not (isinstance(value, float) and np.isnan(value))}
