"""The one table of a study, as rows of text: what `aisec reproduce` prints and the report and README repeat."""

from __future__ import annotations

from collections.abc import Sequence

from aisec_common.verdict import Judgement

COLUMNS = ("claim", "paper", "ours [interval]", "control in its place", "verdict")


def rows(judgements: Sequence[Judgement]) -> list[tuple[str, ...]]:
    """One row per claim, in the order of COLUMNS."""
    return [
        (j.claim.text, j.claim.paper or "–", _ours(j), number(j.control_effect), f"{j.verdict}: {j.reason}")
        for j in judgements
    ]


def _ours(j: Judgement) -> str:
    text = number(j.effect)
    if j.low is not None and j.level is not None:
        text += f" [{number(j.low)}, {number(j.high)}] at {100 * j.level:.3g} %"
    return text + (f", wanted > {j.claim.margin:g}" if j.claim.margin and j.effect is not None else "")


def number(value: float | None) -> str:
    """Three significant digits, or a dash.

    >>> number(0.12345), number(None), number(-0.0001234)
    ('0.123', '–', '-0.000123')
    """
    return "–" if value is None else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Mean and, of more than one, standard deviation.

    >>> spread([0.5]), spread([1.0, 2.0]), spread([])
    ('0.5', '1.5 ± 0.707', '–')
    """
    import statistics

    if len(values) < 2:
        return number(values[0] if values else None)
    return f"{number(statistics.fmean(values))} ± {number(statistics.stdev(values))}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; pipes and line breaks in cells are escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def plain(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int = 100) -> str:
    """A table for a terminal of `width` characters, long cells wrapped, without any dependency."""
    import textwrap

    natural = [max(len(str(line[i])) for line in [columns, *rows]) for i in range(len(columns))]
    room = width - 2 * (len(columns) - 1)
    widths = [min(n, max(12, room * n // max(1, sum(natural)))) for n in natural]
    out = []
    for line in [columns, ["-" * w for w in widths], *rows]:
        cells = [textwrap.wrap(str(cell), w) or [""] for cell, w in zip(line, widths, strict=True)]
        for k in range(max(map(len, cells))):
            parts = [(cell[k] if k < len(cell) else "").ljust(w) for cell, w in zip(cells, widths, strict=True)]
            out.append("  ".join(parts).rstrip())
    return "\n".join(out)
