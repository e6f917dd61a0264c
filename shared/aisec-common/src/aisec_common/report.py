"""One self-contained HTML report: figures first, then tables; opens offline and on a phone."""

from __future__ import annotations

import base64
import importlib.util
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from aisec_common.progress import duration
from aisec_common.result import Record, Records, outcomes_of
from aisec_common.study import Study
from aisec_common.table import COLUMNS, number, rows
from aisec_common.verdict import Judgement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"holds": "#1a7f37", "undecided": "#9a6700", "fails": "#cf222e", "skipped": "#57606a"}
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#1f2328}
img{max-width:100%;height:auto;display:block;margin:1rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}
th,td{border:1px solid #d0d7de;padding:.4rem .6rem;text-align:left;vertical-align:top}th{background:#f6f8fa}
small,.reason{color:#57606a}
@media(max-width:40rem){.stack tr:first-child{display:none}.stack tr,.stack td{display:block}
.stack tr{margin-bottom:1rem}.stack td::before{content:attr(data-column);display:block;color:#57606a;font-size:.8rem}}
"""
LEGEND = (
    "Dot with bar: the effect and its interval. Dashed: what it must exceed. Hollow: the control in the arm's place."
)


@dataclass(frozen=True, kw_only=True)
class RoomResult:
    """What a report shows of one room; `broken` says why it could not be loaded or read, and then the rest is empty."""

    name: str
    title: str = ""
    study: Study | None = None
    judgements: Sequence[Judgement] = ()
    records: Records = field(default_factory=dict)
    broken: str = ""


def html(results: Sequence[RoomResult]) -> str:
    """The report of several rooms as one HTML page without any outside reference."""
    body = "\n".join(_room(result) for result in results)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>aisec report</title><style>{STYLE}</style></head>\n"
        f"<body>\n<h1>aisec report</h1>\n{body}\n</body></html>\n"
    )


def _room(result: RoomResult) -> str:
    head = f"<h2>{escape(result.name)}</h2>\n<p>{escape(result.title)}</p>"
    if result.broken or result.study is None:
        return f"{head}\n<p>broken: {escape(result.broken)}</p>"
    return "\n".join([head, *_figures(result), _claims(result), _metrics(result), _made(result)])


def _figures(result: RoomResult) -> list[str]:
    if importlib.util.find_spec("matplotlib") is None:
        return ["<p>No figures: install <code>aisec-common[report]</code>.</p>"]
    assert result.study is not None
    outcomes = outcomes_of(result.records)
    drawn = []
    if any(j.effect is not None for j in result.judgements):
        drawn.append(_image("claims", lambda: claims_figure(result.judgements)))
        drawn.append(f"<p><small>{LEGEND}</small></p>")
    if outcomes:
        drawn += [_image(draw.__name__, lambda draw=draw: draw(outcomes)) for draw in result.study.figures]  # type: ignore[misc]
    return drawn


def _image(name: str, draw: Callable[[], Figure]) -> str:
    label = escape(name.replace("_", " "))
    buffer = io.BytesIO()
    try:
        draw().savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    except Exception as error:  # a figure of a third party's room must not cost the report
        return f"<p>Figure {label} could not be drawn: {escape(f'{type(error).__name__}: {error}')}</p>"
    return f'<img alt="{label}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def claims_figure(judgements: Sequence[Judgement]) -> Figure:
    """One line per claim: its effect with interval, the margin (dashed) and the control in its place (hollow)."""
    from matplotlib.figure import Figure

    shown = [j for j in judgements if j.effect is not None]
    figure = Figure(figsize=(5.5, 0.3 + 1.1 * len(shown)), layout="constrained")
    for axes, j in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        _claim_line(axes, j)
    return figure


def _claim_line(axes: Axes, j: Judgement) -> None:
    assert j.effect is not None
    axes.locator_params(axis="x", nbins=6)  # more labels of small effects run into each other
    axes.axvline(j.claim.margin, color="#57606a", linestyle="--", linewidth=1)
    if j.low is not None and j.high is not None:
        axes.plot([j.low, j.high], [0, 0], color=COLOURS[j.verdict], linewidth=3, solid_capstyle="butt")
    axes.plot(j.effect, 0, "o", color=COLOURS[j.verdict], markersize=8)
    if j.control_effect is not None:
        axes.plot(j.control_effect, 0, "o", markerfacecolor="white", markeredgecolor="#57606a", markersize=8)
    title = textwrap.fill(f"{j.claim.text}: {j.verdict}".replace("$", r"\$"), 75)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_yticks([])
    axes.margins(x=0.1)
    axes.spines[["left", "right", "top"]].set_visible(False)


def _claims(result: RoomResult) -> str:
    if not result.judgements:
        return ""
    return _table(COLUMNS, rows(result.judgements), stack=True)


def _metrics(result: RoomResult) -> str:
    """Mean over seeds of every metric, by arm."""
    values: dict[str, dict[str, list[float]]] = {}
    for arms in result.records.values():
        for arm, (record, _) in arms.items():
            for name, value in record.metrics.items():
                values.setdefault(arm, {}).setdefault(name, []).append(value)
    names = list(dict.fromkeys(name for of_arm in values.values() for name in of_arm))
    lines = [
        (arm, *(number(sum(of_arm[n]) / len(of_arm[n])) if n in of_arm else "–" for n in names))
        for arm, of_arm in values.items()
    ]
    return f"<h3>Means over {len(result.records)} seeds</h3>\n{_table(('arm', *names), lines)}" if lines else ""


def _made(result: RoomResult) -> str:
    records = [record for arms in result.records.values() for record, _ in arms.values()]
    return f"<p><small>{escape(made_with(records))}</small></p>" if records else ""


def made_with(records: Sequence[Record]) -> str:
    """Scale, seeds, computing time, versions and device of records, in one line."""
    seconds = sum(record.seconds for record in records)
    versions = sorted({f"{name} {version}" for record in records for name, version in record.versions.items()})
    seeds = len({record.seed for record in records})
    return (
        f"Scale {records[0].scale}, {seeds} seeds, {duration(seconds)} of computing, peak memory "
        f"{max(record.peak_memory_mib for record in records):.0f} MiB; {', '.join(versions)}; "
        f"{', '.join(sorted({record.device for record in records}))}."
    )


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]], *, stack: bool = False) -> str:
    """A table that scrolls on a narrow screen, or whose rows become blocks there (`stack`)."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join(
        "<tr>" + "".join(_data(column, cell) for column, cell in zip(columns, line, strict=True)) + "</tr>"
        for line in lines
    )
    kind = "stack" if stack else "wide"
    return f'<div class="{kind}"><table><tr>{head}</tr>\n{body}\n</table></div>'


def _data(column: str, cell: str) -> str:
    verdict, colon, reason = cell.partition(":")
    text = escape(cell)
    if colon and verdict in COLOURS:
        text = f'<b style="color:{COLOURS[verdict]}">{verdict}</b><span class="reason">:{escape(reason)}</span>'
    return f'<td data-column="{escape(column)}">{text}</td>'
