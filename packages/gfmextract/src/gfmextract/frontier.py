"""The frontier of defences: utility left to honest users against the fidelity of the best copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def protected_area(points: Iterable[tuple[float, float]]) -> float:
    """How much of the square of utility and 1 - fidelity the settings of some defences reach together, 0 to 1.

    Args:
        points: (utility, fidelity) pairs; one reaches all that is neither more useful nor better protected.

    Returns:
        The area of the union of the rectangles utility x (1 - fidelity).

    >>> round(protected_area([(0.9, 0.5), (0.5, 0.2)]), 3)  # 0.9 * 0.5 + 0.5 * 0.3
    0.6

    Source: ours.
    """
    area = best = 0.0
    for utility, fidelity in sorted(points, reverse=True):
        area += max(0.0, (1 - fidelity) - best) * utility
        best = max(best, 1 - fidelity)
    return area


def frontier_points(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(defence, setting) -> utility, and the fidelity of who takes answers as they come, and of the best attacker."""
    found: dict[tuple[str, str], tuple[float, float, float]] = {}
    for row in rows:
        place = (row["defence"], row["setting"])
        utility, naive, best = found.get(place, (row["utility"], float("nan"), 0.0))
        naive = naive if row["adaptive"] else row["fidelity"]
        found[place] = utility, naive, max(best, row["fidelity"])
    return found


def frontier_figure(rows: Iterable[Mapping[str, Any]]) -> Figure:
    """Utility against fidelity: hollow where the answers are taken as they come, filled for the best attacker."""
    from matplotlib.figure import Figure

    points = frontier_points(rows)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, defence in enumerate(dict.fromkeys(name for name, _ in points)):
        for (name, setting), (utility, naive, best) in points.items():
            if name != defence:
                continue
            colour = f"C{number % 10}"
            axes.plot([naive, best], [utility, utility], "-", color=colour, linewidth=1)
            axes.plot(naive, utility, "o", markerfacecolor="white", color=colour)
            axes.plot(best, utility, "o", color=colour, label=defence)
            axes.annotate(setting, (best, utility), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set(xlabel="agreement of the copy with the victim", ylabel="accuracy left to honest users")
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        figure.legend(once.values(), once.keys(), loc="outside right center", fontsize="small")
    return figure
