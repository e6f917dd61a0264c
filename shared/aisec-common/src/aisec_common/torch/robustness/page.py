"""A robustness report as one HTML page that opens offline."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from aisec_common.files import write_atomic
from aisec_common.report import STYLE

if TYPE_CHECKING:
    from aisec_common.torch.robustness.result import RobustnessReport


def save_page(report: RobustnessReport, path: Path) -> Path:
    """Writes the page; without matplotlib it has no figure.

    Raises:
        ValueError: if the name does not end in `.html`.
    """
    if path.suffix != ".html":
        raise ValueError(f"path must end in .html, not {path.name!r}")
    write_atomic(path, page(report))
    return path


def page(report: RobustnessReport) -> str:
    """The page: what was done, figure, flags, table."""
    flags = "".join(f"<li>{escape(str(flag))}</li>" for flag in report.flags or ())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>robustness report</title><style>{STYLE}</style></head>\n<body>\n<h1>Robustness report</h1>\n"
        f"<p>{escape(report.header())}</p>\n{_figure(report)}\n"
        f"<p><b>{escape(report.verdict)}</b></p>\n<ul>{flags}</ul>\n{_table(*report.cells())}\n</body></html>\n"
    )


def _figure(report: RobustnessReport) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return "<p>No figure: install <code>aisec-common[report]</code>.</p>"
    buffer = io.BytesIO()
    report.figure().savefig(buffer, format="png", dpi=150)
    return (
        f'<img alt="accuracy against eps" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}\n</table></div>'
