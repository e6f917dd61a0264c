"""What reports and the command call the scenarios and the defences."""

from __future__ import annotations

from typing import Literal, get_args

ScenarioName = Literal[
    "domain-level", "graph-specific", "architecture-mismatch", "query-budget", "partial-access", "data-discrepancy"
]
SCENARIOS: tuple[ScenarioName, ...] = get_args(ScenarioName)
"""S1 to S6, in the order of the paper."""
DefenseName = Literal[
    "keyed-noise", "fresh-noise", "quantize", "project", "label-only", "budget", "watermark", "monitor"
]
DEFENSES: tuple[DefenseName, ...] = get_args(DefenseName)


class UnfitDefense(ValueError):
    """A defence for which a graph is too small or its texts are too poor; a report goes on without it."""
